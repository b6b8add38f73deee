"""Judges claims: what a summary measured beside what the paper says, and a verdict for each.

A claim is asserted of every one of its groups (see ``claim_groups``); a group's value is its mean over seeds.

    absent      a row that the claim needs is missing, or its value is undefined
    history     a row that it uses was filled in from shipped history; the detail says how it was judged
    pass        every group's value, with 2 or more seeds its 95 % Student-t interval, is where the paper says
    unsure      no group is wrong for certain, but some interval straddles the border of what passes
    shape       some group is wrong, yet all ratios (differences) lie on the paper's side of 1 (0)
    fail        some group is wrong, and the direction does not hold either, or there is none
    calibrated  a pass for which every row used is a point that parameters were calibrated on

The group that decides is the worst of those that brought the verdict about.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pandas as pd
from scipy.special import stdtrit

from aebench.claim_groups import Evidence, Group, gather, varying
from aebench.claim_parser import parse
from aebench.claim_summary import Summary
from aebench.claim_syntax import (
    RESULT_MARK,
    UNITS,
    Bound,
    Claim,
    ClaimFile,
    Near,
    Relation,
    Trend,
    digits,
    mean,
    span,
    with_unit,
)

__all__ = ["Claim", "ClaimFile", "Judgement", "Verdict", "evaluate", "exit_code", "measured_text", "parse"]

MIN_SEEDS = 2
"""Seeds from which on a claim has an interval."""
WOULD_BE = "would be "
"""How the detail of a ``history`` verdict names the verdict that the numbers give."""
WOULD_FAIL = f"{WOULD_BE}fail"
SLACK = 1e-9
"""Relative rounding error forgiven at the ends of a closed range."""
NEUTRAL: Mapping[str | None, float] = {"/": 1.0, "-": 0.0}
"""The value of each operator at which neither side wins."""


class Verdict(StrEnum):
    """What a measurement makes of a claim."""

    PASS = "pass"
    SHAPE = "shape"
    FAIL = "fail"
    UNSURE = "unsure"
    CALIBRATED = "calibrated"
    HISTORY = "history"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Judgement:
    """One claim beside its measurement."""

    claim: Claim
    measured: str
    """``7.6 s``; ``1.9..4.4x (12)`` over 12 groups; ``10 of 12`` that hold."""
    deviation: str
    """Of the worst group from the paper's number, or past the nearer end of its range."""
    verdict: Verdict
    detail: str


@dataclass(frozen=True, slots=True)
class _Range:
    """Values that a relation accepts."""

    low: float
    high: float
    strict: bool

    def below(self, value: float) -> bool:
        return value <= self.low if self.strict else value < self.low - SLACK * abs(self.low)

    def above(self, value: float) -> bool:
        return value >= self.high if self.strict else value > self.high + SLACK * abs(self.high)

    def holds(self, value: float) -> bool:
        return not self.below(value) and not self.above(value)


@dataclass(frozen=True, slots=True)
class _Measure:
    """A group's value: its mean over seeds with the ends of the 95 % interval, and the means of its sides."""

    group: Group
    value: float
    low: float
    high: float
    sides: tuple[float, ...]


def evaluate(
    claims: Sequence[Claim],
    summary: pd.DataFrame,
    *,
    grid_keys: Sequence[str],
    calibrated: Callable[[Mapping[str, str]], bool],
    path: Path,
) -> list[Judgement]:
    """A judgement of each claim; SpecError when one names a metric or key that the summary does not have."""
    table = Summary(summary, grid_keys, calibrated)
    return [_judge(claim, gather(claim, table, path)) for claim in claims]


def exit_code(judgements: Sequence[Judgement]) -> int:
    """1 when a claim failed, if only with points filled in from shipped history, otherwise 0."""
    return int(any(judgement.verdict is Verdict.FAIL or WOULD_FAIL in judgement.detail for judgement in judgements))


def measured_text(claim_file: ClaimFile, judgements: Sequence[Judgement]) -> str:
    """The claim file with a line ``-> measured  deviation  verdict  detail`` beneath each judged claim."""
    results = {judgement.claim.line: judgement for judgement in judgements}
    lines: list[str] = []
    for number, line in enumerate(claim_file.lines, start=1):
        lines.append(line)
        if found := results.get(number):
            parts = (found.measured, found.deviation, found.verdict.value, found.detail)
            lines.append(f"    {RESULT_MARK} {'  '.join(part for part in parts if part)}")
    return "".join(f"{line}\n" for line in lines)


def _judge(claim: Claim, evidence: Evidence) -> Judgement:
    if evidence.missing:
        return Judgement(claim, "-", "-", Verdict.ABSENT, f"missing: {_first(evidence.missing)}")
    measures = [_measure(group) for group in evidence.groups]
    verdict, worst = _decide(claim, measures)
    details = _details(claim, measures, worst)
    cells = [cell for group in evidence.cells for cell in group]
    num_calibrated = sum(any(cell.calibrated for cell in group) for group in evidence.cells)
    all_calibrated = all(cell.calibrated for cell in cells)
    if num_calibrated and not all_calibrated:
        details.append(f"{num_calibrated} of {len(evidence.cells)} groups rest on calibration points")
    if num_history := sum(cell.history for cell in dict.fromkeys(cells)):
        details.append(f"{WOULD_BE}{verdict}; points from shipped history: {num_history}")
        verdict = Verdict.HISTORY
    elif verdict is Verdict.PASS and all_calibrated:
        verdict = Verdict.CALIBRATED
    return Judgement(claim, _measured(claim, measures), _deviation(claim, worst), verdict, "; ".join(details))


def _decide(claim: Claim, measures: Sequence[_Measure]) -> tuple[Verdict, _Measure]:
    """The verdict as far as numbers go, and the group that decides it."""
    accepted = _accepted(claim.relation)
    wrong = [m for m in measures if accepted.below(m.high) or accepted.above(m.low)]
    if wrong:
        return Verdict.SHAPE if _direction_holds(claim, measures) else Verdict.FAIL, _worst(claim, wrong)
    open_ = [m for m in measures if not (accepted.holds(m.low) and accepted.holds(m.high))]
    return (Verdict.UNSURE, _worst(claim, open_)) if open_ else (Verdict.PASS, _worst(claim, measures))


def _direction_holds(claim: Claim, measures: Sequence[_Measure]) -> bool:
    """Whether every value lies on the paper's side of the operator's neutral value, or in its range."""
    neutral = NEUTRAL.get(claim.operator)
    if neutral is None or claim.counted is not None or not isinstance(claim.relation, Near | Bound):
        return False
    paper = _paper(claim.relation)
    if paper.low >= neutral and paper.high > neutral:
        return all(m.value > neutral or paper.holds(m.value) for m in measures)
    if paper.high <= neutral and paper.low < neutral:
        return all(m.value < neutral or paper.holds(m.value) for m in measures)
    return False


def _paper(relation: Relation) -> _Range:
    """What the paper says, without tolerance; for orders and trends, of the difference of the sides."""
    if isinstance(relation, Near):
        return _Range(relation.low.base, relation.high.base, strict=False)
    if isinstance(relation, Trend):
        sign, border = ">" if relation.direction == "increasing" else "<", 0.0
    else:
        sign, border = relation.sign, relation.bound.base if isinstance(relation, Bound) else 0.0
    strict = not sign.endswith("=")
    return _Range(border, math.inf, strict) if sign[0] == ">" else _Range(-math.inf, border, strict)


def _accepted(relation: Relation) -> _Range:
    """What passes: the paper's range, its ends widened by the tolerance."""
    paper = _paper(relation)
    if not isinstance(relation, Near) or relation.tolerance is None:
        return paper
    amount = relation.tolerance.base
    relative = relation.tolerance.unit == "%"
    low, high = (amount * (abs(end) if relative else 1.0) for end in (paper.low, paper.high))
    return _Range(paper.low - low, paper.high + high, strict=False)


def _measure(group: Group) -> _Measure:
    """Mean and Student-t interval over seeds; without enough seeds the interval is the mean."""
    samples = list(group.samples.values())
    values = [sides[0] if len(sides) == 1 else _difference(*sides) for sides in samples]
    value = mean(values)
    half = 0.0
    if len(values) >= MIN_SEEDS and math.isfinite(value):
        freedom = len(values) - 1
        half = float(stdtrit(freedom, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    sides = tuple(mean(side) for side in zip(*samples, strict=True))
    return _Measure(group, value, value - half, value + half, sides)


def _difference(one: float, other: float) -> float:
    return 0.0 if one == other else one - other  # equal infinities are equal


def _is_absolute(claim: Claim) -> bool:
    """Whether deviations are in the claim's unit, because a percentage of the paper's number misleads."""
    paper = _paper(claim.relation)
    return isinstance(claim.relation, Near | Bound) and (claim.operator == "-" or 0.0 in (paper.low, paper.high))


def _margin(claim: Claim, measure: _Measure) -> float:
    """How far inside the paper's range a value is (negative: outside), relative to the nearer end."""
    paper = _paper(claim.relation)
    margins = []
    for end, distance in ((paper.low, measure.value - paper.low), (paper.high, paper.high - measure.value)):
        if math.isfinite(end):
            reference = measure.sides[1] if len(measure.sides) == 2 else end
            margins.append(distance / (1.0 if _is_absolute(claim) else abs(reference) or 1.0))
    return min(margins)


def _worst(claim: Claim, measures: Sequence[_Measure]) -> _Measure:
    """The measure with the least margin; rounding errors do not choose between equal ones."""
    return min(measures, key=lambda m: (round(_margin(claim, m), 9), sorted(m.group.keys.items())))


def _deviation(claim: Claim, worst: _Measure) -> str:
    paper = _paper(claim.relation)
    amount = _margin(claim, worst)
    if len(worst.sides) == 1:
        amount = min(amount, 0.0) if worst.value < paper.low else -min(amount, 0.0)
    elif paper.high == 0.0:
        amount = -amount
    if _is_absolute(claim):
        text = with_unit(digits(amount / UNITS[_unit(claim)]), _unit(claim))
        return f"+{text}" if amount > 0 else text
    text = f"{100 * amount:+.0f}%"
    return "0%" if text in ("+0%", "-0%") else text


def _measured(claim: Claim, measures: Sequence[_Measure]) -> str:
    if len(measures[0].sides) == 1:
        values = [measure.value for measure in measures]
        many = f" ({len(values)})" if len(values) > 1 else ""
        return span(min(values), max(values), _unit(claim)) + many
    if len(measures) == 1:
        return _sides(claim, measures[0])
    num_holding = sum(_accepted(claim.relation).holds(measure.value) for measure in measures)
    return f"{num_holding} of {len(measures)}"


def _sides(claim: Claim, measure: _Measure) -> str:
    """Both sides of a comparison in the order in which the claim names them."""
    one, other = (digits(side) for side in measure.sides)
    return f"{other} then {one}" if isinstance(claim.relation, Trend) else f"{one} against {other}"


def _details(claim: Claim, measures: Sequence[_Measure], worst: _Measure) -> list[str]:
    details = []
    if len(measures) > 1:
        names = varying([measure.group for measure in measures])
        label = " ".join(f"{key}={worst.group.keys[key]}" for key in names)
        value = span(worst.value, worst.value, _unit(claim))
        details.append(f"worst: {label} {value if len(worst.sides) == 1 else _sides(claim, worst)}")
    if len(worst.group.samples) >= MIN_SEEDS:
        what = "" if len(worst.sides) == 1 else " of the difference"
        details.append(f"95% interval{what} {span(worst.low, worst.high, _unit(claim))}")
    return details


def _unit(claim: Claim) -> str:
    """The unit that a claim's values are shown in: its own, or plain numbers where it has none."""
    if isinstance(claim.relation, Near):
        return claim.relation.high.unit
    return claim.relation.bound.unit if isinstance(claim.relation, Bound) else ""


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
