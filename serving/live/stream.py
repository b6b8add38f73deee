"""OutputStream: what becomes of a sequence's tokens on their way to the caller: stops, text, the reason of the end."""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.live.output import FinishReason, OnOutput, Output, TokenLogprob
from serving.live.tokenizer import TextStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Stops:
    """What ends an answer before its token limit."""

    token_ids: frozenset[int] = frozenset()
    """End tokens; they count as output and show no text."""
    strings: tuple[str, ...] = ()
    """The text ends before the first of them."""


class StopText:
    """Lets text through up to the first stop string, and holds back what may become one."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(string for string in strings if string)
        self._held = ""
        self.met = False
        """A stop string has come; nothing is let through any more."""

    def push(self, text: str) -> str:
        """What can be shown now."""
        if self.met:
            return ""
        self._held += text
        starts = [start for start in map(self._held.find, self._strings) if start >= 0]
        if starts:
            self.met = True
            return self._show(min(starts))
        return self._show(len(self._held) - self._num_held())

    def flush(self) -> str:
        """What was held back, at the end; nothing once a stop string was met."""
        return "" if self.met else self._show(len(self._held))

    def _show(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown

    def _num_held(self) -> int:
        """Characters at the end that are the start of a stop string; the most that any could need."""
        return max((_overlap(self._held, string) for string in self._strings), default=0)


class OutputStream:
    """The news of one request; ``on_output`` hears of every token, and last of the end, exactly once."""

    def __init__(self, on_output: OnOutput, stops: Stops, text: TextStream | None) -> None:
        self._on_output = on_output
        self._stops = stops
        self._text = text
        self._stop_text = StopText(stops.strings)
        self.finish_reason: FinishReason | None = None

    @property
    def minds_text(self) -> bool:
        """Whether what the tokens read as decides where the answer ends."""
        return bool(self._stops.strings)

    def ends_at(self, token_id: int) -> bool:
        """Whether the token ends the answer, whatever it reads as."""
        return token_id in self._stops.token_ids

    def push(self, ids: Sequence[int], logprobs: Sequence[TokenLogprob], is_last: bool) -> int:
        """Tokens of one step, and whether the limit is reached with them; returns how many of them count, fewer than
        there are when the answer ends before (drafted tokens behind a stop do not)."""
        shown = ""
        for index, token_id in enumerate(ids):
            ends = self.ends_at(token_id)
            shown += "" if ends else self._show(token_id)
            if ends or self._stop_text.met:
                self._end("stop", ids[: index + 1], logprobs[: index + 1], shown)
                return index + 1
        if is_last:
            self._end("length", ids, logprobs, shown)
        else:
            self._on_output(Output(token_ids=tuple(ids), text=shown, logprobs=tuple(logprobs)))
        return len(ids)

    def give_up(self, reason: FinishReason, error: str | None = None) -> None:
        """No more tokens will come; nothing when the end was told already."""
        if self.finish_reason is None:
            self._end(reason, (), (), "", error)

    def _show(self, token_id: int) -> str:
        if self._text is None:
            return ""
        return self._stop_text.push(self._text.push((token_id,)))

    def _end(
        self,
        reason: FinishReason,
        ids: Sequence[int],
        logprobs: Sequence[TokenLogprob],
        shown: str,
        error: str | None = None,
    ) -> None:
        if self._text is not None:
            shown += self._stop_text.push(self._text.flush())
            if self._stop_text.met:
                reason = "stop" if reason == "length" else reason
            shown += self._stop_text.flush()
        self.finish_reason = reason
        self._on_output(
            Output(token_ids=tuple(ids), text=shown, logprobs=tuple(logprobs), finish_reason=reason, error=error)
        )


def _overlap(text: str, string: str) -> int:
    """The longest end of the text that is a start of the string, and not all of it."""
    longest = min(len(text), len(string) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(string[:size])), 0)
