"""StartupCosts: how long the stages of a worker's start take on one kind of server."""

from dataclasses import dataclass

from serving.units import Bytes, BytesPerSecond, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupCosts:
    """Stage times on an otherwise idle server, before jitter. Values and sources are in the testbed's TOML."""

    container: Seconds
    """Pod creation, the image being on the server."""
    libraries: Seconds
    """Imports of the runtime: PyTorch, the engine, the server."""
    context: Seconds
    """CUDA context."""
    engine: Seconds
    """Engine construction, KV allocation, server start."""
    first_step: Seconds
    """What the first forward pass of a process takes longer than the next (kernel loading)."""
    engine_load_rate: BytesPerSecond
    """Rate of the engine's own weight loader."""
    jitter: float
    """Coefficient of variation of the timed stages."""
    host_cores: float | None = None
    """Cores that the testbed's servers share, as logical servers of one machine do: each timed stage wants one. A
    measured profile has as many as starts at once were worth. None: a core is always free."""
    build_rate: BytesPerSecond | None = None
    """Rate at which engine construction goes over the worker's weights, beside what ``engine`` says, since it packs
    matrices; None: a stage of a pipeline takes as long as a whole model."""

    def timed(self, stage: str, weights: Bytes) -> Seconds:
        """Time of the stage of that name in a worker with so many bytes of weights."""
        times = {
            "container": self.container,
            "libraries": self.libraries,
            "context": self.context,
            "engine": self.engine + (weights / self.build_rate if self.build_rate else 0.0),
        }
        return times[stage]
