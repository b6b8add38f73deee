"""StageGraph: what one worker does between Launch and ready, and which stage waits for which.

Systems differ in their graphs, not in multipliers: the same stages in another order, or none at all.
"""

from dataclasses import dataclass
from enum import Enum

from serving.units import Seconds


class Work(Enum):
    """What a stage spends its time on."""

    TIMED = "timed"
    """A step of the runtime (container, imports, ...): time passes on the server's CPU."""
    FETCH = "fetch"
    """Weights, storage server to host memory."""
    LOAD = "load"
    """Weights, host memory to GPU."""
    POLL = "poll"
    """Until a loop of the control plane, which looks for work at a fixed period, looks again."""
    PROFILE = "profile"
    """A forward pass at the largest batch, to size the KV pool."""


class Loader(Enum):
    """How weights get from host memory to the GPU."""

    ENGINE = "engine"
    """The engine's own loader: builds tensors on the CPU, then copies them."""
    DIRECT = "direct"
    """Copies straight out of pinned host memory at PCIe speed; the engine picks the tensors up in place."""
    BACKGROUND = "background"
    """As DIRECT, but steps that are computed meanwhile go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: it starts when all of ``after`` have ended."""

    name: str
    work: Work = Work.TIMED
    after: tuple[str, ...] = ()
    streams: str | None = None
    """LOAD only: follow this FETCH tensor by tensor instead of waiting for its end."""
    loader: Loader = Loader.DIRECT
    period: Seconds = 0.0
    """POLL: of the loop. FETCH: of the loop that takes up fetches; 0 when they start at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageGraph:
    """The stages of one worker's start, in an order in which each comes after what it waits for."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        known: set[str] = set()
        for stage in self.stages:
            for needed in (*stage.after, *((stage.streams,) if stage.streams else ())):
                if needed not in known:
                    raise ValueError(f"stage {stage.name!r} waits for {needed!r}, which does not come before it")
            if stage.name in known:
                raise ValueError(f"stage {stage.name!r} is in the graph twice")
            known.add(stage.name)
