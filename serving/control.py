"""Control: asks the Controller at each hook and carries out its Actions; where choice meets mechanism."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from serving.consolidations import Consolidations
from serving.core.actions import Action, Consolidate, Dispatch, Launch, Migrate, Retire
from serving.core.clock import Flow, Signal, spawn
from serving.core.cluster import Cluster
from serving.core.instance import Instance, Phase
from serving.core.ports import Backend, Controller, Scheduler
from serving.core.request import Request, Sequence, State
from serving.diagnosis import about_workers, reason_to_refuse, standstill
from serving.instances import Instances
from serving.mechanisms.coldstart import ColdStart
from serving.migrations import Migrations
from serving.records import DecisionRecord, MigrationRecord, PauseRecord, Record, StageRecord
from serving.units import GB, Seconds

MAX_LOSSES = 3
"""A sequence is given up when it was on so many lost instances, a model's when so many starts in a row fail."""


class NoProgress(RuntimeError):
    """Requests are unanswered, and nothing that happens brings them nearer to an answer."""


@dataclass(slots=True, eq=False)
class Control:
    """One run's control plane."""

    cluster: Cluster
    controller: Controller
    scheduler: Scheduler
    backend: Backend
    record: Callable[[Record], None]
    patience: Seconds = 3600.0
    """A run without progress for so long, though requests are unanswered, is ended. Progress: a request arrives, gains
    a token or leaves; a stage of a cold start ends; an instance becomes ready."""
    draining: bool = False
    """The workload has sent its last request."""
    token_gaps: bool = True
    """Whether records of requests have the times of their tokens."""
    _unfinished: dict[Sequence, Signal] = field(default_factory=dict)
    _progress_at: Seconds = 0.0
    _starts: dict[Instance, Flow] = field(default_factory=dict)
    _instances: Instances = field(init=False)
    _consolidations: Consolidations = field(init=False)
    _migrations: Migrations = field(init=False)
    _failed_starts: dict[str, int] = field(default_factory=dict)
    """Per model, starts that failed since the last one that did not."""

    def __post_init__(self) -> None:
        self._instances = Instances(self.cluster, self.scheduler, self.backend, self.record, self._finish)
        self._consolidations = Consolidations(self.backend, self._instances, self.note, self._opened)
        self._migrations = Migrations(self.backend, self.note, self._migrated)

    @property
    def num_launched(self) -> int:
        """Instances so far, with those that came of a consolidation."""
        return self._instances.num_made

    def start(self) -> None:
        """Begin to call the Controller at its interval."""
        self.backend.clock.call_later(self.controller.interval, self._tick)

    def arrive(self, request: Request) -> Signal:
        """A request comes in; the signal fires with its Sequence when it has its last token, or is refused."""
        if request.model not in self.cluster.deployments:
            raise ValueError(f"request {request.request_id} asks for {request.model!r}, which is not deployed")
        sequence = Sequence(request, self.backend.clock.now)
        finished = self._unfinished[sequence] = Signal(self.backend.clock)
        self.cluster.held.setdefault(request.model, deque()).append(sequence)
        self._progress_at = self.backend.clock.now
        self._carry_out("arrival", self.controller.on_arrival(sequence, self.cluster))
        return finished

    def abort(self, sequence: Sequence) -> None:
        """Its client is gone: it leaves where it is, and its blocks are free when the step ends that computes it."""
        if sequence not in self._unfinished:
            return
        if sequence.state is State.HELD:
            self.cluster.held[sequence.request.model].remove(sequence)
        elif sequence.instance is not None:
            self._migrations.take_back(sequence)
            sequence.instance.take_back(sequence)
        self._give_up(sequence, "aborted by the client")
        self._carry_out("abort", self.controller.on_change(sequence.request.model, self.cluster, None))

    def lose(self, instance: Instance, reason: str) -> None:
        """An instance died, ready or while it started: its sequences are held again, those that saw too many losses are
        given up."""
        if instance.phase is Phase.RETIRED:
            return
        if instance.phase is Phase.STARTING:
            self._failed_starts[instance.model] = self._failed_starts.get(instance.model, 0) + 1
            self._starts.pop(instance).cancel()
        self.record(about_workers(self._decision("loss", "lose", reason, instance), instance))
        lost: list[Sequence] = []
        self._migrations.lose(instance)
        for member in self._consolidations.stop(instance):
            lost += member.lose()
            self._instances.take_away(member)
        queue = self.cluster.held.setdefault(instance.model, deque())
        for sequence in reversed(lost):
            sequence.state, sequence.instance = State.HELD, None
            sequence.num_losses += 1
            queue.appendleft(sequence)
        for sequence in [sequence for sequence in queue if self._is_hopeless(sequence)]:
            queue.remove(sequence)
            self.record(self._refusal("loss", sequence, instance, reason))
        if self._failed_starts.get(instance.model, 0) >= MAX_LOSSES:
            self._failed_starts[instance.model] = 0
        self._carry_out("loss", self.controller.on_change(instance.model, self.cluster, instance))

    def close(self) -> None:
        """Write the records of requests that were never answered, and of the workers that still run."""
        self._migrations.close()
        self._instances.close()
        for sequence in self._unfinished:
            self.record(sequence.record(token_gaps=self.token_gaps))

    def _tick(self) -> None:
        if self.draining and not self._unfinished:
            return
        self._check_progress()
        self._carry_out("interval", self.controller.on_interval(self.cluster))
        self.backend.clock.call_later(self.controller.interval, self._tick)

    def _ready(self, instance: Instance, started: Any) -> None:
        del started  # the flow's return value, which is None
        del self._starts[instance]
        self._failed_starts.pop(instance.model, None)
        self._instances.open(instance)
        self._progress_at = self.backend.clock.now
        self._carry_out("ready", self.controller.on_ready(instance, self.cluster))

    def _finish(self, sequence: Sequence) -> None:
        self._progress_at = self.backend.clock.now
        self.record(sequence.record(token_gaps=self.token_gaps))
        self._unfinished.pop(sequence).fire(sequence)
        self._carry_out("finish", self.controller.on_finish(sequence, self.cluster))

    def _carry_out(self, hook: str, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dispatch():
                    decision = self._dispatch(hook, action)
                case Launch():
                    decision = self._launch(hook, action)
                case Consolidate():
                    decision = self._consolidate(hook, action)
                case Migrate():
                    decision = self._migrate(hook, action)
                case Retire():
                    decision = self._retire(hook, action)
            self.record(decision)

    def _dispatch(self, hook: str, action: Dispatch) -> DecisionRecord:
        sequence, instance = action.sequence, action.instance
        self.cluster.held[sequence.request.model].remove(sequence)
        reason = reason_to_refuse(sequence, instance)
        if reason is not None:
            return self._refusal(hook, sequence, instance, reason)
        sequence.dispatched_at = self.backend.clock.now
        instance.add(sequence)
        detail = f"request {sequence.request.request_id} to instance {instance.instance_id}"
        decision = self._decision(hook, "dispatch", detail, instance)
        return replace(decision, request_id=sequence.request.request_id)

    def _refusal(self, hook: str, sequence: Sequence, instance: Instance, reason: str) -> DecisionRecord:
        """Give a sequence up for a reason that has to do with an instance."""
        self._give_up(sequence, reason)
        decision = self._decision(hook, "refuse", reason, instance)
        return replace(decision, request_id=sequence.request.request_id)

    def _give_up(self, sequence: Sequence, reason: str) -> None:
        """It gets no more tokens; where it was it is no longer."""
        self._progress_at = self.backend.clock.now
        sequence.state, sequence.refusal = State.ABORTED, reason
        self.record(sequence.record(token_gaps=self.token_gaps))
        self._unfinished.pop(sequence).fire(sequence)

    def _is_hopeless(self, sequence: Sequence) -> bool:
        model = sequence.request.model
        ready = any(True for _ in self.cluster.instances_of(model, Phase.READY))
        in_vain = self._failed_starts.get(model, 0) >= MAX_LOSSES and not ready
        return sequence.num_losses >= MAX_LOSSES or in_vain

    def _launch(self, hook: str, action: Launch) -> DecisionRecord:
        instance = self._instances.launch(action)
        start = self._starts[instance] = self._cold_start(instance, action)
        start.done.wait(lambda value: self._ready(instance, value))
        where = ", ".join(f"{w.gpu.name} {w.memory / GB:.0f} GB" for w in instance.workers)
        detail = f"instance {instance.instance_id} of {action.model} on {where}"
        decision = about_workers(self._decision(hook, "launch", detail, instance), instance)
        return replace(decision, from_cache=all(worker.from_cache for worker in instance.workers))

    def _consolidate(self, hook: str, action: Consolidate) -> DecisionRecord:
        detail = self._consolidations.start(action)
        return about_workers(self._decision(hook, "consolidate", detail, action.instance), action.instance)

    def _opened(self, whole: Instance) -> None:
        self._progress_at = self.backend.clock.now
        self._carry_out("consolidation", self.controller.on_change(whole.model, self.cluster, None))

    def note(self, record: StageRecord | PauseRecord | MigrationRecord) -> None:
        """Something has ended that takes time."""
        self._progress_at = self.backend.clock.now
        self.record(record)

    def _decision(self, hook: str, action: str, detail: str, instance: Instance) -> DecisionRecord:
        """What was decided now about an instance."""
        return DecisionRecord(
            at=self.backend.clock.now,
            hook=hook,
            action=action,
            detail=detail,
            instance=instance.instance_id,
            model=instance.model,
        )

    def _cold_start(self, instance: Instance, action: Launch) -> Flow:
        graph = action.graph if action.graph.stages else self.backend.first_start or action.graph
        start = ColdStart(
            instance=instance,
            graph=graph,
            backend=self.backend,
            record=self.note,
            keep_in_host_memory=action.keep_in_host_memory,
        )
        return spawn(self.backend.clock, start.run())

    def _migrate(self, hook: str, action: Migrate) -> DecisionRecord:
        decision = self._decision(hook, "migrate", self._migrations.start(action), action.source)
        return replace(decision, request_id=action.sequence.request.request_id)

    def _migrated(self, action: Migrate) -> None:
        if action.source.phase is Phase.READY:
            self._carry_out("migration", self.controller.on_change(action.source.model, self.cluster, None))

    def _retire(self, hook: str, action: Retire) -> DecisionRecord:
        instance = action.instance
        is_shared = instance.neighbour is not None or instance.move is not None
        if instance.phase is not Phase.READY or instance.num_sequences or is_shared:
            raise RuntimeError(
                f"instance {instance.instance_id} cannot retire: it is {instance.phase.value} "
                f"with {instance.num_sequences} sequences, shares its process, or is in a migration"
            )
        self._consolidations.stop(instance)
        instance.phase = Phase.RETIRED
        self._instances.take_away(instance)
        detail = f"instance {instance.instance_id} of {instance.model}"
        return about_workers(self._decision(hook, "retire", detail, instance), instance)

    def _check_progress(self) -> None:
        """Tokens are looked at only when nothing else was progress for too long: each tells when it came."""
        now = self.backend.clock.now
        if not self._unfinished or now - self._progress_at <= self.patience:
            return
        for instance in self.cluster.instances:
            instance.settle()
        last_tokens = (sequence.token_times[-1] for sequence in self._unfinished if sequence.token_times)
        self._progress_at = max(self._progress_at, max(last_tokens, default=0.0))
        if now - self._progress_at > self.patience:
            raise NoProgress(
                f"no request moved between t={self._progress_at:.1f} and t={now:.1f} s: {standstill(self.cluster)}"
            )
