"""Actions: what a Controller may ask for. It returns them; ``serving.control`` carries them out."""

from dataclasses import dataclass

from serving.core.hardware import GPU, Server
from serving.core.instance import Instance
from serving.core.request import Sequence
from serving.core.stages import StageGraph
from serving.units import Bytes, Tokens


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Start an instance: one worker per pipeline stage, by the given stage graph."""

    model: str
    placements: tuple[Placement, ...]
    graph: StageGraph
    max_sequences: int
    """Sequences that it may hold at once."""
    max_step_tokens: Tokens
    """Token budget of a step, which also sizes the profile run."""
    keep_in_host_memory: bool = False
    """After loading, the weights stay in the server's host cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """Stop an idle instance and give its memory back."""

    instance: Instance


Action = Dispatch | Launch | Retire
