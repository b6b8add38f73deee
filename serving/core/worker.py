"""Worker: one pipeline stage of an instance; Process: what it runs in, which may outlive it."""

from dataclasses import dataclass, field, replace

from serving.core.hardware import GPU, Server
from serving.core.model import ModelSpec
from serving.units import Bytes, Seconds


@dataclass(slots=True, eq=False)
class Process:
    """A process with a slice of a GPU. Memory is claimed for it, whichever layers it computes."""

    first_step_done: bool = False
    """The first forward pass of a process also loads its kernels."""
    busy_until: Seconds = 0.0
    """When the steps that were given to it will have ended, where time is virtual."""


@dataclass(slots=True, eq=False)
class Worker:
    """One pipeline stage of an instance: a process with a slice of a GPU and some of the layers."""

    rank: int
    server: Server
    gpu: GPU
    memory: Bytes
    layers: range
    tensors: tuple[Bytes, ...]
    """Sizes of its weights in the order in which they are stored."""
    from_cache: bool
    planned: Bytes | None = None
    """What of ``memory`` is billed; None: all of it."""
    whole: bool = False
    """The slice has room for the whole model."""
    process: Process = field(default_factory=Process)
    weights: Bytes = field(init=False)
    """Bytes of its part of the model."""

    def __post_init__(self) -> None:
        self.weights = sum(self.tensors)

    @property
    def billed(self) -> Bytes:
        """GPU memory that its use is counted with."""
        return self.memory if self.planned is None else self.planned

    def of_layers(self, model: ModelSpec, layers: range) -> "Worker":
        """The same process with other layers, as the first stage of whatever it is then."""
        return replace(self, rank=0, layers=layers, tensors=model.stage_tensors(layers), from_cache=False)

    def rest(self, model: ModelSpec) -> tuple["Worker", ...]:
        """The same process with the layers that it lacks, those before its own and those behind."""
        missing = (range(self.layers.start), range(self.layers.stop, model.num_layers))
        return tuple(replace(self.of_layers(model, layers), rank=self.rank) for layers in missing if layers)
