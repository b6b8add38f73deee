"""OutputStream: stops and text; TextStream: whole characters only."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.live.errors import LiveError
from serving.live.output import Output, TokenLogprob
from serving.live.stream import OutputStream, Stops, StopText
from serving.live.tokenizer import TextStream, Tokenizer
from serving.live.tokenizer_files import BYTE_TOKENS, EOS, SPECIALS, byte_tokenizer

pytest.importorskip("tokenizers", reason="needs the live extra: make test-live")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(BYTE_TOKENS + 16, 256).write(folder)
    return Tokenizer.open(folder)


def ids_of(text: str) -> list[int]:
    """One token a byte."""
    return [len(SPECIALS) + byte for byte in text.encode()]


def listen(tokenizer: Tokenizer | None, *strings: str, eos: int | None = None) -> tuple[OutputStream, list[Output]]:
    heard: list[Output] = []
    stops = Stops(token_ids=frozenset(() if eos is None else {eos}), strings=strings)
    return OutputStream(heard.append, stops, None if tokenizer is None else TextStream(tokenizer)), heard


def tell(stream: OutputStream, ids: list[int], limit: int) -> None:
    for number, token_id in enumerate(ids, 1):
        if stream.finish_reason is None:
            stream.push((token_id,), (), number == limit)


def text_of(heard: list[Output]) -> str:
    return "".join(output.text for output in heard)


@given(st.text(max_size=60))
def test_text_comes_whole_and_never_in_half_characters(tokenizer: Tokenizer, text: str) -> None:
    stream = TextStream(tokenizer)
    parts = [stream.push((token_id,)) for token_id in ids_of(text)]
    seen = ""
    for part in parts:
        seen += part
        assert text.startswith(seen)
    assert seen + stream.flush() == text


@given(st.lists(st.integers(len(SPECIALS), BYTE_TOKENS + 15), max_size=120))
def test_any_bytes_read_as_they_would_all_at_once(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = TextStream(tokenizer)
    text = "".join(stream.push((token_id,)) for token_id in ids) + stream.flush()
    assert text == tokenizer.decode(ids)


def test_a_character_that_never_ends_shows_at_the_end(tokenizer: Tokenizer) -> None:
    stream, heard = listen(tokenizer)
    tell(stream, ids_of("aé")[:-1], limit=2)
    assert [output.text for output in heard] == ["a", "\N{REPLACEMENT CHARACTER}"]


@pytest.fixture(scope="module")
def falling_back() -> Tokenizer:
    """As Llama 2's: bytes that are no token of their own are tokens like <0xF0>, and the first space goes."""
    from tokenizers import Tokenizer as Raw
    from tokenizers import decoders, models

    known = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁world", "世", "界", "▁▁"]
    raw = Raw(models.BPE(vocab={token: i for i, token in enumerate(known)}, merges=[], byte_fallback=True))
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(raw)


def fallback_ids(tokenizer: Tokenizer, *pieces: str) -> list[int]:
    """Tokens by name; bytes for what is none."""
    name_to_id = tokenizer._tokenizer.token_to_id
    names = [[p] if name_to_id(p) is not None else [f"<0x{byte:02X}>" for byte in p.encode()] for p in pieces]
    return [name_to_id(name) for group in names for name in group]


def test_byte_tokens_are_never_cut_within_a_run(falling_back: Tokenizer) -> None:
    ids = fallback_ids(falling_back, "▁", "a", "😀", "😁", "世", "界", "é", "▁world", "▁", "b")
    stream = TextStream(falling_back)
    parts = [stream.push((token_id,)) for token_id in ids]
    assert "".join(parts) + stream.flush() == "a😀😁世界é world b" == falling_back.decode(ids)
    assert [part for part in parts if part] == ["a", "😀", "😁", "世", "界", "é", " world", " ", "b"]


@given(
    st.lists(st.sampled_from(["▁", "▁▁", "a", "▁world", "世", "😀", "é", "ß", "한"]), max_size=80), st.integers(1, 5)
)
def test_fallen_back_text_comes_as_it_would_all_at_once(falling_back: Tokenizer, pieces: list[str], step: int) -> None:
    ids = fallback_ids(falling_back, *pieces)
    stream = TextStream(falling_back)
    parts = [stream.push(ids[at : at + step]) for at in range(0, len(ids), step)]
    assert "".join(parts) + stream.flush() == falling_back.decode(ids)
    assert all("\N{REPLACEMENT CHARACTER}" not in part for part in parts)


def test_bad_bytes_do_not_wait_for_ever(falling_back: Tokenizer) -> None:
    bad = fallback_ids(falling_back, "😀")[:1] * 200
    stream = TextStream(falling_back)
    seen = "".join(stream.push((token_id,)) for token_id in bad)
    assert len(seen) > 150
    assert seen + stream.push(fallback_ids(falling_back, "▁world")) == falling_back.decode(bad) + " world"


def test_many_tokens_without_text_keep_the_space_behind_them(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    parts = [stream.push((token_id,)) for token_id in [*ids_of("hi"), *[EOS] * 100, *ids_of(" you")]]
    assert "".join(parts) == "hi you"
    assert len(stream._window) < 40


def test_special_tokens_show_no_text_and_an_end_token_counts(tokenizer: Tokenizer) -> None:
    stream, heard = listen(tokenizer, eos=EOS)
    tell(stream, [*ids_of("hi"), 0, EOS, *ids_of("never")], limit=99)
    assert text_of(heard) == "hi"
    assert [token for output in heard for token in output.token_ids][-1] == EOS
    assert [output.finish_reason for output in heard] == [None, None, None, "stop"]


def test_the_text_ends_before_a_stop_string_that_comes_in_pieces(tokenizer: Tokenizer) -> None:
    stream, heard = listen(tokenizer, "STOP", "END")
    tell(stream, ids_of("a STaST STOP b"), limit=99)
    assert text_of(heard) == "a STaST "
    assert heard[-1].finish_reason == "stop"
    assert len([output for output in heard if output.token_ids]) == len("a STaST STOP")
    assert all("a STaST ".startswith(text_of(heard[:end])) for end in range(len(heard) + 1))


def test_what_was_held_back_for_a_stop_string_comes_at_the_limit(tokenizer: Tokenizer) -> None:
    stream, heard = listen(tokenizer, "STOP")
    tell(stream, ids_of("a STO"), limit=5)
    assert [output.text for output in heard] == ["a", " ", "", "", "STO"]
    assert heard[-1].finish_reason == "length"


def test_the_earliest_of_several_stop_strings_counts() -> None:
    text = StopText(["bb", "ab"])
    assert text.push("xabb") == "x"
    assert text.met
    assert text.push("more") + text.flush() == ""


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_as_they_would_the_whole_text(text: str, strings: list[str]) -> None:
    stopping = StopText(strings)
    shown = "".join(stopping.push(character) for character in text) + stopping.flush()
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(string) for string in strings)]
    if not ends:
        assert shown == text and not stopping.met
    else:  # at the first end of any, before the earliest that ends there
        assert shown == min((text[: ends[0]][: -len(s)] for s in strings if text[: ends[0]].endswith(s)), key=len)


def test_without_a_tokenizer_tokens_come_without_text() -> None:
    stream, heard = listen(None)
    logprob = TokenLogprob(token_id=7, logprob=-0.5)
    stream.push((7,), (logprob,), False)
    stream.push((8,), (), True)
    assert heard == [
        Output(token_ids=(7,), logprobs=(logprob,)),
        Output(token_ids=(8,), finish_reason="length"),
    ]


def test_tokens_behind_a_stop_do_not_count(tokenizer: Tokenizer) -> None:
    stream, heard = listen(tokenizer, eos=EOS)
    a, b = ids_of("ab")
    assert stream.push((a, EOS, b), (), False) == 2
    assert heard == [Output(token_ids=(a, EOS), text="a", finish_reason="stop")]


def test_the_end_is_told_once() -> None:
    stream, heard = listen(None)
    stream.give_up("error", "lost")
    stream.give_up("abort")
    assert heard == [Output(finish_reason="error", error="lost")]


def test_a_folder_without_a_tokenizer_or_with_a_broken_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(LiveError, match=r"no tokenizer\.json; requests for this model must give token ids"):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(LiveError, match="not a tokenizer"):
        Tokenizer.open(tmp_path)
