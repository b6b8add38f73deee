"""HydraServe: cold starts by parallel fetch, overlap inside a worker, and placement that minds the network.

**Paper**: HydraServe (NSDI'26). **Implements** (sections of the fact sheet): 2.2 autoscaling loop, 3.1 choice of
pipeline size and memory (static, adaptive, and fixed for comparison), 3.2 contention-aware bandwidth, 3.3 stage graph
with its four techniques (prefetch, stream, overlap, parallel) switchable one by one, 3.4 pipeline consolidation, 3.5
host cache.
**Departures**: the CUDA context is made beside the library imports, not before them: the paper's own bars rule out the
serial order (docs/adr/0005). The prefill term of the TTFT prediction is the sane one; ``variant = "artifact"`` has the
artifact's, which is always about 0. Held sequences are tried again when memory, seats or a start's bandwidth get free
and once a second, not in a loop without a pause; of several models the one whose sequence has waited longest
goes first. The seats of what a group becomes are there as soon as it has its weights, beside those that the group still
fills. A background fetch is claimed with its bytes, not with (s - 1) / s of the model table's size. A profile learns
from sequences that a whole worker served from the start, not from those that moved to it.
"""

from dataclasses import dataclass, replace

from serving.core.actions import Action, Consolidate, Launch, Placement
from serving.core.cluster import Cluster, Deployment
from serving.core.hardware import Server
from serving.core.instance import Instance, Phase
from serving.core.request import Sequence
from serving.core.stages import Loader, Stage, StageGraph, Work
from serving.policies.autoscale import hand_out, oldest_wait, retire_idle, workers_wanted
from serving.policies.bandwidth import Bandwidth
from serving.policies.continuous import Batching
from serving.policies.hydraserve_size import GroupSize, Profile, SizeRule, predicted_tpot, predicted_ttft
from serving.policies.knobs import knob
from serving.policies.placement import FreeMemory, slice_size
from serving.units import GB, Bytes, Seconds, Tokens, ms


@dataclass(frozen=True, slots=True, kw_only=True)
class HydraServeConfig:
    """Knobs of HydraServe."""

    prefetch: bool = knob(True, source="sheet 3.3: the fetch starts at the decision")
    stream: bool = knob(True, source="sheet 3.3: load follows the fetch tensor by tensor; no profile run")
    overlap: bool = knob(True, source="sheet 3.3: context and load beside the imports; tensors picked up in place")
    parallel: bool = knob(True, source="sheet 3.3: a pipeline group instead of one worker")
    sizing: str = knob(
        "static", source="sheet 3.1: static (Figure 7) or adaptive (the paper's rule); fixed: ours, to compare with"
    )
    variant: str = knob("paper", source="sheet 3.1: paper, or artifact (prefill term inverted, so about 0)")
    max_pipeline_size: int = knob(4, source="sheet 3.1, MAX_PP_SIZE; with sizing fixed, of every group")
    contention_aware: bool = knob(True, source="sheet 3.2; false: every fetch is expected to have its NIC alone")
    consolidate: bool = knob(True, source="sheet 3.4: a group with low-memory workers becomes one worker or several")
    consolidate_full: bool = knob(False, source="sheet 3.4: also groups of full-memory workers only (the paper's text)")
    migrate: bool = knob(True, source="sheet 3.4, step 5: KV of running sequences moves at consolidation")
    cache: bool = knob(
        False, source="sheet 3.5: weights of single workers stay in host memory, least recently used out"
    )
    small_model: Bytes = knob(10 * GB, unit="B", source="sheet 3.1: static sizing uses one worker up to this size")
    kv_reserve: Bytes = knob(5 * GB, unit="B", source="sheet 3: kv")
    leftover: Bytes = knob(6 * GB, unit="B", source="sheet 3.1 rule 6: a smaller rest of a GPU is taken as well")
    batch_size: int = knob(8, source="sheet 2.1, per worker")
    max_step_tokens: Tokens = knob(3072, unit="tokens", source="sheet 2.5, max_model_len")
    after_fetch: Seconds = knob(2.0, unit="s", source="sheet 3.1: all that follows the arrival of the weights")
    hop: Seconds = knob(1 * ms, unit="s", source="sheet 3.1: per extra stage and token")
    imbalance: float = knob(0.9, source="sheet 3.2: stages are not equally large")
    grace_period: Seconds = knob(30.0, unit="s", source="sheet 2.1: idle time before an instance is deleted")
    interval: Seconds = knob(1.0, unit="s", source="sheet 2.1: period of the reaper, which also starts consolidations")
    network_poll: Seconds = knob(0.1, unit="s", source="artifact, bandwidth_wait_poll_ms")
    exclusive_poll: Seconds = knob(0.05, unit="s", source="sheet 3.2, KV migration")
    batching: Batching = Batching()

    def __post_init__(self) -> None:
        for name, known in (("sizing", ("static", "adaptive", "fixed")), ("variant", ("paper", "artifact"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected {' or '.join(known)}, got {getattr(self, name)!r}")


def start_graph(config: HydraServeConfig) -> StageGraph:
    """The stage graph with the techniques that are switched on; with none it is serverless vLLM's."""
    context_after = ("container",) if config.overlap else ("libraries",)
    fetch_after = () if config.prefetch else ("context",)
    load = Stage(
        name="load",
        work=Work.LOAD,
        after=("context",) if config.stream else ("context", "fetch"),
        streams="fetch" if config.stream else None,
        loader=Loader.DIRECT if config.overlap else Loader.ENGINE,
    )
    stages = [
        Stage(name="container"),
        Stage(name="libraries", after=("container",)),
        Stage(name="context", after=context_after),
        Stage(name="fetch", work=Work.FETCH, after=fetch_after),
        load,
    ]
    before_engine: tuple[str, ...] = ("libraries", "load")
    if not config.stream:
        stages.append(Stage(name="profile", work=Work.PROFILE, after=before_engine))
        before_engine = ("profile",)
    stages.append(Stage(name="engine", after=before_engine))
    return StageGraph(stages=tuple(stages))


class HydraServe:
    """The Controller."""

    def __init__(self, config: HydraServeConfig) -> None:
        self.config = config
        self.interval = config.interval
        self.profiles: dict[str, Profile] = {}
        self._bandwidth = Bandwidth(minds_contention=config.contention_aware)
        self._graph = start_graph(config)

    def on_arrival(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """Hand out, and start what is missing."""
        return self._scale(sequence.request.model, cluster)

    def on_ready(self, instance: Instance, cluster: Cluster) -> list[Action]:
        """The group's fetches are over: hand out, and retry whatever waits for bandwidth."""
        self._release(instance, cluster)
        return self._scale_all(list(dict.fromkeys([instance.model, *cluster.models_held()])), cluster)

    def on_finish(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """Learn from warm, unpipelined service; hand out the free seat."""
        if _was_warm(sequence):
            self.profiles.setdefault(sequence.request.model, Profile()).observe(sequence)
        return self._scale(sequence.request.model, cluster)

    def on_change(self, model: str, cluster: Cluster, lost: Instance | None) -> list[Action]:
        """Hand out the free seats, and start what is missing again, here or where memory got free; fetches of a lost
        start are over."""
        if lost is not None and lost.pool is None:
            self._release(lost, cluster)
        return self._scale_all(list(dict.fromkeys([model, *cluster.models_held()])), cluster)

    def on_interval(self, cluster: Cluster) -> list[Action]:
        """Retire the idle; retry models whose sequences found no room; turn pipelines into single workers."""
        retired = retire_idle(cluster, self.config.grace_period)
        gone = [action.instance for action in retired]
        held = self._scale_all(cluster.models_held(), cluster, gone)
        groups = [
            instance for instance in cluster.instances if instance not in gone and self._may_consolidate(instance)
        ]
        return [*retired, *held, *(self._consolidate(group, cluster) for group in groups)]

    def _may_consolidate(self, instance: Instance) -> bool:
        """Whether it is a pipeline that serves, with a worker that can hold all and (by default) one that cannot."""
        if len(instance.workers) == 1 or instance.num_becoming or instance.phase is not Phase.READY:
            return False
        num_whole = sum(worker.whole for worker in instance.workers)
        wanted = num_whole < len(instance.workers) or self.config.consolidate_full
        return self.config.consolidate and num_whole > 0 and wanted

    def _consolidate(self, group: Instance, cluster: Cluster) -> Consolidate:
        return Consolidate(
            instance=group,
            network=self._bandwidth.network(cluster),
            max_sequences=self.config.batch_size,
            migrate=self.config.migrate,
            network_poll=self.config.network_poll,
            exclusive_poll=self.config.exclusive_poll,
        )

    def _scale_all(self, models: list[str], cluster: Cluster, retiring: list[Instance] | None = None) -> list[Action]:
        free = FreeMemory.of(cluster, retiring or ()) if models else None
        return [action for model in models for action in self._scale(model, cluster, free)]

    def _scale(self, model: str, cluster: Cluster, free: FreeMemory | None = None) -> list[Action]:
        actions = hand_out(model, cluster)
        wanted = workers_wanted(model, cluster, len(actions), self.config.batch_size)
        if not wanted:
            return actions
        free = free or FreeMemory.of(cluster)
        deployment, delay = cluster.deployments[model], oldest_wait(model, cluster, len(actions))
        if self.config.cache:
            cached = self._launch_cached(deployment, wanted, cluster, free)
            actions += cached
            wanted -= len(cached)
        for first in range(0, wanted, self.config.max_pipeline_size):
            required = min(wanted - first, self.config.max_pipeline_size)
            launch = self._launch(deployment, required, delay, cluster, free)
            if launch is None:
                break
            actions.append(launch)
        return actions

    def _launch_cached(self, deployment: Deployment, wanted: int, cluster: Cluster, free: FreeMemory) -> list[Action]:
        """Single workers where host memory holds the whole model; they fetch nothing and claim no network."""
        need = slice_size(deployment.size, self.config.kv_reserve)
        launches: list[Action] = []
        for server in cluster.servers:
            holds = server.cache is not None and server.cache.holds(deployment.model)
            if holds and len(launches) < wanted and free.fits(server, need):
                placement = free.take(server, need, self.config.leftover)
                launches.append(self._single(deployment, replace(placement, from_cache=True)))
        return launches

    def _launch(
        self, deployment: Deployment, required: int, delay: Seconds, cluster: Cluster, free: FreeMemory
    ) -> Launch | None:
        """One cold-start group for sequences that have waited so long, or None when nothing fits now."""
        size = self._size(deployment, required, delay, cluster, free)
        placements = None if size is None else self._place(deployment, size, cluster, free)
        if placements is None:
            return None
        self._claim(deployment, placements, deployment.slos[0] - delay - self.config.after_fetch, cluster.now)
        if len(placements) == 1:
            return self._single(deployment, placements[0])
        return Launch(
            model=deployment.model,
            placements=tuple(placements),
            graph=self._graph,
            max_sequences=self.config.batch_size * len(placements),
            max_batch=self.config.batch_size,
            max_step_tokens=self.config.max_step_tokens,
        )

    def _single(self, deployment: Deployment, placement: Placement) -> Launch:
        return Launch(
            model=deployment.model,
            placements=(placement,),
            graph=self._graph,
            max_sequences=self.config.batch_size,
            max_step_tokens=self.config.max_step_tokens,
            keep_in_host_memory=self.config.cache,
        )

    def _size(
        self, deployment: Deployment, required: int, delay: Seconds, cluster: Cluster, free: FreeMemory
    ) -> GroupSize | None:
        config = self.config
        if not config.parallel:
            return GroupSize(1, 1)
        if config.sizing == "static":
            single = deployment.size <= config.small_model
            return GroupSize(1, 1) if single else GroupSize(config.max_pipeline_size, 0)
        if config.sizing == "fixed":
            return GroupSize(config.max_pipeline_size, required)
        rule = SizeRule(
            deployment=deployment,
            ranked=self._bandwidth.ranked(cluster),
            fits=lambda server, num_stages: free.fits(
                server, slice_size(deployment.size, config.kv_reserve, num_stages)
            ),
            ttft=lambda size, rate, prefill, delay: (
                predicted_ttft(deployment.size, size, rate, 0.0 if config.variant == "artifact" else prefill, delay)
                + config.after_fetch
            ),
            tpot=lambda size, tpot: predicted_tpot(tpot, size, config.hop),
            max_stages=config.max_pipeline_size,
        )
        return rule.choose(required, self.profiles.get(deployment.model), delay)

    def _place(
        self, deployment: Deployment, size: GroupSize, cluster: Cluster, free: FreeMemory
    ) -> list[Placement] | None:
        """Full-memory workers first, each rank on the server with the most bandwidth that holds it, one a server."""
        servers = [server for server, _ in self._bandwidth.ranked(cluster)]
        chosen: list[tuple[Server, Bytes, bool]] = []
        for rank in range(size.stages):
            whole = rank < size.full
            need = slice_size(deployment.size, self.config.kv_reserve, 1 if whole else size.stages)
            server = next((server for server in servers if free.fits(server, need)), None)
            if server is None:
                return None
            servers.remove(server)
            chosen.append((server, need, whole))
        return [free.take(server, need, self.config.leftover, whole=whole) for server, need, whole in chosen]

    def _release(self, instance: Instance, cluster: Cluster) -> None:
        for worker in instance.workers:
            if not worker.from_cache:
                self._bandwidth.release(cluster.now, (instance.model, worker.gpu))

    def _claim(self, deployment: Deployment, placements: list[Placement], slo: Seconds, now: Seconds) -> None:
        stages = len(placements)
        size = deployment.size if stages == 1 else deployment.size / stages / self.config.imbalance
        for placement in placements:
            self._bandwidth.nic(placement.server).claim(now, (deployment.model, placement.gpu), size, slo)


def _was_warm(sequence: Sequence) -> bool:
    """Whether a worker with the whole model served it from the first token on: no pipeline, and nothing of one's."""
    instance, dispatched_at = sequence.instance, sequence.dispatched_at
    if instance is None or instance.opened_at is None or dispatched_at is None:
        return False
    return len(instance.workers) == 1 and dispatched_at >= instance.opened_at
