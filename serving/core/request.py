"""Request (what was asked, frozen) and Sequence (its life in the engine)."""

from dataclasses import dataclass, field
from enum import Enum
from operator import sub
from typing import TYPE_CHECKING

from serving.records import RequestRecord
from serving.units import Seconds, Tokens

if TYPE_CHECKING:
    from serving.core.instance import Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How output tokens are drawn; the same seed gives the same tokens, whatever else is in the batch."""

    temperature: float = 0.0
    """0: the most likely token, always."""
    top_p: float = 1.0
    """Only the fewest tokens whose probabilities add up to this are drawn from."""
    seed: int = 0
    logprobs: int | None = None
    """Report the log-probability of each output token, and of so many most likely ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked for."""

    request_id: int
    model: str
    """Slug of the deployed model."""
    num_prompt_tokens: Tokens
    num_output_tokens: Tokens
    """Tokens after which the answer ends (the simulator knows them; a live engine may stop earlier)."""
    label: str = "measured"
    ttft_slo: Seconds | None = None
    tpot_slo: Seconds | None = None
    prompt: tuple[int, ...] | None = None
    """Ids of the prompt tokens; None: only their number is known, which is all that a simulation needs."""
    sampling: Sampling = Sampling()
    priority: int = 0
    """0: normal; a system that tells requests apart puts those with more first."""

    def __post_init__(self) -> None:
        if self.prompt is not None and len(self.prompt) != self.num_prompt_tokens:
            raise ValueError(
                f"request {self.request_id}: {self.num_prompt_tokens} prompt tokens, {len(self.prompt)} ids given"
            )
        if self.num_prompt_tokens < 1 or self.num_output_tokens < 1:
            raise ValueError(
                f"request {self.request_id}: prompt and output need at least one token each, "
                f"got {self.num_prompt_tokens} and {self.num_output_tokens}"
            )


class State(Enum):
    """Where a Sequence is in its life."""

    HELD = "held"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"
    """The client is gone, or no instance can serve it: it gets no more tokens."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A request's life in the engine: state, tokens, blocks, times.

    ``num_tokens`` counts prompt and output tokens known so far, ``num_computed`` those whose KV is in
    the cache; a step may compute the difference, whichever phase that is.
    """

    request: Request
    arrived_at: Seconds
    state: State = State.HELD
    instance: "Instance | None" = None
    num_tokens: Tokens = 0
    num_computed: Tokens = 0
    final_tokens: Tokens = 0
    """Tokens at which it ends; an engine that meets a stop before lowers it."""
    block_table: list[int] = field(default_factory=list)
    capacity: Tokens = 0
    """Tokens that the blocks of ``block_table`` hold."""
    dispatched_at: Seconds | None = None
    token_times: list[Seconds] = field(default_factory=list)
    finished_at: Seconds | None = None
    num_preemptions: int = 0
    preempted_at: list[tuple[int, Seconds]] = field(default_factory=list)
    """For each preemption, the tokens that it had produced by then, and when it was."""
    num_losses: int = 0
    """Instances that it was on when they were lost."""
    num_migrations: int = 0
    """Times that it went on elsewhere, with its KV or to be recomputed."""
    computed_for: int = 0
    """Nanoseconds of all steps that it was in."""
    in_flight: bool = False
    """A step of a pipeline computes it, and others may be planned meanwhile."""
    refusal: str | None = None
    """Why it was given up, once it was."""
    output_ids: list[int] = field(default_factory=list)
    """Ids of the output tokens, where an engine makes real ones."""

    def __post_init__(self) -> None:
        self.num_tokens = self.request.num_prompt_tokens
        self.final_tokens = self.request.num_prompt_tokens + self.request.num_output_tokens

    @property
    def num_output_tokens(self) -> Tokens:
        """Tokens produced so far."""
        return self.num_tokens - self.request.num_prompt_tokens

    def record(self, *, token_gaps: bool = True) -> RequestRecord:
        """The record of this sequence as it stands, without the times of its tokens where nobody wants them."""
        times = self.token_times
        return RequestRecord(
            request_id=self.request.request_id,
            model=self.request.model,
            label=self.request.label,
            arrived_at=self.arrived_at,
            dispatched_at=self.dispatched_at,
            first_token_at=times[0] if times else None,
            finished_at=self.finished_at,
            num_prompt_tokens=self.request.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            num_preemptions=self.num_preemptions,
            instance=None if self.instance is None else self.instance.instance_id,
            ttft_slo=self.request.ttft_slo,
            tpot_slo=self.request.tpot_slo,
            token_gaps=tuple(map(sub, times[1:], times)) if token_gaps else (),
            priority=self.request.priority,
            computed_for=self.computed_for * 1e-9,
            preempted_for=self._preempted_for(),
        )

    def _preempted_for(self) -> Seconds:
        """From losing its KV to its next token, summed. One that loses it again before that has lost it once."""
        times, lost_at = self.token_times, dict[int, Seconds]()
        for count, at in self.preempted_at:
            lost_at.setdefault(count, at)
        return sum((times[count] - at for count, at in lost_at.items() if count < len(times)), 0.0)
