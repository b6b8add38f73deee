"""Tokenizer files of a checkpoint that we write: ``tokenizer.json`` and ``tokenizer_config.json`` as Hugging Face reads
them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The chat template of checkpoints that come without one."""

SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
BOS, EOS = SPECIALS.index("<s>"), SPECIALS.index("<|im_end|>")
"""Token ids in the byte tokenizer."""
BYTE_TOKENS = len(SPECIALS) + 256


@dataclass(frozen=True, slots=True, kw_only=True)
class BytePairs:
    """A byte-level BPE tokenizer: tokens by id, and the pairs that merge, earliest first."""

    tokens: Sequence[str]
    """In the byte alphabet."""
    merges: Sequence[str]
    """Two tokens with a space between them."""
    specials: Sequence[int]
    """Ids of control tokens such as ``<|im_end|>``; each is one token wherever it stands in a text."""
    pre_tokenizers: Sequence[dict[str, Any]]
    """How a text is cut before pairs merge."""
    bos: str
    eos: str
    unknown: str | None
    chat_template: str
    max_tokens: int
    """Context length."""

    def write(self, folder: Path) -> None:
        """Both files."""
        (folder / "tokenizer.json").write_text(json.dumps(self._tokenizer(), ensure_ascii=False), encoding="utf-8")
        config = json.dumps(self._config(), ensure_ascii=False, indent=2)
        (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")

    def _tokenizer(self) -> dict[str, Any]:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": index, "content": self.tokens[index], **flags, "special": True} for index in self.specials
            ],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(self.pre_tokenizers)},
            "post_processor": None,
            "decoder": byte_level(use_regex=True),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": self.unknown,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": {token: index for index, token in enumerate(self.tokens)},
                "merges": list(self.merges),
            },
        }

    def _config(self) -> dict[str, Any]:
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos,
            "eos_token": self.eos,
            "pad_token": self.eos,
            **({} if self.unknown is None else {"unk_token": self.unknown}),
            "clean_up_tokenization_spaces": False,
            "model_max_length": self.max_tokens,
            "chat_template": self.chat_template,
        }


def byte_level(use_regex: bool) -> dict[str, Any]:
    """The piece of a tokenizer that maps bytes to its alphabet; with the regex it cuts a text at words, as GPT-2's."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def byte_alphabet() -> list[str]:
    """The character that stands for each byte (GPT-2's table: printable ones for themselves)."""
    printable: Iterable[int] = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in alphabet)
    alphabet |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    return [alphabet[byte] for byte in range(256)]


def byte_tokenizer(vocab: int, max_tokens: int) -> BytePairs:
    """One token a byte, for random weights. No text becomes an id above the bytes, yet such an id, which a random model
    samples, reads as a space and its number."""
    space = byte_alphabet()[ord(" ")]
    numbers = [f"{space}{index}" for index in range(BYTE_TOKENS, vocab)]
    return BytePairs(
        tokens=[*SPECIALS, *byte_alphabet(), *numbers],
        merges=(),
        specials=range(len(SPECIALS)),
        pre_tokenizers=[byte_level(use_regex=False)],
        bos=SPECIALS[BOS],
        eos=SPECIALS[EOS],
        unknown=None,
        chat_template=CHATML,
        max_tokens=max_tokens,
    )
