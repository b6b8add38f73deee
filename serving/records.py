"""Records: what a run leaves behind, the schema shared by the engine and the harness.

Field order is file format: append, never reorder. Times are seconds since run start.
"""

from dataclasses import dataclass
from typing import ClassVar

from serving.units import Bytes, Seconds, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request's life, written when it finishes or, unanswered, when the run ends."""

    kind: ClassVar[str] = "request"

    request_id: int
    model: str
    label: str
    """What the workload calls it: ``measured``, ``warmup``, or an application's name."""
    arrived_at: Seconds
    dispatched_at: Seconds | None
    """When a Controller gave it to an instance; None: never."""
    first_token_at: Seconds | None
    finished_at: Seconds | None
    """None: the run ended before its last token."""
    num_prompt_tokens: Tokens
    num_output_tokens: Tokens
    """Tokens produced, which for an unfinished request is fewer than asked for."""
    num_preemptions: int
    instance: int | None
    """The instance that served it last."""
    ttft_slo: Seconds | None
    tpot_slo: Seconds | None
    token_gaps: tuple[Seconds, ...]
    """ITL of each token after the first, in order."""
    priority: int = 0
    """0: normal; more goes first."""
    preempted_for: Seconds = 0.0
    """Sum over its preemptions of the time from losing its KV to the next token, with which it has it again."""
    computed_for: Seconds = 0.0
    """Sum of the durations of all steps that it was in."""


CONSOLIDATION_STAGES = (
    "await network",
    "background fetch",
    "background load",
    "await exclusive",
    "kv migration",
    "consolidation",
)
"""Stages that are not of a cold start: a pipeline's worker gets the rest of the model while it serves. The last is all
of it, from the decision to the switch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One stage of one worker's cold start, or of its way from a pipeline stage to the whole model."""

    kind: ClassVar[str] = "stage"

    instance: int
    rank: int
    model: str
    server: str
    stage: str
    started_at: Seconds
    ended_at: Seconds
    num_bytes: Bytes
    """Bytes moved; 0 for stages that move none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """One Action a Controller returned, in the order it was carried out. Logs from before a field existed lack it,
    hence the defaults."""

    kind: ClassVar[str] = "decision"

    at: Seconds
    hook: str
    action: str
    """``launch``, ``dispatch``, ``consolidate``, ``migrate``, ``retire``; ``refuse``: a sequence was given up;
    ``lose``: an instance died."""
    detail: str
    """The action in words, or the reason of a refusal."""
    request_id: int | None = None
    instance: int | None = None
    model: str | None = None
    servers: tuple[str, ...] = ()
    """Of a launch or a retirement: one per worker, in order of rank."""
    memory: tuple[Bytes, ...] = ()
    """Of a launch or a retirement: GPU memory claimed or given back, one per worker."""
    from_cache: bool | None = None
    """Of a launch: whether no worker was meant to fetch its weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """One worker process of an instance, written when it ends, becomes another instance's, or the run ends."""

    kind: ClassVar[str] = "worker"

    instance: int
    rank: int
    model: str
    server: str
    gpu: str
    memory: Bytes
    """GPU memory that was planned, which is what is billed; what it was topped up with is not in it."""
    started_at: Seconds
    ready_at: Seconds | None
    """When its instance could serve; None: never."""
    last_busy_at: Seconds | None
    """When its instance last held a sequence; None: it never held one."""
    ended_at: Seconds | None
    """None: the run ended first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseRecord:
    """A running sequence that was not computed while its KV moved."""

    kind: ClassVar[str] = "pause"

    request_id: int
    instance: int
    paused_at: Seconds
    resumed_at: Seconds
    num_bytes: Bytes
    """Of its KV that moved."""
    reason: str


MIGRATION_OUTCOMES = (
    "migrated",
    "no space",
    "no space in the last stage",
    "finished",
    "preempted",
    "aborted",
    "source lost",
    "target lost",
    "run ended",
)
"""What may become of a migration; all but the first: why not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationRecord:
    """A running sequence that was moved from one instance to another, or was to be."""

    kind: ClassVar[str] = "migration"

    request_id: int
    source: int
    """The instance that it was on."""
    target: int
    started_at: Seconds
    ended_at: Seconds
    stages: int
    """Copies of its KV that were begun, each of what had come since the one before."""
    num_blocks: int
    """KV blocks that were copied."""
    downtime: Seconds
    """For how long no instance computed the sequence though it was wanted, in a failed attempt as well."""
    outcome: str
    """One of ``MIGRATION_OUTCOMES``."""
    method: str
    """``live``, ``blocking`` or ``recompute``."""
    first_stage: Seconds
    """What the first copy took; 0 when there was none, or it did not end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecord:
    """All ready instances at one moment, taken at a fixed period where a run is asked for it."""

    kind: ClassVar[str] = "sample"

    at: Seconds
    num_instances: int
    """Ready ones, those that are emptied to be retired included."""
    num_running: int
    num_waiting: int
    num_blocks: int
    """KV blocks of them all."""
    num_free_blocks: int
    num_fragmented_blocks: int
    """Free blocks that first-in-queue sequences wait for and would have if all free ones were in one place."""


Record = RequestRecord | StageRecord | DecisionRecord | WorkerRecord | PauseRecord | MigrationRecord | SampleRecord
RECORD_TYPES: dict[str, type[Record]] = {
    record.kind: record
    for record in (
        RequestRecord,
        StageRecord,
        DecisionRecord,
        WorkerRecord,
        PauseRecord,
        MigrationRecord,
        SampleRecord,
    )
}
