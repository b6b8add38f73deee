"""Fixed instances: so many instances, kept alive; each sequence goes to the one with the fewest.

**Paper**: none; what an ordinary serving deployment does, and the system that ``aebench serve`` runs by default.
**Implements**: join the shortest queue over a fixed set; a lost instance is started again.
**Departures**: every worker takes a whole GPU.
"""

from dataclasses import dataclass

from serving.core.actions import Action, Dispatch, Launch, Placement
from serving.core.cluster import Cluster
from serving.core.hardware import GPU, Server
from serving.core.instance import Instance, Phase
from serving.core.request import Sequence
from serving.core.stages import Stage, StageGraph, Work
from serving.policies.continuous import Batching
from serving.policies.knobs import knob
from serving.units import Seconds, Tokens

STREAMED_START = StageGraph(
    stages=(
        Stage(name="container"),
        Stage(name="libraries", after=("container",)),
        Stage(name="context", after=("container",)),
        Stage(name="fetch", work=Work.FETCH),
        Stage(name="load", work=Work.LOAD, after=("context",), streams="fetch"),
        Stage(name="engine", after=("libraries", "load")),
    )
)
"""Nothing is measured of this start; it is the fastest there is."""

MAX_FAILURES = 3
"""Starts that may fail in a row before the next one waits for a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedInstancesConfig:
    """Knobs of fixed instances."""

    num_instances: int = knob(1, source="ours")
    num_stages: int = knob(1, source="ours")
    max_sequences: int = knob(64, source="ours: sequences of one instance, waiting ones included")
    max_step_tokens: Tokens = knob(512, unit="tokens", source="Sarathi-Serve's chunk size")
    interval: Seconds = knob(1.0, unit="s", source="ours: how soon a missing instance is noticed")
    batching: Batching = Batching(chunked_prefill=True)

    def __post_init__(self) -> None:
        for name in ("num_instances", "num_stages", "max_sequences", "max_step_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


class FixedInstances:
    """The Controller."""

    def __init__(self, config: FixedInstancesConfig) -> None:
        self.config = config
        self.interval = config.interval
        self._failures: dict[str, int] = {}
        """Per model, starts that failed since the last one that did not."""

    def on_arrival(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """Start what is missing, also when that failed before: somebody asks for it. Hand out."""
        self._failures.pop(sequence.request.model, None)
        return self._launches(sequence.request.model, cluster) + self._hand_out(sequence.request.model, cluster)

    def on_ready(self, instance: Instance, cluster: Cluster) -> list[Action]:
        """Hand out."""
        self._failures.pop(instance.model, None)
        return self._hand_out(instance.model, cluster)

    def on_finish(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """Hand out the free seat."""
        return self._hand_out(sequence.request.model, cluster)

    def on_change(self, model: str, cluster: Cluster, lost: Instance | None) -> list[Action]:
        """Hand out. Start what is missing again: at once when it had been ready, at the tick when it never was."""
        if lost is not None and lost.pool is None:
            self._failures[model] = self._failures.get(model, 0) + 1
            return []
        return self._launches(model, cluster) + self._hand_out(model, cluster)

    def on_interval(self, cluster: Cluster) -> list[Action]:
        """Every deployed model has its instances, asked for or not, unless its starts keep failing."""
        free = _free_gpus(cluster)
        models = [model for model in cluster.deployments if self._failures.get(model, 0) < MAX_FAILURES]
        return [action for model in models for action in self._launches(model, cluster, free)]

    def _launches(self, model: str, cluster: Cluster, free: list[tuple[Server, GPU]] | None = None) -> list[Action]:
        """As many instances as are missing and find GPUs, which are taken off ``free``."""
        free = _free_gpus(cluster) if free is None else free
        missing = self.config.num_instances - sum(instance.model == model for instance in cluster.instances)
        actions: list[Action] = []
        for _ in range(missing):
            if len(free) < self.config.num_stages:
                break
            chosen = [free.pop(0) for _ in range(self.config.num_stages)]
            actions.append(
                Launch(
                    model=model,
                    placements=tuple(Placement(server=s, gpu=g, memory=g.memory.capacity) for s, g in chosen),
                    graph=STREAMED_START,
                    max_sequences=self.config.max_sequences,
                    max_step_tokens=self.config.max_step_tokens,
                )
            )
        return actions

    def _hand_out(self, model: str, cluster: Cluster) -> list[Action]:
        """Held sequences, oldest first, each to the ready instance with the fewest that has a seat."""
        counts = {instance: instance.num_sequences for instance in cluster.instances_of(model, Phase.READY)}
        actions: list[Action] = []
        for sequence in cluster.held.get(model, ()):
            open_instances = [instance for instance, count in counts.items() if count < instance.max_sequences]
            if not open_instances:
                break
            instance = min(open_instances, key=lambda candidate: counts[candidate])
            counts[instance] += 1
            actions.append(Dispatch(sequence=sequence, instance=instance))
        return actions


def _free_gpus(cluster: Cluster) -> list[tuple[Server, GPU]]:
    return [(server, gpu) for server in cluster.servers for gpu in server.gpus if gpu.memory.used == 0]
