"""Consolidations: those under way, and what becomes of their instances."""

from collections.abc import Callable
from dataclasses import dataclass, field

from serving.core.actions import Consolidate
from serving.core.clock import Flow, spawn
from serving.core.instance import Instance, Phase
from serving.core.ports import Backend
from serving.core.worker import Worker
from serving.instances import Instances
from serving.mechanisms.consolidation import Consolidation
from serving.records import PauseRecord, StageRecord


@dataclass(slots=True, eq=False)
class Consolidations:
    """The consolidations of a run; each has it for its ``Keeper``."""

    backend: Backend
    instances: Instances
    note: Callable[[StageRecord | PauseRecord], None]
    on_open: Callable[[Instance], None]
    """Called when a pipeline's heir takes sequences, and when it has all memory and seats."""
    under_way: dict[Instance, Flow] = field(default_factory=dict)
    """By the pipeline."""

    def start(self, action: Consolidate) -> str:
        """Begin one; what is begun, in words."""
        group = action.instance
        consolidation = Consolidation(action, self.backend, self)
        group.num_becoming = len(consolidation.kept)
        if group.phase is not Phase.READY or group in self.under_way or not group.num_becoming:
            raise RuntimeError(f"instance {group.instance_id} cannot consolidate: it is {group.phase.value}, or does")
        self.under_way[group] = spawn(self.backend.clock, consolidation.run())
        return f"instance {group.instance_id} of {group.model}, {len(group.workers)} to {group.num_becoming} workers"

    def whole_of(self, group: Instance, worker: Worker, max_sequences: int) -> Instance:
        """What one of the workers becomes."""
        return self.instances.whole_of(group, worker, max_sequences)

    def opened(self, whole: Instance) -> None:
        """A pipeline's heir takes sequences."""
        self.on_open(whole)

    def switched(self, group: Instance, wholes: list[Instance]) -> None:
        """One is over; memory and seats are free."""
        del self.under_way[group]
        group.phase = Phase.RETIRED
        self.instances.switch(group, wholes)
        self.on_open(wholes[0])

    def stop(self, instance: Instance) -> list[Instance]:
        """The instance and, where it is part of a consolidation, which ends, all that stand on the same processes;
        those with the older sequences first."""
        pair = [one for one in (instance, instance.neighbour) if one is not None]
        pair.sort(key=lambda one: not one.closed)
        for one in pair:
            flow = self.under_way.pop(one, None)
            if flow is not None:
                flow.cancel()
                one.num_becoming = 0
        return pair
