"""Tokenizer: text to token ids and back; TextStream: the text of tokens that come one by one, in whole characters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.live.errors import LiveError

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder shows for bytes that are no character, or not yet."""
WINDOW = 24
"""Tokens that wait for the rest of a character at most: more of them are garbage, and shown as it."""
KEPT = 12
"""Of those, how many stay after that: the bytes that may still become a character, and enough before them."""


class Tokenizer:
    """A checkpoint's ``tokenizer.json``; safe to use from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, folder: Path) -> "Tokenizer":
        """The tokenizer in a checkpoint folder; LiveError when there is none or it is damaged."""
        from tokenizers import Tokenizer as Reader

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise LiveError(f"{folder}: no tokenizer.json; requests for this model must give token ids, not text")
        try:
            return cls(Reader.from_file(str(path)))
        except Exception as error:  # the reader raises bare Exception
            raise LiveError(f"{path}: not a tokenizer ({error})") from error

    @property
    def vocab(self) -> int:
        """Number of token ids that mean something."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Special tokens that are written out in it count as themselves; none are added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids; special ones (end of text, ...) are not shown unless wanted."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text


def put_before(path: Path) -> tuple[int, ...]:
    """Ids that the post-processor of a ``tokenizer.json`` puts before a text; none when there is no such file."""
    if not path.is_file():
        return ()
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    plain: list[int] = tokenizer.encode("a", add_special_tokens=False).ids
    whole: list[int] = tokenizer.encode("a", add_special_tokens=True).ids
    starts = (start for start in range(len(whole)) if whole[start : start + len(plain)] == plain)
    return tuple(whole[: next(starts, 0)])


class TextStream:
    """Text of one sequence's output as its tokens come: never half a character.

    What a tokenizer makes of a token depends on those before it: spaces at the start go, and one bad byte spoils the
    whole run of byte tokens that it stands in. So each new token is decoded with those that gave the last text, in a
    window that begins and is read up to where characters ended; what that adds is the news, unless it ends in bytes
    that wait for more. This is the scheme of text-generation-inference and vLLM.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_read = 0
        """Tokens of the window whose text was given out; the others wait."""
        self._told = 0
        """Characters of the window's text that were given out."""

    def push(self, ids: Sequence[int]) -> str:
        """The text that these tokens complete; "" while a character is incomplete."""
        self._window += ids
        text = self._decode()
        if len(text) > self._told and not text.endswith(UNKNOWN):
            news = text[self._told :]
            del self._window[: self._num_read]
            self._num_read, self._told = len(self._window), len(self._decode())
            return news
        return self._give_up_waiting(text) if len(self._window) - self._num_read > WINDOW else ""

    def flush(self) -> str:
        """The rest, at the end: bytes that never became a character show as U+FFFD."""
        text = self._decode()
        news = text[self._told :]
        self._told = max(self._told, len(text))
        return news

    def _give_up_waiting(self, text: str) -> str:
        """Too many tokens are no text: those without any (special ones) are forgotten, bad bytes are shown."""
        news = _whole(text)[self._told :]
        if not news:
            del self._window[self._num_read : -KEPT]
            return ""
        del self._window[:-KEPT]
        self._num_read, self._told = 0, len(_whole(self._decode()))
        return news

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window)


def _whole(text: str) -> str:
    """The text without the end that later bytes may change: up to three, one a byte where a decoder falls back."""
    shorter = text
    for _ in range(3):
        shorter = shorter.removesuffix(UNKNOWN)
    return shorter
