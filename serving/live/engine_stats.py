"""Counts of an engine: Totals add up what has ended, engine_stats() adds what is under way."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain

from serving.core.cluster import Cluster
from serving.core.instance import Phase
from serving.core.request import Sequence
from serving.live.output import FINISH_REASONS, EngineStats, FinishReason, ModelStats
from serving.records import (
    CONSOLIDATION_STAGES,
    MIGRATION_OUTCOMES,
    DecisionRecord,
    MigrationRecord,
    Record,
    RequestRecord,
    StageRecord,
)
from serving.units import Seconds, Tokens


@dataclass(slots=True, eq=False)
class ModelTotals:
    """Of one model, since the engine started."""

    prompt_tokens: Tokens = 0
    output_tokens: Tokens = 0
    preemptions: int = 0
    losses: int = 0
    cold_starts: int = 0
    consolidations: int = 0
    migrations: Counter[str] = field(default_factory=Counter)
    """By outcome."""
    migration_downtime: Seconds = 0.0
    finished: Counter[FinishReason] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """A sink of records that counts them by model on their way to another."""

    models: dict[str, ModelTotals]
    record: Callable[[Record], None] | None
    models_of: dict[int, str] = field(default_factory=dict)
    """By the id of an instance that was started."""

    @classmethod
    def of(cls, models: Iterable[str], record: Callable[[Record], None] | None) -> "Totals":
        """Nothing counted yet."""
        return cls({model: ModelTotals() for model in models}, record)

    def write(self, record: Record) -> None:
        """Count a record and pass it on."""
        if isinstance(record, RequestRecord):
            totals = self.models[record.model]
            totals.prompt_tokens += record.num_prompt_tokens
            totals.output_tokens += record.num_output_tokens
            totals.preemptions += record.num_preemptions
        elif isinstance(record, DecisionRecord) and record.model is not None:
            self.models[record.model].losses += record.action == "lose"
            self.models[record.model].cold_starts += record.action == "launch"
            if record.action == "launch" and record.instance is not None:
                self.models_of[record.instance] = record.model
        elif isinstance(record, StageRecord):
            self.models[record.model].consolidations += record.stage == CONSOLIDATION_STAGES[-1]
        elif isinstance(record, MigrationRecord):
            totals = self.models[self.models_of[record.source]]
            totals.migrations[record.outcome] += 1
            totals.migration_downtime += record.downtime
        if self.record is not None:
            self.record(record)


def sequences_of(cluster: Cluster, model: str) -> list[Sequence]:
    """Sequences of a model that have not ended, held ones first."""
    instances = [instance for instance in cluster.instances if instance.model == model]
    paused = (one.move.sequence for one in instances if one.move is not None and one.move.num_paused(one))
    return [
        *cluster.held.get(model, ()),
        *chain.from_iterable((*instance.waiting, *instance.running) for instance in instances),
        *paused,
    ]


def engine_stats(cluster: Cluster, totals: Totals, clock_lag: Seconds, failure: str | None) -> EngineStats:
    """The counts as of now; on the thread that changes the cluster."""
    models = tuple(_model_stats(cluster, model, found) for model, found in totals.models.items())
    return EngineStats(now=cluster.now, models=models, clock_lag=clock_lag, failure=failure)


def _model_stats(cluster: Cluster, model: str, totals: ModelTotals) -> ModelStats:
    ready = list(cluster.instances_of(model, Phase.READY))
    pools = dict.fromkeys(instance.pool for instance in ready if instance.pool is not None)  # two may share one
    under_way = sequences_of(cluster, model)
    num_blocks = sum(pool.num_blocks for pool in pools)
    return ModelStats(
        model=model,
        held=cluster.num_held(model),
        waiting=sum(len(instance.waiting) for instance in ready),
        running=sum(len(instance.running) for instance in ready),
        kv_blocks_used=num_blocks - sum(pool.num_free for pool in pools),
        kv_blocks_total=num_blocks,
        instances_ready=len(ready),
        instances_starting=sum(1 for _ in cluster.instances_of(model, Phase.STARTING)),
        prompt_tokens=totals.prompt_tokens + sum(sequence.request.num_prompt_tokens for sequence in under_way),
        output_tokens=totals.output_tokens + sum(sequence.num_output_tokens for sequence in under_way),
        preemptions=totals.preemptions + sum(sequence.num_preemptions for sequence in under_way),
        losses=totals.losses,
        cold_starts=totals.cold_starts,
        consolidations=totals.consolidations,
        migrations=tuple((outcome, totals.migrations[outcome]) for outcome in MIGRATION_OUTCOMES),
        migration_downtime=totals.migration_downtime,
        finished=tuple((reason, totals.finished[reason]) for reason in FINISH_REASONS),
    )
