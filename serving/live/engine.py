"""Engine: the control plane of a live run on a thread of its own, for callers with real prompts who want tokens."""

import sys
import traceback
from collections.abc import Callable
from collections.abc import Sequence as Items
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from threading import Condition, Event, Lock, Thread, current_thread

from serving.core.request import Request, Sampling, Sequence
from serving.live.engine_stats import Totals, engine_stats, sequences_of
from serving.live.errors import LiveError
from serving.live.output import EngineStats, Handle, OnOutput
from serving.live.recording import Aborted, Recording, Submitted
from serving.live.setup import LiveRun, LiveSetup, running
from serving.live.stream import OutputStream, Stops
from serving.live.tokenizer import TextStream, Tokenizer
from serving.records import Record
from serving.units import Seconds, Tokens

GREEDY = Sampling()
STATS_WAIT: Seconds = 2.0
"""How long ``stats`` waits for the clock's thread before it answers with what it knew last."""


class Engine:
    """Serves requests from any thread. ``start`` it, ``submit``, and ``close`` it in the end, whatever happened."""

    def __init__(
        self,
        setup: LiveSetup,
        record: Callable[[Record], None] | None = None,
        recording: Recording | None = None,
    ) -> None:
        """LiveError on a checkpoint that is missing or damaged. Records are written on the engine's thread."""
        self.setup = setup
        self.checkpoints = setup.open_checkpoints()
        self.tokenizers = {model: _tokenizer_in(checkpoint.folder) for model, checkpoint in self.checkpoints.items()}
        """By model; None where a checkpoint has none, so that prompts must be ids and outputs have no text."""
        self._totals = Totals.of(self.checkpoints, record)
        self._recording = recording
        self._ids = count()
        self._stack = ExitStack()
        self._run: LiveRun | None = None
        self._thread: Thread | None = None
        self._lock = Lock()
        self._changed = Condition(self._lock)
        self._streams: dict[int, OutputStream] = {}
        """By request id, those whose end was not told yet; guarded by the lock."""
        self._refusal: str | None = "the engine has not started"
        """Why it takes no requests."""
        self._failure: str | None = None
        self._latest: EngineStats | None = None

    def start(self) -> None:
        """Start storage servers, prefetchers and the control plane; instances start by the system's policy."""
        if self._run is not None:
            raise LiveError("the engine was started already")
        run = self._run = self._stack.enter_context(running(self.setup, self._totals.write, self._recording))
        run.control.start()
        self._latest = self._snapshot()
        self._thread = Thread(target=self._serve, args=(run,), name="engine", daemon=True)
        self._refusal = None
        self._thread.start()

    def submit(
        self,
        prompt: Items[int],
        *,
        model: str,
        max_tokens: Tokens,
        sampling: Sampling = GREEDY,
        stop: tuple[str, ...] = (),
        ignore_eos: bool = False,
        on_output: OnOutput,
    ) -> Handle:
        """Ask for an answer to a prompt of token ids. LiveError when it cannot be served, now or ever."""
        self._check(prompt, model, max_tokens, stop)
        config = self.checkpoints[model].config
        tokenizer = self.tokenizers[model]
        stops = Stops(token_ids=frozenset(() if ignore_eos else config.eos_token_ids), strings=stop)
        stream = OutputStream(on_output, stops, None if tokenizer is None else TextStream(tokenizer))
        request = Request(
            request_id=next(self._ids),
            model=model,
            num_prompt_tokens=len(prompt),
            num_output_tokens=max_tokens,
            label="served",
            prompt=tuple(prompt),
            sampling=sampling,
        )
        with self._lock:
            if self._refusal is not None or self._run is None:
                raise LiveError(f"no new requests: {self._refusal}")
            self._streams[request.request_id] = stream
            self._run.clock.post(self._arrive, request, stream)
        return Handle(request_id=request.request_id, model=model, num_prompt_tokens=len(prompt))

    def abort(self, handle: Handle) -> None:
        """The caller is gone: its blocks are freed when the step ends that uses them. Nothing once it has ended."""
        if self._run is not None:
            self._run.clock.post(self._abort, handle.request_id)

    def stats(self) -> EngineStats:
        """Counts as of now, or of a moment ago when the engine has stopped."""
        run, thread = self._run, self._thread
        if run is None or self._latest is None:
            raise LiveError("the engine has not started: it has no counts")
        if current_thread() is thread:
            return self._snapshot()
        if thread is not None and thread.is_alive():
            taken = Event()
            run.clock.post(self._take_stats, taken)
            taken.wait(STATS_WAIT)
        return self._latest

    def drain(self, timeout: Seconds) -> bool:
        """Take no more requests, and wait for those under way; whether all have ended in time."""
        with self._changed:
            self._refusal = self._refusal or "the engine is draining"
            return self._changed.wait_for(lambda: not self._streams, timeout)

    def close(self) -> None:
        """Stop: requests under way end with an error, processes end, nothing is left. May be called again."""
        with self._lock:
            self._refusal = self._refusal or "the engine is closed"
        if self._run is not None and self._thread is not None:
            self._run.clock.stop()
            self._thread.join()
        self._give_up("the engine is closed")
        self._stack.close()

    def _check(self, prompt: Items[int], model: str, max_tokens: Tokens, stop: tuple[str, ...]) -> None:
        if model not in self.checkpoints:
            raise LiveError(f"no model {model!r} here, only {', '.join(self.checkpoints)}")
        config = self.checkpoints[model].config
        if not prompt or max_tokens < 1:
            raise LiveError("a request needs a prompt and an answer of at least one token each")
        if min(prompt) < 0 or max(prompt) >= config.vocab:
            raise LiveError(f"token ids of {model} go from 0 to {config.vocab - 1}, the prompt has others")
        if len(prompt) + max_tokens > config.max_positions:
            raise LiveError(
                f"{len(prompt)} prompt tokens and up to {max_tokens} output tokens are more than the "
                f"{config.max_positions} that {model} has positions for"
            )
        if stop and self.tokenizers[model] is None:
            raise LiveError(f"{model} has no tokenizer, so that stop strings cannot be found")

    def _serve(self, run: LiveRun) -> None:
        """The engine's thread."""
        for step in (run.clock.run, run.control.close):
            try:
                step()
            except BaseException as error:
                self._failure = self._failure or f"the engine failed: {type(error).__name__}: {error}"
                traceback.print_exception(error, file=sys.stderr)
        reason = self._failure or "the engine is closed"
        with self._lock:
            self._refusal = self._failure or self._refusal or reason
        self._latest = self._snapshot()
        self._give_up(reason)

    def _arrive(self, request: Request, stream: OutputStream) -> None:
        run = self._running()
        run.fleet.record(Submitted(at=run.clock.now, request=request))
        run.executor.listen(request.request_id, stream)
        run.control.arrive(request).wait(self._ended)

    def _abort(self, request_id: int) -> None:
        run = self._running()
        with self._lock:
            stream = self._streams.get(request_id)
        sequences = (sequence for model in self.checkpoints for sequence in sequences_of(run.control.cluster, model))
        sequence = next((sequence for sequence in sequences if sequence.request.request_id == request_id), None)
        if stream is None or sequence is None:
            return  # it has ended
        stream.give_up("abort")
        run.fleet.record(Aborted(at=run.clock.now, request_id=request_id))
        run.control.abort(sequence)

    def _ended(self, sequence: Sequence) -> None:
        """A sequence has its last token, or gets no more."""
        request_id = sequence.request.request_id
        self._running().executor.forget(request_id)
        stream = self._streams[request_id]
        stream.give_up("error", sequence.refusal)
        with self._changed:
            del self._streams[request_id]
            if stream.finish_reason is not None:
                self._totals.models[sequence.request.model].finished[stream.finish_reason] += 1
            self._changed.notify_all()

    def _give_up(self, reason: str) -> None:
        """No request will get any more tokens."""
        with self._changed:
            streams = list(self._streams.values())
            self._streams.clear()
            self._changed.notify_all()
        for stream in streams:
            stream.give_up("error", reason)

    def _take_stats(self, taken: Event) -> None:
        self._latest = self._snapshot()
        taken.set()

    def _snapshot(self) -> EngineStats:
        run = self._running()
        return engine_stats(run.control.cluster, self._totals, run.clock.lag(0.99), self._failure)

    def _running(self) -> LiveRun:
        assert self._run is not None, "the engine's thread runs after start"
        return self._run


def _tokenizer_in(folder: Path) -> Tokenizer | None:
    return Tokenizer.open(folder) if (folder / "tokenizer.json").is_file() else None
