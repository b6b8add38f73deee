"""What the service needs of an engine and of a tokenizer: those of ``serving.live``, or others in tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.core.request import Sampling
from serving.live.output import EngineStats, Handle, OnOutput
from serving.units import Seconds, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One sequence to generate: a prompt, and how to continue it."""

    model: str
    prompt: tuple[int, ...]
    max_tokens: Tokens
    sampling: Sampling
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


class Engine(Protocol):
    """Generates tokens on threads of its own; every method may be called from any thread."""

    def submit(
        self,
        prompt: Sequence[int],
        *,
        model: str,
        max_tokens: Tokens,
        sampling: Sampling,
        stop: tuple[str, ...],
        ignore_eos: bool,
        on_output: OnOutput,
    ) -> Handle:
        """Take a request; ``on_output`` hears of it until an Output with a finish reason."""
        ...

    def abort(self, handle: Handle) -> None:
        """Give a request up and free its KV blocks; nothing when it has ended."""
        ...

    def stats(self) -> EngineStats:
        """Counts as of now."""
        ...

    def drain(self, timeout: Seconds) -> bool:
        """Take no more requests; whether those under way ended in time."""
        ...

    def close(self) -> None:
        """End everything: requests, instances, processes."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back."""

    def encode(self, text: str) -> list[int]:
        """The ids; none are added."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ids."""
        ...
