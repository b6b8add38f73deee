"""Service: what all requests share: engine, models, limits, the requests under way, and whether more are taken."""

import asyncio
import hmac
from collections.abc import Callable, Sequence
from typing import Literal

from starlette.requests import Request

from aebench.service.api_errors import ApiError, refused, unavailable, unknown_model
from aebench.service.bridge import Bridge
from aebench.service.engine_port import Ask, Engine
from aebench.service.generation import Generation
from aebench.service.limits import Limits
from aebench.service.meters import Meters
from aebench.service.served_model import ServedModel
from serving.live.errors import LiveError
from serving.live.output import EngineStats
from serving.units import Seconds

State = Literal["ready", "starting", "draining", "failed"]
STATS_AGE: Seconds = 0.1
"""How old the engine's counts may be when a request asks whether there is anything to serve it."""


def _keep(client: object) -> None:
    """Hangs up on nobody: for applications without a server of ours below them."""
    del client


class Service:
    """Used on the event loop only."""

    def __init__(
        self,
        engine: Engine,
        models: Sequence[ServedModel],
        *,
        limits: Limits | None = None,
        api_key: str | None = None,
        starts_on_demand: bool = False,
    ) -> None:
        self.engine = engine
        self.models = {model.name: model for model in models}
        self.limits = limits or Limits()
        self.meters = Meters()
        self.generations: dict[Generation, None] = {}
        self.hang_up: Callable[[object], None] = _keep
        """Cuts the connection of a client, given its address as ASGI tells it; the server that listens sets it."""
        self._draining = False
        self._api_key = None if api_key is None else api_key.encode()
        self._starts_on_demand = starts_on_demand
        self._bridge: Bridge | None = None
        self._stats: EngineStats | None = None
        self._stats_at: Seconds = 0.0
        self._asking: asyncio.Task[EngineStats] | None = None

    def model(self, name: str) -> ServedModel:
        """A model by its name; 404."""
        if name not in self.models:
            raise unknown_model(name, list(self.models))
        return self.models[name]

    def knows(self, authorization: str | None) -> bool:
        """Whether a header has the API key, if there is one; takes the same time for every wrong key."""
        if self._api_key is None:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        return hmac.compare_digest(key.strip().encode("utf-8", "replace"), self._api_key) and scheme.lower() == "bearer"

    @property
    def num_queued(self) -> int:
        """Sequences without a token yet."""
        return sum(generation.num_queued for generation in self.generations)

    async def stats(self) -> EngineStats:
        """The engine's counts, no older than ``STATS_AGE``; it may take its time to tell them, so a thread asks."""
        loop = asyncio.get_running_loop()
        if self._stats is None or loop.time() - self._stats_at > STATS_AGE:
            self._asking = self._asking or loop.create_task(self._ask())
            return await asyncio.shield(self._asking)
        return self._stats

    async def _ask(self) -> EngineStats:
        try:
            self._stats = await asyncio.to_thread(self.engine.stats)
            self._stats_at = asyncio.get_running_loop().time()
            return self._stats
        finally:
            self._asking = None

    async def state(self) -> State:
        """Whether requests are taken."""
        if self._draining:
            return "draining"
        stats = await self.stats()
        if stats.failure is not None:
            return "failed"
        ready = self._starts_on_demand or all(model.instances_ready for model in stats.models)
        return "ready" if ready else "starting"

    async def admit(self, model: ServedModel, num_sequences: int) -> None:
        """Nothing when so many sequences may come now; 503, 429, or 400 when they never may."""
        stats = await self.stats()
        if stats.failure is not None:
            raise unavailable(f"the engine has stopped: {stats.failure}", retry_after=30)
        counts = stats.of(model.name)
        # The engine tries again what it has given up when somebody asks for it.
        given_up = counts.losses > 0 and not counts.instances_starting
        if not self._starts_on_demand and not counts.instances_ready and not given_up:
            raise unavailable(f"no instance of {model.name} is ready yet", retry_after=5)
        self._make_room(num_sequences)

    def _make_room(self, num_sequences: int) -> None:
        if self._draining:
            raise unavailable("the server is shutting down", retry_after=30)
        limit = self.limits.queue
        if num_sequences > limit:
            raise refused("n", f"prompts times n are {num_sequences} sequences, at most {limit} can queue here")
        if self.num_queued + num_sequences > limit:
            message = f"{self.num_queued} sequences are queued, at most {limit} may be; try again soon"
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})

    def start(self, asks: Sequence[Ask], request: Request) -> Generation:
        """Put sequences under way; the caller closes the Generation."""
        self._make_room(len(asks))
        generation = Generation(self.engine, self.meters, self.limits.pending_outputs, self._closed)
        self.generations[generation] = None
        self._bridge = self._bridge or Bridge(asyncio.get_running_loop())
        try:
            generation.submit(asks, self._bridge)
        except LiveError as error:
            generation.close()
            raise unavailable(str(error)) from error
        except BaseException:
            generation.close()
            raise
        generation.watch(request.receive)
        return generation

    async def drain(self, timeout: Seconds) -> bool:
        """Take nothing new and wait for the requests under way; whether all ended in time, the others are aborted."""
        self._draining = True
        end = asyncio.get_running_loop().time() + timeout
        while self.generations and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        ended = not self.generations
        self.abort_all()
        return ended

    def abort_all(self) -> None:
        """End every request under way, with 503 or an error in its stream."""
        self._draining = True
        for generation in list(self.generations):
            generation.give_up(unavailable("the server is shutting down"))

    def _closed(self, generation: Generation) -> None:
        self.generations.pop(generation, None)
