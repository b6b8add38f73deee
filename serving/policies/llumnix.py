"""Llumnix: dispatch by freeness, and running sequences that are moved to where there is room; its baselines.

**Paper**: Llumnix (OSDI'24). **Implements** (sheet): sections 2 to 4 and 6: load reports, virtual usage and freeness,
pairing with thresholds, the choice of the sequence that leaves, priorities, auto-scaling, dispatch without the global
scheduler. INFaaS++ is the same without migration, round-robin without looking, Llumnix-base without priorities.
**Departures**: an instance's report is taken when it is needed and the last is older than the period, and what was
dispatched since is added to it. Instances of the beginning are there at once; who comes later walks through vLLM's
start-up stages, whose time the sheet does not know. Averages for scaling hold at one check, not for a period. The
sequence that leaves is the shortest (paper) or the last that came (artifact's default). Headroom does not count
for requests of high priority, neither when they are dispatched, of which the sheet has the artifact's rule only, nor as
a reason for them to leave (docs/adr/0014); where the paper's rule holds, a source gives what a target has room for, and
one that has nothing to give is paired with none. The artifact's choice of the last instance to go is its variant's, the
paper's is the one with the fewest running.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf

from serving.core.actions import Action, Dispatch, Launch, Method, Migrate, Placement, Retire
from serving.core.cluster import Cluster
from serving.core.hardware import GPU, Server
from serving.core.instance import Instance, Phase
from serving.core.request import Sequence
from serving.core.stages import StageGraph
from serving.policies.llumnix_board import Board
from serving.policies.llumnix_config import LlumnixConfig
from serving.policies.llumnix_freeness import Report, migration_freeness
from serving.policies.llumnix_pairing import Standing, leaving, moves, narrows
from serving.policies.llumnix_scaling import missing, share_of, superfluous
from serving.policies.starts import SERIAL_START
from serving.units import Seconds

THERE = StageGraph(stages=())
"""Of an instance that serves already when the run begins."""
MAX_FAILURES = 3
"""Starts that may fail in a row before the next one waits for a request."""


@dataclass(slots=True, eq=False)
class Service:
    """What the global scheduler keeps about the instances of one model."""

    num_wanted: int
    next_check: Seconds
    """When the number of instances is looked at next."""
    board: Board
    """Its instances, and what they reported."""
    num_dispatched: Counter[Instance] = field(default_factory=Counter)
    draining: Instance | None = None
    """Gets nothing more, and retires when it is empty."""
    has_begun: bool = False
    num_failures: int = 0
    """Starts that failed since the last one that did not."""

    def forget(self, instance: Instance) -> None:
        """It is gone."""
        self.board.forget(instance)
        del self.num_dispatched[instance]
        if instance is self.draining:
            self.draining = None


class Llumnix:
    """The Controller: the global scheduler, and of each llumlet what it reports and which sequence it lets go."""

    def __init__(self, config: LlumnixConfig) -> None:
        self.config = config
        self.interval = config.interval
        self._rule = config.rule
        self._bare_rule = replace(config.rule, target_load=None)
        self._services: dict[str, Service] = {}

    def on_arrival(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """Dispatch; start what is missing, also when that failed before."""
        model = sequence.request.model
        service = self._service(model, cluster)
        service.num_failures = 0
        service.board.any_high |= sequence.request.priority > 0
        return self._launches(model, service, cluster) + self._hand_out(model, service, cluster)

    def on_ready(self, instance: Instance, cluster: Cluster) -> list[Action]:
        """Dispatch those that found no instance."""
        service = self._service(instance.model, cluster)
        service.num_failures = 0
        return self._hand_out(instance.model, service, cluster)

    def on_finish(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """Nothing waits for a seat: queues are the instances'."""
        del sequence, cluster
        return []

    def on_change(self, model: str, cluster: Cluster, lost: Instance | None) -> list[Action]:
        """Dispatch anew what a lost instance had, and start another: at once when it had been ready."""
        service = self._service(model, cluster)
        if lost is not None:
            service.forget(lost)
            if lost.pool is None:
                service.num_failures += 1
                return []
        launches = self._launches(model, service, cluster) if lost is not None else []
        return launches + self._hand_out(model, service, cluster)

    def on_interval(self, cluster: Cluster) -> list[Action]:
        """Scale, start what is missing, move sequences, and retire who was to go and is empty."""
        actions: list[Action] = []
        free = _free_gpus(cluster)
        for model in cluster.deployments:
            service = self._service(model, cluster)
            if self._is_up(cluster):
                self._scale(model, service, cluster)
            actions += self._launches(model, service, cluster, free)
            if self.config.migration and self._is_up(cluster):
                actions += self._migrations(service, cluster)
            actions += self._retire(service)
        return actions

    def _service(self, model: str, cluster: Cluster) -> Service:
        if model not in self._services:
            num_gpus = sum(len(server.gpus) for server in cluster.servers)
            num_wanted = max(1, min(self.config.num_instances, num_gpus // len(cluster.deployments)))
            board = Board(model, self._rule, self.config.report_period)
            self._services[model] = Service(num_wanted, self.config.scale_first_check, board)
        service = self._services[model]
        service.board.look(cluster)
        return service

    def _is_up(self, cluster: Cluster) -> bool:
        """Whether there is a global scheduler."""
        return not self.config.scheduler_down_from <= cluster.now < self.config.scheduler_down_until

    def _launches(
        self, model: str, service: Service, cluster: Cluster, free: Iterator[tuple[Server, GPU]] | None = None
    ) -> list[Action]:
        """As many instances as are missing and find a GPU, which is taken off ``free``."""
        num_missing = service.num_wanted - (service.board.num_there - (service.draining is not None))
        if num_missing <= 0 or service.num_failures >= MAX_FAILURES:
            return []
        graph = THERE if self.config.there_at_start and not service.has_begun else SERIAL_START
        service.has_begun = True
        ours = islice(_free_gpus(cluster) if free is None else free, num_missing)
        return [
            Launch(
                model=model,
                placements=(Placement(server=server, gpu=gpu, memory=gpu.memory.capacity, whole=True),),
                graph=graph,
                max_sequences=self.config.max_sequences,
                max_step_tokens=self.config.max_step_tokens,
            )
            for server, gpu in ours
        ]

    def _hand_out(self, model: str, service: Service, cluster: Cluster) -> list[Action]:
        """Held sequences to instances: higher priority first, then first come first served."""
        held = cluster.held.get(model)
        if not held:
            return []
        ready = service.board.ready
        takers = ready
        if service.draining is not None:
            takers = [instance for instance in ready if instance is not service.draining] or ready
        if not takers:
            return []
        queue = list(held)
        if service.board.any_high and self.config.scheduling_priority:
            queue.sort(key=lambda sequence: -sequence.request.priority)
        return [
            Dispatch(sequence=sequence, instance=self._taker(sequence, takers, service, cluster)) for sequence in queue
        ]

    def _taker(self, sequence: Sequence, takers: list[Instance], service: Service, cluster: Cluster) -> Instance:
        """Where a sequence goes, which is taken note of."""
        if self.config.dispatch == "first":
            return takers[0]
        if self.config.dispatch == "round_robin" or not self._is_up(cluster):
            chosen = min(takers, key=lambda instance: service.num_dispatched[instance])
        else:
            chosen = service.board.give(sequence, takers, cluster.now)
        service.num_dispatched[chosen] += 1
        return chosen

    def _migrations(self, service: Service, cluster: Cluster) -> Iterator[Action]:
        """One sequence from each source of a pair, by its llumlet's choice."""
        ready = service.board.ready
        reports = service.board.reports_of(ready, cluster.now)
        freeness = [migration_freeness(report, self._rule) for report in reports]
        if service.draining in ready:
            freeness[ready.index(service.draining)] = -inf
        if min(freeness, default=inf) >= self.config.migrate_threshold and not any(r.has_preempted for r in reports):
            return  # nobody gives, which is nearly always so
        standings = [
            self._standing(instance, free, report, service)
            for instance, free, report in zip(ready, freeness, reports, strict=True)
        ]

        def offers(source: Standing) -> list[Sequence]:
            return leaving(source.instance, self.config.order, lets_high_go=source.lets_high_go)

        def accepts(sequence: Sequence, source: Standing, target: Standing) -> bool:
            num_blocks, pool = source.instance.num_blocks_of(sequence), target.instance.pool
            fits = num_blocks <= target.room and pool is not None and pool.can_ever_hold(sequence)
            return fits and self._is_worthwhile(num_blocks, source, target, service)

        is_paper, bounds = self.config.variant == "paper", (self.config.migrate_threshold, self.config.in_above)
        for source, target, sequence in moves(standings, *bounds, offers, accepts=accepts if is_paper else None):
            num_blocks = source.instance.num_blocks_of(sequence)
            if is_paper or self._is_worthwhile(num_blocks, source, target, service):
                yield self._migrate(sequence, source.instance, target.instance)

    def _standing(self, instance: Instance, freeness: float, report: Report, service: Service) -> Standing:
        """The instance as the pairing sees it."""
        real = migration_freeness(report, self._bare_rule) if report.num_high else freeness
        is_short = report.has_preempted or real < self.config.migrate_threshold
        return Standing(
            instance=instance,
            freeness=freeness,
            has_preempted=report.has_preempted,
            room=report.num_free - int(self.config.batching.watermark * report.num_blocks),
            lets_high_go=is_short or instance is service.draining,
        )

    def _is_worthwhile(self, num_blocks: int, source: Standing, target: Standing, service: Service) -> bool:
        if self.config.defragmentation or source.instance is service.draining:
            return True
        return narrows(source, target, num_blocks, self.config.in_above)

    def _migrate(self, sequence: Sequence, source: Instance, target: Instance) -> Migrate:
        num_blocks = 0 if target.pool is None else target.pool.num_blocks
        return Migrate(
            sequence=sequence,
            source=source,
            target=target,
            method=Method(self.config.method),
            max_stages=self.config.stages,
            last_stage_blocks=self.config.last_stage_blocks,
            keep_free=int(self.config.batching.watermark * num_blocks),
        )

    def _scale(self, model: str, service: Service, cluster: Cluster) -> None:
        """Say how many instances there are to be; the one that is to go gets nothing more."""
        if not self.config.scaling or cluster.now < service.next_check:
            return
        service.next_check = cluster.now + self.config.scale_interval
        ready = [one for one in cluster.instances_of(model, Phase.READY) if one is not service.draining]
        if not ready or any(True for _ in cluster.instances_of(model, Phase.STARTING)):
            return
        shares = [share_of(instance, self._rule) for instance in ready]
        num_missing = missing(shares, self.config.scale_range)
        if num_missing and service.draining is not None:
            service.draining = None
            service.num_wanted += 1
        elif num_missing:
            num_free_gpus = sum(1 for _ in _free_gpus(cluster))
            service.num_wanted = max(service.num_wanted, len(ready) + min(num_missing, num_free_gpus))
        elif service.draining is None:
            service.draining = superfluous(
                shares,
                self.config.scale_range,
                counts_queue=self.config.defragmentation,
                fewest_running=self.config.variant == "paper",
            )
            if service.draining is not None:
                service.num_wanted = len(ready) - 1

    def _retire(self, service: Service) -> list[Action]:
        """The instance that was to go, when it has nothing more."""
        gone = service.draining
        if gone is None or gone.phase is not Phase.READY or gone.num_sequences or gone.move is not None:
            return []
        service.forget(gone)
        return [Retire(instance=gone)]


def _free_gpus(cluster: Cluster) -> Iterator[tuple[Server, GPU]]:
    return ((server, gpu) for server in cluster.servers for gpu in server.gpus if gpu.memory.used == 0)
