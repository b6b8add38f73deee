"""What the engine tells its callers: Output (news of a request), Handle (a request under way), EngineStats (counts)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from serving.records import MIGRATION_OUTCOMES
from serving.units import Seconds, Tokens

FinishReason = Literal["stop", "length", "abort", "error"]
"""``stop``: an end token or a stop string; ``length``: as many tokens as allowed; ``abort``: the caller gave up;
``error``: the engine could not go on, see ``Output.error``."""
FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Natural-log probability of one output token, and of the likeliest ones at its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log probability), likeliest first; as many as ``Sampling.logprobs`` asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """News of one request. The last one, and only that, has a ``finish_reason``."""

    token_ids: tuple[int, ...] = ()
    """Output tokens that are new, an end token included; empty when only held-back text or the end is told."""
    text: str = ""
    """Text that is new: whole characters, never the start of what may become a stop string, never a stop string.
    It may lag behind the tokens; "" throughout when the model has no tokenizer."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One per token of ``token_ids`` when the request asked for them."""
    finish_reason: FinishReason | None = None
    error: str | None = None
    """Why, in one sentence for the user, when ``finish_reason`` is ``error``."""


OnOutput = Callable[[Output], None]
"""Called on the clock's thread, in order; it must not block and must not raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """A request that was submitted; give it back to ``Engine.abort``."""

    request_id: int
    model: str
    num_prompt_tokens: Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStats:
    """Counts of one deployed model; totals since the engine started, the rest as of now."""

    model: str
    held: int = 0
    """Sequences that no instance has yet."""
    waiting: int = 0
    """Sequences in the queues of instances."""
    running: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    """Over ready instances."""
    instances_ready: int = 0
    instances_starting: int = 0
    prompt_tokens: Tokens = 0
    """Of requests that finished or were given up, and of those under way."""
    output_tokens: Tokens = 0
    preemptions: int = 0
    losses: int = 0
    """Instances that died or failed."""
    cold_starts: int = 0
    """Instances that were started."""
    consolidations: int = 0
    """Pipelines that have become workers with the whole model."""
    migrations: tuple[tuple[str, int], ...] = tuple((outcome, 0) for outcome in MIGRATION_OUTCOMES)
    """Migrations that have ended by what became of them, in the order of ``MIGRATION_OUTCOMES``."""
    migration_downtime: Seconds = 0.0
    """Sum over them, see ``MigrationRecord``."""
    finished: tuple[tuple[FinishReason, int], ...] = tuple((reason, 0) for reason in FINISH_REASONS)
    """Requests by how they ended, in the order of ``FINISH_REASONS``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """The engine as of now."""

    now: Seconds
    """Seconds since the engine's clock started."""
    models: tuple[ModelStats, ...]
    """In order of deployment."""
    clock_lag: Seconds
    """99th percentile of how late the clock's timers ran lately."""
    failure: str | None = None
    """Why the engine has stopped serving; None while it serves."""

    def of(self, model: str) -> ModelStats:
        """The model's counts; KeyError for one that is not deployed."""
        for stats in self.models:
            if stats.model == model:
                return stats
        raise KeyError(model)
