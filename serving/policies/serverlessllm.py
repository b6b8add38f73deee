"""ServerlessLLM: whole GPUs, a pinned-memory store, and the server with the fastest estimated start.

**Paper**: ServerlessLLM (OSDI'24), in the fork that HydraServe (NSDI'26) compares with.
**Implements** (HydraServe sheet, sections 4 and 9.9): ticks of one second for load balancer and autoscaler, one new
instance a tick, start-up-time estimates from where the weights are, chunk-pipelined loading through a pinned pool with
LRU eviction.
**Departures**: the pool's fetch starts when the worker asks for its weights, not when the instance is scheduled: in
the paper's bars OPT-2.7B takes 2.0 to 3.0 s longer uncached than cached, which a fetch hidden behind the runtime's
start would not (docs/adr/0005). The store takes up its load queue once a second, like the fork's other loops; the
sheet names the queue, not its period. The loops are not in step with each other. No container stage: workers are
processes of a running Ray cluster, whose start is excluded. No live migration, as the sheet sees none in the fork.
"""

from dataclasses import dataclass
from math import ceil

from serving.core.actions import Action, Launch, Placement
from serving.core.cluster import Cluster
from serving.core.hardware import Server
from serving.core.instance import Instance, Phase
from serving.core.request import Sequence
from serving.core.stages import Stage, StageGraph, Work
from serving.cost.memory import UTILISATION
from serving.policies.autoscale import hand_out, retire_idle
from serving.policies.continuous import Batching
from serving.policies.knobs import knob
from serving.units import Bytes, Seconds, Tokens

TICK: Seconds = 1.0
"""Period of the loops of scheduler, autoscaler and load balancer (sheet, section 4); assumed of the store's as well."""

STORE_START = StageGraph(
    stages=(
        Stage(name="libraries"),
        Stage(name="context", after=("libraries",)),
        Stage(name="fetch", work=Work.FETCH, after=("context",), period=TICK),
        Stage(name="load", work=Work.LOAD, after=("context",), streams="fetch"),
        Stage(name="profile", work=Work.PROFILE, after=("load",)),
        Stage(name="engine", after=("profile",)),
        Stage(name="load balancer", work=Work.POLL, after=("engine",), period=TICK),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerlessLLMConfig:
    """Knobs of ServerlessLLM."""

    target_concurrency: int = knob(8, source="sheet 4, batch")
    max_step_tokens: Tokens = knob(3072, unit="tokens", source="as for HydraServe")
    grace_period: Seconds = knob(30.0, unit="s", source="sheet 4, keep-alive (configured)")
    interval: Seconds = knob(
        TICK,
        unit="s",
        source="sheet 4: scheduler, autoscaler and load-balancer ticks; of the store's load queue: assumed alike",
    )
    batching: Batching = Batching()


class ServerlessLLM:
    """The Controller. It acts at its ticks, and when the load balancer first sees an instance."""

    def __init__(self, config: ServerlessLLMConfig) -> None:
        self.config = config
        self.interval = config.interval

    def on_arrival(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """Wait for the tick."""
        del sequence, cluster
        return []

    def on_ready(self, instance: Instance, cluster: Cluster) -> list[Action]:
        """The load balancer has seen it: hand out."""
        return hand_out(instance.model, cluster)

    def on_finish(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """Wait for the tick."""
        del sequence, cluster
        return []

    def on_change(self, model: str, cluster: Cluster, lost: Instance | None) -> list[Action]:
        """Wait for the tick."""
        del model, cluster, lost
        return []

    def on_interval(self, cluster: Cluster) -> list[Action]:
        """Load balancer, then autoscaler: at most one new instance per model."""
        actions: list[Action] = [*retire_idle(cluster, self.config.grace_period)]
        taken: list[Server] = []
        for model in cluster.models_held():
            actions += hand_out(model, cluster)
            if self._instances_short(model, cluster) > 0:
                server = self._fastest(model, cluster, taken)
                if server is not None:
                    taken.append(server)
                    actions.append(self._launch(model, server))
        return actions

    def _instances_short(self, model: str, cluster: Cluster) -> int:
        """ceil(requests / target) less the instances there are."""
        instances = [i for phase in (Phase.STARTING, Phase.READY) for i in cluster.instances_of(model, phase)]
        num_requests = cluster.num_held(model) + sum(instance.num_sequences for instance in instances)
        return ceil(num_requests / self.config.target_concurrency) - len(instances)

    def _fastest(self, model: str, cluster: Cluster, taken: list[Server]) -> Server | None:
        """The server with a free GPU that holds the model, and room in its pool, on which it is loaded first."""
        size = cluster.deployments[model].size
        weights = cluster.deployments[model].spec.weight_bytes
        open_servers = [
            server
            for server in cluster.servers
            if server not in taken
            and any(gpu.memory.used == 0 and weights < gpu.memory.capacity * UTILISATION for gpu in server.gpus)
            and (server.cache is None or server.cache.can_open(model, weights))
        ]
        return min(open_servers, key=lambda server: self._estimate(model, size, server, cluster), default=None)

    def _estimate(self, model: str, size: Bytes, server: Server, cluster: Cluster) -> Seconds:
        if server.cache is not None and server.cache.holds(model):
            return size / server.gpus[0].pcie.capacity
        queued = sum(
            cluster.deployments[instance.model].size
            for instance in cluster.instances
            if instance.phase is Phase.STARTING and instance.workers[0].server is server
        )
        return (size + queued) / server.nic_rate

    def _launch(self, model: str, server: Server) -> Launch:
        gpu = next(gpu for gpu in server.gpus if gpu.memory.used == 0)
        cached = server.cache is not None and server.cache.holds(model)
        return Launch(
            model=model,
            placements=(Placement(server=server, gpu=gpu, memory=gpu.memory.capacity, from_cache=cached),),
            graph=STORE_START,
            max_sequences=self.config.target_concurrency,
            max_step_tokens=self.config.max_step_tokens,
            keep_in_host_memory=True,
        )
