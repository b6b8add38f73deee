"""Profile: what was measured of our own engine on one machine, in the form that the simulator reads.

The step table has no model of the hardware in it, only interpolation: a step costs what a prompt of as many tokens
costs, plus what sampling for as many sequences adds, plus a constant for each KV entry and each query-key pair that
attention reads. ``aebench calibrate`` measures all of it; nothing here comes from a paper.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Self

from serving.core.plan import StepPlan
from serving.cost.startup import StartupCosts
from serving.units import BytesPerSecond, Seconds, Tokens

SCHEMA = 1
DEVICES = ("cpu", "cuda")
"""What workers compute on."""
STARTUP_RATES = ("engine_load_rate", "host_cores", "build_rate")
"""Startup costs that things are divided by; the others are times, and jitter."""
OPTIONAL = ("host_cores", "build_rate")
"""Startup costs that may be None."""
Curve = tuple[tuple[int, Seconds], ...]
"""Measured times by a count, ascending."""
Factors = tuple[tuple[int, float], ...]
"""Measured factors by a count, ascending; beyond its ends a factor stays what it is there."""
Beside = tuple[tuple[Tokens, Factors], ...]
"""Factors by the rows of the other of two steps, ascending, and by a step's own."""


def interpolate(curve: Curve, count: float) -> Seconds:
    """The curve at a count: linear between its points, and beyond them along its first or last piece; never below 0."""
    if len(curve) == 1:
        return curve[0][1]
    index = min(max(bisect_left(curve, (count,)), 1), len(curve) - 1)
    (low, at_low), (high, at_high) = curve[index - 1], curve[index]
    return max(0.0, at_low + (at_high - at_low) * (count - low) / (high - low))


def _within(factors: Factors, count: float) -> float:
    return interpolate(factors, min(max(count, factors[0][0]), factors[-1][0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTable:
    """Step times of one instance on one worker, from plan to result."""

    prefill: Curve
    """One prompt of so many tokens, from an empty KV cache."""
    decode: Curve
    """So many sequences with one token each and next to no context."""
    context: Seconds
    """Per KV entry of earlier steps that the attention reads."""
    pairs: Seconds
    """Per ``chunk_pairs`` of a prompt chunk that has a context; ``prefill`` holds those of a prompt without."""
    hop: Seconds
    """Per further pipeline stage."""
    slowdown: tuple[Factors, ...]
    """Factor on a step's time by its rows, when one, two ... instances of the machine compute at once; the last goes
    for more. Steps of few rows wait for memory, which instances share, those of many compute."""
    beside: Beside = ()
    """Factor on a step's time while a step of other rows computes beside it; empty: as beside one of as many. A decode
    loses more beside another, which waits for the same memory, than beside a prompt."""

    def __post_init__(self) -> None:
        if not self.slowdown:
            raise ValueError("steps.slowdown: expected at least the factor of one instance, got none")
        for name, curve in (
            ("prefill", self.prefill),
            ("decode", self.decode),
            *(("slowdown", c) for c in self.slowdown),
            *((("beside", self.beside),) if self.beside else ()),
            *(("beside", c) for _, c in self.beside),
        ):
            counts = [count for count, _ in curve]
            if not counts or counts != sorted(dict.fromkeys(counts)) or counts[0] < 1:
                raise ValueError(f"steps.{name}: expected counts that ascend from at least 1, got {counts}")
        for name, curves in (("slowdown", self.slowdown), ("beside", tuple(c for _, c in self.beside))):
            factors = [factor for curve in curves for _, factor in curve]
            if min(factors, default=1.0) < 1.0:
                raise ValueError(f"steps.{name}: expected factors of at least 1, got {factors}")

    def time(self, plan: StepPlan, num_stages: int, others: Sequence[Tokens] = ()) -> Seconds:
        """Time of a step while steps of so many rows each compute on other instances of the machine."""
        num_sampled = len(plan.sequences) - plan.ends_in_chunk
        return self._alone(plan, num_sampled, num_stages) * self.factor(plan.total_tokens, others)

    def factor(self, num_rows: Tokens, others: Sequence[Tokens]) -> float:
        """What a step of so many rows takes longer while steps of so many rows each compute on other instances."""
        same = _within(self.slowdown[min(len(others), len(self.slowdown) - 1)], num_rows)
        if not others or not self.beside:
            return same
        return max(1.0, same * fmean(self._pair(num_rows, each) for each in others) / self._pair(num_rows, num_rows))

    def _pair(self, num_rows: Tokens, other: Tokens) -> float:
        """The factor of a step of so many rows beside one of others."""
        return _within(tuple((rows, _within(factors, num_rows)) for rows, factors in self.beside), other)

    def prefill_time(self, num_tokens: Tokens) -> Seconds:
        """Time of a lone prompt."""
        return interpolate(self.prefill, num_tokens)

    def _alone(self, plan: StepPlan, num_sampled: int, num_stages: int) -> Seconds:
        rows = interpolate(self.prefill, plan.total_tokens)
        if num_sampled > 1:
            rows += interpolate(self.decode, num_sampled) - interpolate(self.prefill, num_sampled)
        with_context = sum(
            (num_tokens - 1) * sequence.num_computed
            for sequence, num_tokens in zip(plan.sequences, plan.num_tokens, strict=True)
        )
        reading = self.context * plan.context_tokens + self.pairs * with_context
        return max(0.0, rows) + reading + self.hop * (num_stages - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A machine as measured with one checkpoint."""

    hardware: str
    """In words, for captions."""
    device: str
    """``cpu`` or ``cuda``."""
    model: str
    measured_at: str
    """UTC, ISO 8601."""
    versions: Mapping[str, str]
    startup: StartupCosts
    fetch_rate: BytesPerSecond
    """Storage server to host memory without a limit."""
    load_rate: BytesPerSecond
    """Host memory to device, straight."""
    steps: StepTable
    threads: int = 1
    """CPU threads of each worker."""
    quick: bool = False
    """Measured roughly."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; ``from_json`` reads it back."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, table: Any) -> Self:
        """The profile in a JSON object; ValueError says what is wrong with it."""
        if not isinstance(table, dict) or table.get("schema") != SCHEMA:
            raise ValueError(f"expected a JSON object with schema {SCHEMA}")
        try:
            steps = table["steps"]
            return cls(
                hardware=str(table["hardware"]),
                device=_device(table["device"]),
                model=str(table["model"]),
                measured_at=str(table["measured_at"]),
                versions=dict(table["versions"]),
                startup=_startup(table["startup"]),
                fetch_rate=_rate(table["fetch_rate"], "fetch_rate"),
                load_rate=_rate(table["load_rate"], "load_rate"),
                steps=StepTable(
                    prefill=_curve(steps["prefill"], "steps.prefill"),
                    decode=_curve(steps["decode"], "steps.decode"),
                    context=_time(steps["context"], "steps.context"),
                    pairs=_time(steps["pairs"], "steps.pairs"),
                    hop=_time(steps["hop"], "steps.hop"),
                    slowdown=tuple(map(_factors, steps["slowdown"])),
                    beside=tuple(
                        (_count(rows, "steps.beside"), _curve(factors, "steps.beside"))
                        for rows, factors in steps.get("beside", ())
                    ),
                ),
                threads=_count(table.get("threads", 1), "threads"),
                quick=bool(table.get("quick", False)),
            )
        except KeyError as error:
            raise ValueError(f"key {error.args[0]!r} is missing") from error
        except TypeError as error:
            raise ValueError(str(error)) from error


def _device(name: Any) -> str:
    if name not in DEVICES:
        raise ValueError(f"key 'device': expected one of {', '.join(DEVICES)}, got {name!r}")
    return str(name)


def _startup(table: Any) -> StartupCosts:
    if not isinstance(table, Mapping):
        raise ValueError(f"startup: expected an object, got {table!r}")
    costs = StartupCosts(**table)
    for name, value in asdict(costs).items():
        if value is not None or name not in OPTIONAL:
            (_rate if name in STARTUP_RATES else _time)(value, f"startup.{name}")
    return costs


def _rate(value: Any, key: str) -> float:
    if not _is_finite(value) or value <= 0:
        raise ValueError(f"{key}: expected a finite number above 0, got {value!r}")
    return float(value)


def _time(value: Any, key: str) -> Seconds:
    if not _is_finite(value) or value < 0:
        raise ValueError(f"{key}: expected a finite number of at least 0, got {value!r}")
    return float(value)


def _count(value: Any, key: str) -> int:
    if not _is_finite(value) or value < 1 or value != int(value):
        raise ValueError(f"{key}: expected a whole number of at least 1, got {value!r}")
    return int(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _curve(points: Any, key: str) -> Curve:
    kinds = (list, tuple)  # as JSON has it, or as a point does
    if not isinstance(points, kinds) or not all(isinstance(point, kinds) and len(point) == 2 for point in points):
        raise ValueError(f"{key}: expected a list of pairs, got {points!r}")
    return tuple((_count(count, key), _time(value, key)) for count, value in points)


def _factors(entry: Any) -> Factors:
    """A number is the factor of steps of any size."""
    return ((1, _time(entry, "steps.slowdown")),) if isinstance(entry, int | float) else _curve(entry, "steps.slowdown")
