"""The values that a claim is about: rows of a summary, matched, grouped and aggregated, seed by seed.

The two sides of a claim meet where they agree on every grid key that both select alike (usually: that
neither selects); every other key is paired freely. A group is one such meeting, or one row when there is
one side. Its value in each seed is what the claim's operator makes of its rows in that seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise, product
from operator import ge, gt, le, lt
from pathlib import Path
from typing import NoReturn

from aebench.claim_summary import Cell, Summary, label
from aebench.claim_syntax import AGGREGATES, Bound, Claim, Selector, Trend
from aebench.errors import SpecError, near_misses

SIGNS = {">": gt, ">=": ge, "<": lt, "<=": le}
Values = tuple[float, ...]
"""One number, or the two that an Order or a Trend compares."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One value that a claim asserts something of."""

    keys: Mapping[str, str]
    """What tells it from the other groups of its claim."""
    samples: Mapping[int, Values]
    """Its values by seed."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the summary says about one claim."""

    groups: tuple[Group, ...]
    """What the relation is asserted of, after aggregation."""
    cells: tuple[tuple[Cell, ...], ...]
    """The rows behind each group before aggregation."""
    missing: tuple[str, ...]
    """Rows that the claim needs and the summary lacks."""


def gather(claim: Claim, summary: Summary, path: Path) -> Evidence:
    """The groups of a claim, or what is missing; SpecError for names that the summary does not have."""
    if claim.then:
        return _chained([gather(pair, summary, path) for pair in claim.pairs])
    _check_names(claim, summary, path)
    if missing := _unmatched(claim, summary):
        return Evidence((), (), tuple(sorted(missing)))
    groups = _one_sided(claim, summary) if claim.right is None else _matched(claim, summary, missing)
    _check_every(claim, groups, path)
    cells = tuple(group.cells for group in groups)
    missing += _valueless(groups, claim.metric, summary)
    if isinstance(claim.relation, Trend):
        missing += _holes(groups, claim.relation.key, summary)
    missing = missing or _undefined(groups)
    if not missing:
        groups = groups if claim.counted is None else [_counted(group, claim.counted) for group in groups]
        groups = _compared(claim, groups, summary)
        missing = _undefined(groups)
    return Evidence(() if missing else tuple(groups), cells, tuple(sorted(missing)))


def _chained(evidences: Sequence[Evidence]) -> Evidence:
    """What a chain rests on: all that its neighbours rest on."""
    missing = tuple(dict.fromkeys(chain.from_iterable(evidence.missing for evidence in evidences)))
    groups = chain.from_iterable(evidence.groups for evidence in evidences)
    cells = chain.from_iterable(evidence.cells for evidence in evidences)
    return Evidence(() if missing else tuple(groups), tuple(cells), missing)


def _counted(group: Group, bound: Bound) -> Group:
    """The group with 1 for a value on the bound's side, and 0 for any other."""
    holds, border = SIGNS[bound.sign], bound.bound.base
    return replace(
        group, samples={seed: tuple(float(holds(one, border)) for one in of) for seed, of in group.samples.items()}
    )


def varying(groups: Sequence[Group]) -> tuple[str, ...]:
    """Keys that do not have one value in all groups, in grid order."""
    keys = groups[0].keys if groups else {}
    return tuple(key for key in keys if any(group.keys[key] != keys[key] for group in groups))


def _one_sided(claim: Claim, summary: Summary) -> list[Group]:
    samples = summary.samples(claim.metric)
    cells = [cell for cell in summary.cells if claim.left.matches(cell.keys)]
    return [Group(cell.keys, {seed: (v,) for seed, v in samples(cell).items()}, (cell,)) for cell in cells]


def _matched(claim: Claim, summary: Summary, missing: list[str]) -> list[Group]:
    """Every left row with every right row that it meets; rows that meet none are missing."""
    right = claim.right or Selector({})
    shared = [key for key in summary.grid_keys if claim.left.texts.get(key) == right.texts.get(key)]
    sides: dict[tuple[str, ...], tuple[list[Cell], list[Cell]]] = {}
    for number, selector in enumerate((claim.left, right)):
        for cell in summary.cells:
            if selector.matches(cell.keys):
                place = tuple(cell.keys[key] for key in shared)
                sides.setdefault(place, ([], []))[number].append(cell)
    samples = summary.samples(claim.metric)
    groups: list[Group] = []
    for place, (lefts, rights) in sides.items():
        at = dict(zip(shared, place, strict=True))
        for left_cell, right_cell in product(lefts, rights):
            values = _combined(claim.operator, samples(left_cell), samples(right_cell))
            groups.append(Group(_meeting(at, left_cell, right_cell), values, (left_cell, right_cell)))
        if not lefts or not rights:
            absent = right if lefts else claim.left
            missing.append(label({key: "|".join(texts) for key, texts in absent.texts.items()} | at))
    return groups


def _meeting(at: Mapping[str, str], left: Cell, right: Cell) -> dict[str, str]:
    """What tells a pair from others: the shared values, and both values of each free key."""
    return {key: at[key] if key in at else f"{text}/{right.keys[key]}" for key, text in left.keys.items()}


def _combined(operator: str | None, left: Mapping[int, float], right: Mapping[int, float]) -> dict[int, Values]:
    """The values of a pair in the seeds that both sides have."""
    pairs = {seed: (left[seed], right[seed]) for seed in left if seed in right}
    if operator == "-":
        return {seed: (one - other,) for seed, (one, other) in pairs.items()}
    if operator == "/":
        return {seed: (_ratio(one, other),) for seed, (one, other) in pairs.items()}
    return dict(pairs)


def _ratio(one: float, other: float) -> float:
    if other:
        return one / other
    return math.copysign(math.inf, one) if one else math.nan


def _compared(claim: Claim, groups: list[Group], summary: Summary) -> list[Group]:
    """The groups that the relation is asserted of: aggregated, then joined to steps of a trend."""
    trend = claim.relation.key if isinstance(claim.relation, Trend) else None
    if claim.aggregate:
        kept = claim.every + ((trend,) if trend else ())
        groups = [_aggregated(claim.aggregate, bucket, keys) for keys, bucket in _buckets(groups, kept)]
    return _steps(groups, trend, summary) if trend else groups


def _holes(groups: list[Group], key: str, summary: Summary) -> list[str]:
    """Values of the key that some chain lacks, or that there is nothing to follow."""
    present = [text for text in summary.order[key] if any(group.keys[key] == text for group in groups)]
    if groups and len(present) < 2:
        return [f"a second value of {key}"]
    others = tuple(name for name in groups[0].keys if name != key) if groups else ()
    chains = [(keys, [group.keys[key] for group in chain]) for keys, chain in _buckets(groups, others)]
    return [label({**keys, key: text}) for keys, have in chains for text in present if text not in have]


def _steps(groups: list[Group], key: str, summary: Summary) -> list[Group]:
    """Later and earlier value of each two neighbours along the key."""
    others = tuple(name for name in groups[0].keys if name != key)
    steps = []
    for keys, along in _buckets(groups, others):
        ordered = sorted(along, key=lambda group: summary.order[key].index(group.keys[key]))
        for earlier, later in pairwise(ordered):
            seeds = [seed for seed in earlier.samples if seed in later.samples]
            samples = {seed: later.samples[seed] + earlier.samples[seed] for seed in seeds}
            between = {**keys, key: f"{earlier.keys[key]}..{later.keys[key]}"}
            steps.append(Group(between, samples, earlier.cells + later.cells))
    return steps


def _buckets(groups: list[Group], kept: tuple[str, ...]) -> list[tuple[dict[str, str], list[Group]]]:
    """The groups by their values of the kept keys."""
    buckets: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        buckets.setdefault(tuple(group.keys[key] for key in kept), []).append(group)
    return [(dict(zip(kept, texts, strict=True)), bucket) for texts, bucket in buckets.items()]


def _aggregated(aggregate: str, groups: list[Group], keys: Mapping[str, str]) -> Group:
    """One group of many: its samples are the aggregates in the seeds that all of them have."""
    samples: dict[int, Values] = {}
    for seed in groups[0].samples:
        if all(seed in group.samples for group in groups):
            sides = zip(*(group.samples[seed] for group in groups), strict=True)
            samples[seed] = tuple(AGGREGATES[aggregate](sorted(side)) for side in sides)
    return Group(keys, samples, tuple(cell for group in groups for cell in group.cells))


def _valueless(groups: list[Group], metric: str, summary: Summary) -> list[str]:
    """Rows that have no value in any seed, and pairs of rows that have none in the same seed."""
    samples = summary.samples(metric)
    valueless: dict[str, None] = {}
    for group in groups:
        if not group.samples:
            cells = [f"{label(cell.keys)} (no {metric})" for cell in group.cells if not samples(cell)]
            valueless |= dict.fromkeys(cells or [f"{label(group.keys)} (no common seed)"])
    return list(valueless)


def _undefined(groups: list[Group]) -> list[str]:
    """Groups without a value in any common seed, or with one that is not a number (0/0)."""
    return [
        f"{label(group.keys)} (undefined)".lstrip()
        for group in groups
        if not group.samples or any(math.isnan(value) for values in group.samples.values() for value in values)
    ]


def _unmatched(claim: Claim, summary: Summary) -> list[str]:
    """Combinations of selected values that no row has."""
    missing: dict[str, None] = {}
    for selector in (claim.left, claim.right or claim.left):
        for texts in product(*selector.texts.values()):
            wanted = dict(zip(selector.texts, texts, strict=True)).items()
            if not any(wanted <= cell.keys.items() for cell in summary.cells):
                missing[label(dict(wanted)) or "all rows"] = None
    return list(missing)


def _check_names(claim: Claim, summary: Summary, path: Path) -> None:
    if claim.metric not in summary.metrics:
        _unknown("metric", claim.metric, summary.metrics, claim, path)
    trend = [claim.relation.key] if isinstance(claim.relation, Trend) else []
    for key in [*claim.left.texts, *(claim.right.texts if claim.right else ()), *trend, *claim.every]:
        if key not in summary.grid_keys:
            _unknown("grid key", key, summary.grid_keys, claim, path)
    for key in trend:
        ends = [side.texts.get(key) for side in (claim.left, claim.right or claim.left)]
        if ends[0] != ends[1] or (ends[0] and len(ends[0]) == 1):
            message = f"{claim.claim_id} runs over '{key}', expected a key that no side selects one value of"
            raise SpecError(path, f"line {claim.line}", message)


def _unknown(kind: str, name: str, known: Sequence[str], claim: Claim, path: Path) -> NoReturn:
    hint = near_misses(name, known)
    message = f"unknown {kind} '{name}' in {claim.claim_id}.{hint} Known: {', '.join(known)}"
    raise SpecError(path, f"line {claim.line}", message)


def _check_every(claim: Claim, groups: list[Group], path: Path) -> None:
    """``for every`` names the keys that remain: those that vary it must, others it may."""
    if not claim.every:
        return
    selected = [*claim.left.texts.items(), *(claim.right.texts.items() if claim.right else ())]
    fixed = [key for key, texts in selected if len(texts) == 1]
    fixed += [claim.relation.key] if isinstance(claim.relation, Trend) else []
    needed = [key for key in varying(groups) if key not in (*dict(selected), *fixed)]
    left_out = [] if claim.aggregate else [key for key in needed if key not in claim.every]
    if left_out or any(key in fixed for key in claim.every):
        found = f"{claim.claim_id} says for every {', '.join(claim.every)}"
        message = f"{found}, expected the keys that remain: {', '.join(needed) or 'none'}"
        raise SpecError(path, f"line {claim.line}", message)
