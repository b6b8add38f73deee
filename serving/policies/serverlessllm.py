"""ServerlessLLM: whole GPUs, a pinned-memory store, and the server with the fastest estimated start.

**Paper**: ServerlessLLM (OSDI'24), in the fork that HydraServe (NSDI'26) compares with.
**Implements** (HydraServe sheet, sections 4 and 9.9): ticks of one second for load balancer and autoscaler, one new
instance a tick, start-up-time estimates from where the weights are, chunk-pipelined loading through a pinned pool with
LRU eviction.
**Departures**: the pool's fetch starts when the worker asks for its weights, not when the instance is scheduled: in the
paper's bars OPT-2.7B takes 2.0 to 3.0 s longer uncached than cached, which a fetch hidden behind the runtime's start
would not (docs/adr/0005). The store takes up its load queue once a second, like the fork's other loops; the sheet names
the queue, not its period. The loops are not in step with each other. A tick takes the GPUs that it gives back for free,
and what it starts for queued; what is on its way into a pool counts as the server's queue, what is there does not. No
container stage: workers are processes of a running Ray cluster, whose start is excluded. No live migration, as the
sheet sees none in the fork.
"""

from dataclasses import dataclass
from math import ceil

from serving.core.actions import Action, Launch, Placement
from serving.core.cluster import Cluster, Deployment
from serving.core.hardware import GPU, Server
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


def holds(server: Server, model: str) -> bool:
    """Whether the server's pinned pool has all of the model's weights."""
    return server.cache is not None and server.cache.holds(model)


@dataclass(slots=True)
class Outlook:
    """A tick's view of the servers: what it gives to one model is not there for the next, though nothing has happened
    yet."""

    gpus: dict[Server, list[GPU]]
    """The free ones, with those that retiring instances leave."""
    queued: dict[Server, Bytes]
    """Sizes of the models that are on their way into a pool: the node's load queue."""
    opened: dict[Server, Bytes]
    """Weights that the tick has starts read in a pool."""

    @classmethod
    def of(cls, cluster: Cluster, retiring: list[Instance]) -> "Outlook":
        """The servers as they will be when some instances have retired."""
        left = [worker.gpu for instance in retiring for worker in instance.workers]
        gpus = {
            server: [gpu for gpu in server.gpus if gpu.memory.used == 0 or gpu in left] for server in cluster.servers
        }
        outlook = cls(gpus, dict.fromkeys(cluster.servers, 0.0), dict.fromkeys(cluster.servers, 0.0))
        for instance in cluster.instances:
            server = instance.workers[0].server
            if instance.phase is Phase.STARTING and not holds(server, instance.model):
                outlook.queued[server] += cluster.deployments[instance.model].size
        return outlook

    def fits(self, server: Server, deployment: Deployment) -> bool:
        """Whether a GPU is free that holds the model, and its weights have room in the pool."""
        weights, cache = deployment.spec.weight_bytes, server.cache
        if not any(weights < gpu.memory.capacity * UTILISATION for gpu in self.gpus[server]):
            return False
        if cache is None or cache.can_reserve(self.opened[server] + weights):
            return True
        return not self.opened[server] and cache.can_open(deployment.model, weights)

    def load_time(self, server: Server, deployment: Deployment) -> Seconds:
        """Estimated time to load: over PCIe from the pool, else over the NIC behind what is queued."""
        if holds(server, deployment.model):
            return deployment.size / server.gpus[0].pcie.capacity
        return (deployment.size + self.queued[server]) / server.nic_rate

    def take(self, server: Server, deployment: Deployment) -> GPU:
        """The first free GPU, booked in this view only."""
        self.opened[server] += deployment.spec.weight_bytes
        if not holds(server, deployment.model):
            self.queued[server] += deployment.size
        return self.gpus[server].pop(0)


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
        retired = retire_idle(cluster, self.config.grace_period)
        actions: list[Action] = [*retired]
        outlook = Outlook.of(cluster, [action.instance for action in retired])
        for model in cluster.models_held():
            actions += hand_out(model, cluster)
            if self._instances_short(model, cluster) > 0:
                server = self._fastest(cluster.deployments[model], outlook)
                if server is not None:
                    actions.append(self._launch(cluster.deployments[model], server, outlook))
        return actions

    def _instances_short(self, model: str, cluster: Cluster) -> int:
        """ceil(requests / target) less the instances there are."""
        instances = [i for phase in (Phase.STARTING, Phase.READY) for i in cluster.instances_of(model, phase)]
        num_requests = cluster.num_held(model) + sum(instance.num_sequences for instance in instances)
        return ceil(num_requests / self.config.target_concurrency) - len(instances)

    def _fastest(self, deployment: Deployment, outlook: Outlook) -> Server | None:
        """The server with a free GPU that holds the model, and room in its pool, on which it is loaded first."""
        open_servers = [server for server in outlook.gpus if outlook.fits(server, deployment)]
        return min(open_servers, key=lambda server: outlook.load_time(server, deployment), default=None)

    def _launch(self, deployment: Deployment, server: Server, outlook: Outlook) -> Launch:
        cached = holds(server, deployment.model)
        gpu = outlook.take(server, deployment)
        return Launch(
            model=deployment.model,
            placements=(Placement(server=server, gpu=gpu, memory=gpu.memory.capacity, from_cache=cached),),
            graph=STORE_START,
            max_sequences=self.config.target_concurrency,
            max_step_tokens=self.config.max_step_tokens,
            keep_in_host_memory=True,
        )
