"""LlumnixConfig: the knobs of Llumnix and its baselines (sheet llumnix)."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from serving.policies.continuous import Batching
from serving.policies.knobs import knob
from serving.policies.llumnix_freeness import Rule, Variant
from serving.policies.llumnix_pairing import Order
from serving.policies.llumnix_scaling import Range
from serving.units import Seconds, Tokens

MANY_STAGES = 64
"""More than any migration needs in which copying is faster than computing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlumnixConfig:
    """Knobs of Llumnix and its baselines. Thresholds are in KV blocks per request."""

    variant: Variant = knob("paper", source="sheet 3; artifact: its simplifications, two stages, last come first moved")
    num_instances: int = knob(16, source="sheet 7: at the beginning, where they are not scaled for good")
    there_at_start: bool = knob(True, source="sheet 8: traces are sent to instances that serve already")
    max_sequences: int = knob(256, source="sheet 7, in a batch")
    max_step_tokens: Tokens = knob(12_000, unit="tokens", source="sheet 7, max_num_batched_tokens")
    dispatch: Literal["freeness", "round_robin", "first"] = knob("freeness", source="sheet 4 and 6; first: section 8")
    report_period: Seconds = knob(0.04, unit="s", source="sheet 2: with every engine step, of about that length")
    interval: Seconds = knob(0.16, unit="s", source="sheet 4: every fourth step of the cluster")
    migration: bool = knob(True, source="sheet 4")
    method: Literal["live", "blocking", "recompute"] = knob("live", source="sheet 5")
    defragmentation: bool = knob(True, source="sheet 3: queues count when sequences move")
    migrate_threshold: float = knob(3.0, source="sheet 4: who has less gives")
    migrate_in_threshold: float | None = knob(None, source="sheet 4: who has more takes; none: the same threshold")
    migrate_choice: Order | None = knob(None, source="sheet 4; none: sjf of the paper, lcfs of the artifact")
    max_stages: int | None = knob(None, source="sheet 5; none: until little is left, of the artifact 2")
    last_stage_blocks: int = knob(1, unit="blocks", source="sheet 5: about one step's worth")
    scheduling_priority: bool = knob(True, source="sheet 4, priorities: jump the queue")
    execution_priority: bool = knob(True, source="sheet 4, priorities: headroom")
    target_load: Tokens = knob(1600, unit="tokens", source="sheet 3: KV of an instance with high priority")
    scaling: bool = knob(False, source="sheet 4, auto-scaling")
    scale_low: float = knob(10.0, source="sheet 4: average freeness, low end")
    scale_high: float = knob(60.0, source="sheet 4: average freeness, high end")
    scale_interval: Seconds = knob(10.0, unit="s", source="sheet 4")
    scale_first_check: Seconds = knob(100.0, unit="s", source="sheet 4")
    min_instances: int = knob(1, source="sheet 4")
    max_instances: int = knob(16, source="sheet 4")
    scheduler_down_from: Seconds = knob(inf, unit="s", source="ours: from then on frontends dispatch by themselves")
    scheduler_down_until: Seconds = knob(inf, unit="s", source="ours")
    batching: Batching = Batching()

    def __post_init__(self) -> None:
        for name in ("num_instances", "max_sequences", "max_step_tokens", "min_instances", "last_stage_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("interval", "scale_interval"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected above 0, got {getattr(self, name)}")
        if self.max_stages is not None and self.max_stages < 2:
            raise ValueError(f"max_stages: expected at least 2, got {self.max_stages}")
        if not self.min_instances <= self.num_instances <= self.max_instances and self.scaling:
            raise ValueError(
                f"num_instances: expected {self.min_instances} to {self.max_instances}, got {self.num_instances}"
            )

    @property
    def rule(self) -> Rule:
        """How loads become freeness."""
        return Rule(
            variant=self.variant,
            watermark=self.batching.watermark,
            target_load=self.target_load if self.execution_priority else None,
            defragmentation=self.defragmentation,
        )

    @property
    def scale_range(self) -> Range:
        """Between which average and number of instances nothing is scaled."""
        return Range(
            low=self.scale_low,
            high=self.scale_high,
            min_instances=self.min_instances,
            max_instances=self.max_instances,
        )

    @property
    def order(self) -> Order:
        """Which sequence leaves."""
        return self.migrate_choice or ("sjf" if self.variant == "paper" else "lcfs")

    @property
    def stages(self) -> int:
        """Of a live migration at most."""
        return self.max_stages or (MANY_STAGES if self.variant == "paper" else 2)

    @property
    def in_above(self) -> float:
        """Freeness above which an instance takes sequences."""
        return self.migrate_threshold if self.migrate_in_threshold is None else self.migrate_in_threshold
