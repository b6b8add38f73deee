"""An engine without a model: deterministic letters at a chosen pace; and a tokenizer whose tokens are bytes."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aebench.service.served_model import ServedModel
from serving.core.request import Sampling
from serving.live.output import EngineStats, Handle, ModelStats, OnOutput, Output, TokenLogprob

VOCAB = 257
END = 256


class ByteTokenizer:
    """UTF-8 bytes as ids; 256 is the end of text."""

    def encode(self, text: str) -> list[int]:
        """The bytes."""
        return list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of the bytes."""
        text = bytes(i for i in ids if i < END).decode(errors="replace")
        return text if skip_special or END not in ids else text + "<|end|>"


@dataclass(eq=False)
class FakeRequest:
    """What was submitted."""

    handle: Handle
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    ignore_eos: bool
    on_output: OnOutput
    ids: list[int] = field(default_factory=list)

    def next_id(self) -> int:
        """A letter that depends on prompt, seed and place."""
        return 97 + (sum(self.prompt) + self.sampling.seed + len(self.ids)) % 26


class FakeEngine:
    """Every request gets a token a step, on a thread of its own."""

    def __init__(self, step_time: float = 0.0, width: int = 1) -> None:
        self.step_time = step_time
        self.width = width
        """Characters that a token's text has."""
        self.submitted: list[FakeRequest] = []
        self.running: dict[int, FakeRequest] = {}
        self.aborted: list[int] = []
        self.ready = 1
        self.failure: str | None = None
        self.paused = False
        self.closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, prompt: Sequence[int], *, model: str, on_output: OnOutput, **asked: Any) -> Handle:
        """Take a request."""
        with self._changed:
            handle = Handle(request_id=len(self.submitted), model=model, num_prompt_tokens=len(prompt))
            request = FakeRequest(handle, tuple(prompt), on_output=on_output, **asked)
            self.submitted.append(request)
            self.running[handle.request_id] = request
            self._changed.notify()
        return handle

    def abort(self, handle: Handle) -> None:
        """Forget it, and say so."""
        with self._changed:
            request = self.running.pop(handle.request_id, None)
            if request is not None:
                self.aborted.append(handle.request_id)
                request.on_output(Output(finish_reason="abort"))

    def lose(self, why: str) -> None:
        """All requests fail."""
        with self._changed:
            for request in self.running.values():
                request.on_output(Output(finish_reason="error", error=why))
            self.running.clear()

    def stats(self) -> EngineStats:
        """Counts."""
        with self._changed:
            num_output = sum(len(request.ids) for request in self.submitted)
            model = ModelStats(
                model="tiny", running=len(self.running), instances_ready=self.ready, output_tokens=num_output
            )
            return EngineStats(now=0.0, models=(model,), clock_lag=0.0, failure=self.failure)

    def drain(self, timeout: float) -> bool:
        """Whether it is idle already."""
        del timeout
        return not self.running

    def pause(self) -> None:
        """No tokens until ``resume``."""
        self.paused = True

    def resume(self) -> None:
        """Tokens again."""
        with self._changed:
            self.paused = False
            self._changed.notify()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self.closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self.closed:
                self._changed.wait_for(lambda: self.closed or (self.running and not self.paused))
                if self.step_time:
                    self._changed.wait(self.step_time)
                if not self.paused:
                    self._step()

    def _step(self) -> None:
        for key, request in list(self.running.items()):
            token_id = request.next_id()
            request.ids.append(token_id)
            ended = len(request.ids) >= request.max_tokens
            if ended:
                del self.running[key]
            text = chr(token_id) * self.width
            reason = "length" if ended else None
            request.on_output(
                Output(token_ids=(token_id,), text=text, logprobs=_logprobs(request, token_id), finish_reason=reason)
            )


def _logprobs(request: FakeRequest, token_id: int) -> tuple[TokenLogprob, ...]:
    num_top = request.sampling.logprobs
    if num_top is None:
        return ()
    top = tuple((65 + rank, -0.5 - rank if rank else float("-inf")) for rank in range(num_top))
    return (TokenLogprob(token_id=token_id, logprob=-0.25, top=top),)


def tiny(**changes: Any) -> ServedModel:
    """The model that the fake engine serves."""
    told: dict[str, Any] = {"name": "tiny", "vocab": VOCAB, "max_context": 64, "tokenizer": ByteTokenizer()}
    return ServedModel(**{**told, **changes})
