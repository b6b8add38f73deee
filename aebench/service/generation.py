"""Generation: the sequences of one HTTP request, from submission to the last output, or until its client goes away."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from starlette.types import Receive

from aebench.service.api_errors import ApiError, unavailable
from aebench.service.bridge import Bridge
from aebench.service.engine_port import Ask, Engine
from aebench.service.meters import Meters
from serving.live.output import FinishReason, Handle, Output, TokenLogprob
from serving.units import Seconds, Tokens


@dataclass(slots=True, eq=False)
class Life:
    """A sequence as the service sees it."""

    handle: Handle
    first_at: Seconds | None = None
    last_at: Seconds = 0.0
    num_output_tokens: Tokens = 0
    ended: bool = False

    @property
    def queued(self) -> bool:
        """It has nothing yet."""
        return self.first_at is None and not self.ended


class Generation:
    """What an endpoint reads outputs from; ``close`` it always, which aborts what has not ended."""

    def __init__(
        self, engine: Engine, meters: Meters, max_pending: int, on_close: "Callable[[Generation], None]"
    ) -> None:
        self._engine = engine
        self._meters = meters
        self._max_pending = max_pending
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._news: deque[tuple[int, Output]] = deque()
        self._changed = asyncio.Event()
        self._lost: ApiError | None = None
        self._watch: asyncio.Task[None] | None = None
        self.lives: list[Life] = []

    def submit(self, asks: Sequence[Ask], bridge: Bridge) -> None:
        """Give the engine all of them."""
        for index, ask in enumerate(asks):
            handle = self._engine.submit(
                ask.prompt,
                model=ask.model,
                max_tokens=ask.max_tokens,
                sampling=ask.sampling,
                stop=ask.stop,
                ignore_eos=ask.ignore_eos,
                on_output=partial(bridge.put, self._take, index),
            )
            self.lives.append(Life(handle))

    def watch(self, receive: Receive) -> None:
        """Abort when the client goes away."""
        self._watch = self._loop.create_task(self._until_gone(receive))

    @property
    def num_queued(self) -> int:
        """Sequences without a token yet."""
        return sum(life.queued for life in self.lives)

    @property
    def num_output_tokens(self) -> Tokens:
        """Produced so far."""
        return sum(life.num_output_tokens for life in self.lives)

    async def next(self) -> tuple[int, Output] | None:
        """The next output and whose it is, None after the last; ApiError when there will be no good one."""
        while self._lost is None and not self._news:
            if all(life.ended for life in self.lives):
                return None
            self._changed.clear()
            await self._changed.wait()
        if self._lost is not None:
            raise self._lost
        index, output = self._news.popleft()
        if output.finish_reason == "error":
            raise unavailable(output.error or "the engine could not go on")
        if output.finish_reason == "abort":
            raise unavailable("the request was aborted: the server is shutting down")
        return index, output

    async def begun(self) -> None:
        """Waits for the first output, and leaves it; an ApiError before it can still be an answer's status."""
        found = await self.next()
        if found is not None:
            self._news.appendleft(found)

    async def all(self) -> "list[Answer]":
        """Every sequence's whole answer."""
        answers = [Answer() for _ in self.lives]
        while (found := await self.next()) is not None:
            answers[found[0]].add(found[1])
        return answers

    def give_up(self, why: ApiError) -> None:
        """Abort its sequences; whoever waits for it hears why."""
        self._lost = self._lost or why
        self._abort()
        self._changed.set()

    def close(self) -> None:
        """End it: nothing of it is left in the engine, nobody watches its client."""
        if self._watch is not None:
            self._watch.cancel()
        self._abort()
        self._on_close(self)

    def _abort(self) -> None:
        for life in self.lives:
            if not life.ended:
                life.ended = True
                self._meters.ended("abort")
                self._engine.abort(life.handle)

    def _take(self, index: int, output: Output) -> None:
        life = self.lives[index]
        if life.ended:
            return  # what the engine had said already when it was aborted
        self._time(life, output)
        self._news.append((index, output))
        self._changed.set()
        if len(self._news) > self._max_pending:
            self.give_up(ApiError(499, "the client reads slower than its answer comes"))

    def _time(self, life: Life, output: Output) -> None:
        now = self._loop.time()
        if output.token_ids:
            if life.first_at is None:
                life.first_at = now
                self._meters.ttft.observe(now - self._began_at)
            life.last_at = now
            life.num_output_tokens += len(output.token_ids)
        if output.finish_reason is not None:
            life.ended = True
            self._meters.ended(output.finish_reason)
            self._time_whole(life, now)

    def _time_whole(self, life: Life, now: Seconds) -> None:
        if life.first_at is None:
            return
        self._meters.e2e.observe(now - self._began_at)
        if life.num_output_tokens > 1:
            self._meters.tpot.observe((life.last_at - life.first_at) / (life.num_output_tokens - 1))

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.give_up(ApiError(499, "the client went away"))


@dataclass(slots=True, eq=False)
class Answer:
    """All that a sequence produced."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason = "length"

    def add(self, output: Output) -> None:
        """One more output."""
        self.texts.append(output.text)
        self.logprobs += output.logprobs
        self.finish_reason = output.finish_reason or self.finish_reason

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.texts)
