"""Cluster: the thing served on. Machines, instances, and the sequences held for want of one: state, no behaviour."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from serving.core.clock import Clock
from serving.core.hardware import Inventory, Server
from serving.core.instance import Instance, Phase
from serving.core.model import ModelSpec
from serving.core.request import Sequence
from serving.units import Bytes, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model that clients may ask for, as the provider's table describes it."""

    model: str
    """Its name; many deployments may share an architecture."""
    spec: ModelSpec
    """Its architecture."""
    size: Bytes
    """Size that the provider plans with (a table entry, not the checkpoint's byte count)."""
    ttft_slo: Seconds | None = None
    """None: clients ask for none."""
    tpot_slo: Seconds | None = None

    @property
    def slos(self) -> tuple[Seconds, Seconds]:
        """TTFT and TPOT, for a system that plans by them (``System.plans_by_slos``)."""
        if self.ttft_slo is None or self.tpot_slo is None:
            raise ValueError(f"{self.model} has no ttft_slo and tpot_slo to plan by")
        return self.ttft_slo, self.tpot_slo


@dataclass(slots=True, eq=False)
class Cluster:
    """What a Controller sees."""

    clock: Clock
    inventory: Inventory
    deployments: dict[str, Deployment]
    instances: list[Instance] = field(default_factory=list)
    """Starting and ready ones, in order of launch."""
    held: dict[str, deque[Sequence]] = field(default_factory=dict)
    """Per model, sequences that no instance has yet, oldest first."""

    @property
    def now(self) -> Seconds:
        """Seconds since run start."""
        return self.clock.now

    @property
    def servers(self) -> tuple[Server, ...]:
        """The machines with GPUs."""
        return self.inventory.servers

    def instances_of(self, model: str, phase: Phase) -> Iterator[Instance]:
        """Instances of a model in a phase, in order of launch."""
        return (i for i in self.instances if i.model == model and i.phase is phase)

    def models_held(self) -> list[str]:
        """Models with held sequences, the one whose first has waited longest first."""
        held = [model for model, queue in self.held.items() if queue]
        return sorted(held, key=lambda model: self.held[model][0].arrived_at)

    def num_held(self, model: str) -> int:
        """Sequences of the model that no instance has yet."""
        return len(self.held.get(model, ()))
