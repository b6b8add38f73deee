"""Actions: what a Controller may ask for. It returns them; ``serving.control`` carries them out."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from serving.core.hardware import GPU, Server
from serving.core.instance import Instance
from serving.core.request import Sequence
from serving.core.stages import StageGraph
from serving.core.worker import Worker
from serving.units import Bytes, Seconds, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Give a held sequence to a ready instance."""

    sequence: Sequence
    instance: Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One worker of a launch: where, and how much of the GPU."""

    server: Server
    gpu: GPU
    memory: Bytes
    """GPU memory slice."""
    from_cache: bool = False
    """The weights are in this server's host cache: nothing to fetch."""
    planned: Bytes | None = None
    """What of ``memory`` is billed; None: all of it."""
    whole: bool = False
    """The slice has room for the whole model, whatever part of it the worker starts with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Start an instance: one worker per pipeline stage, by the given stage graph."""

    model: str
    placements: tuple[Placement, ...]
    graph: StageGraph
    max_sequences: int
    """Sequences that it may hold at once."""
    max_batch: int | None = None
    """Sequences in one step at most; None: as many as it holds."""
    max_step_tokens: Tokens
    """Token budget of a step, which also sizes the profile run."""
    keep_in_host_memory: bool = False
    """After loading, the weights stay in the server's host cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """Stop an idle instance and give its memory back."""

    instance: Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Consolidate:
    """Turn a pipeline that serves into instances of one worker each: those that have memory for the whole model fetch
    the rest of it in the background, the others end."""

    instance: Instance
    network: "Network"
    """Asked before the background fetches and before KV moves."""
    max_sequences: int
    """That each of the instances that come of it may hold."""
    migrate: bool
    """Move the KV of running sequences, when the network lets it; else wait until they have ended."""
    network_poll: Seconds
    """How often a server's network is asked for a background fetch."""
    exclusive_poll: Seconds
    """How often the group's servers are asked for their whole network, for KV to move."""


class Network(Protocol):
    """A controller's say over the servers' NICs; mechanisms ask it at every poll."""

    def open_for_rest(self, worker: Worker, size: Bytes) -> bool:
        """Whether the worker may fetch the rest of its model, so many bytes, now; if so, it is counted with."""
        ...

    def close_rest(self, worker: Worker) -> None:
        """That fetch has ended, one way or the other."""
        ...

    def take_alone(self, servers: tuple[Server, ...]) -> bool:
        """Whether nothing is fetched by any of the servers; if so, nothing will be until they are given back."""
        ...

    def give_back(self, servers: tuple[Server, ...]) -> None:
        """They may fetch again."""
        ...


class Method(Enum):
    """How a running sequence gets to another instance."""

    LIVE = "live"
    """Its KV is copied while it is computed, until so little is left that a pause for the rest is short."""
    BLOCKING = "blocking"
    """It is paused until all its KV is copied."""
    RECOMPUTE = "recompute"
    """Its KV is dropped, and computed again at the target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrate:
    """Move a running sequence to another instance; it goes on at the source when it cannot."""

    sequence: Sequence
    source: Instance
    target: Instance
    method: Method = Method.LIVE
    max_stages: int
    """Of a live migration, the one with the pause included; at least 2."""
    last_stage_blocks: int
    """A live migration pauses the sequence as soon as no more KV blocks than these are left to copy."""
    keep_free: int
    """KV blocks that stay free at the target."""


Action = Dispatch | Launch | Consolidate | Migrate | Retire
