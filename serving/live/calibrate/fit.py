"""The fit: from measured times to the numbers of a profile. Pure arithmetic; medians, since noise comes in bursts."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from serving.cost.profile import Beside, Curve, Factors, StepTable
from serving.cost.startup import StartupCosts
from serving.live.calibrate.shapes import Shape, Shapes
from serving.records import StageRecord
from serving.units import Bytes, BytesPerSecond, Seconds, us

TIMED = ("container", "libraries", "context", "engine")
"""Stages of a start that take a time, not a rate."""
MODEL = "measured"
CROWDED = 1.05
"""Starts at once that take no more than so many times as long as one alone have had a core each."""

Times = Mapping[Shape, Sequence[Seconds]]


@dataclass(slots=True, eq=False)
class Measurements:
    """What a calibration saw."""

    shapes: Shapes
    alone: dict[Shape, list[Seconds]] = field(default_factory=dict)
    """Steps while no other instance computes."""
    two_stages: dict[Shape, list[Seconds]] = field(default_factory=dict)
    """Some of them on an instance of two stages; empty when the model cannot be cut."""
    one_stage: dict[Shape, list[Seconds]] = field(default_factory=dict)
    """The same on an instance of one, by turns with those."""
    ratios: list[dict[Shape, list[float]]] = field(default_factory=list)
    """Step times while two, three ... instances compute the same over those of one."""
    pairs: dict[tuple[Shape, Shape], list[float]] = field(default_factory=dict)
    """Times of a step, the first, while an instance computes another, over those of one instance."""
    starts: list[dict[str, StageRecord]] = field(default_factory=list)
    """Stages of serial starts of one worker, by name."""
    engine_loads: list[StageRecord] = field(default_factory=list)
    """LOAD stages with the engine's loader."""
    direct_loads: list[StageRecord] = field(default_factory=list)
    """LOAD stages with the direct loader."""
    first_steps: list[Seconds] = field(default_factory=list)
    """What a process's first step took longer than the next."""
    starts_at_once: list[dict[str, StageRecord]] = field(default_factory=list)
    """Stages of the starts of some instances launched together, one worker each."""
    weights: Bytes = 0.0
    """Of a worker with the whole model."""
    stage_engine: tuple[Bytes, Seconds] | None = None
    """Weights of a pipeline stage, and what construction of its engine took; None: the model cannot be cut."""
    starts_of_two: list[Seconds] = field(default_factory=list)
    """From launch to ready of each of two launched together, which the fit does not look at."""


def step_table(found: Measurements) -> StepTable:
    """The table of step times."""
    table = StepTable(
        prefill=_curve(found.alone, found.shapes.prompts),
        decode=_curve(found.alone, found.shapes.batches),
        context=0.0,
        pairs=0.0,
        hop=_hop(found),
        slowdown=_slowdown(found.ratios),
        beside=_beside(found.pairs),
    )
    context, pairs = _attention(table, found.alone, found.shapes.in_context)
    return replace(table, context=context, pairs=pairs)


def startup_costs(found: Measurements, num_cores: int) -> StartupCosts:
    """The times of a start."""
    times = {name: [_duration(start[name]) for start in found.starts] for name in TIMED}
    medians = {name: statistics.median(values) for name, values in times.items()}
    engine, build_rate = _building(medians["engine"], found)
    return StartupCosts(
        container=medians["container"],
        libraries=medians["libraries"],
        context=medians["context"],
        engine=engine,
        first_step=max(0.0, statistics.median(found.first_steps)),
        engine_load_rate=rate(found.engine_loads),
        jitter=pooled_variation(times.values()),
        host_cores=_cores(found, num_cores),
        build_rate=build_rate,
    )


def _building(whole: Seconds, found: Measurements) -> tuple[Seconds, BytesPerSecond | None]:
    """What engine construction takes whatever the weights, and its rate over them: a line through the whole model's
    time and a stage's, neither below 0. None as rate when a stage took no less."""
    if found.stage_engine is None:
        return whole, None
    weights, took = found.stage_engine
    per_byte = min((whole - took) / (found.weights - weights), whole / found.weights)
    return (max(0.0, whole - per_byte * found.weights), 1 / per_byte) if per_byte > 0 else (whole, None)


def _cores(found: Measurements, num_cores: int) -> float:
    """As many cores as starts at once behave as if they had. Processes that import the same files and map much memory
    wait for each other in the kernel too, on some machines long before the cores run out."""
    if not found.starts_at_once:
        return float(num_cores)
    alone = sum(statistics.median(_duration(start[name]) for start in found.starts) for name in TIMED)
    longer = statistics.fmean(sum(_duration(s[name]) for name in TIMED) for s in found.starts_at_once) / alone
    if longer <= CROWDED:
        return float(num_cores)
    return min(float(num_cores), max(1.0, len(found.starts_at_once) / longer))


def rate(moves: Iterable[StageRecord]) -> BytesPerSecond:
    """Median rate of stages that moved bytes."""
    return statistics.median(move.num_bytes / max(_duration(move), 1 * us) for move in moves)


def pooled_variation(groups: Iterable[Sequence[Seconds]]) -> float:
    """Coefficient of variation, pooled over groups of times such that, as every group's, it gives their sum the
    variance that it has: long stages count for more. Groups of one time say nothing."""
    known = [group for group in groups if len(group) > 1]
    squares = sum(statistics.fmean(group) ** 2 for group in known)
    return min(0.99, float(np.sqrt(sum(map(statistics.variance, known)) / squares))) if squares else 0.0


def predicted(table: StepTable, shape: Shape, num_stages: int = 1) -> Seconds:
    """What the table says of a step alone on the machine."""
    return table.time(shape.plan(MODEL), num_stages)


def _curve(times: Times, shapes: Iterable[Shape]) -> Curve:
    return tuple((shape.rows, statistics.median(times[shape])) for shape in shapes)


def _attention(table: StepTable, times: Times, shapes: Sequence[Shape]) -> tuple[Seconds, Seconds]:
    """Seconds per KV entry and per pair: least squares of what steps with a context take longer than the table says
    without, relative to the whole step, neither below 0."""
    rows, rest = [], []
    for shape in shapes:
        measured = statistics.median(times[shape])
        plan = shape.plan(MODEL)
        with_context = sum((num_tokens - 1) * context for num_tokens, context in shape.chunks)
        rows.append([plan.context_tokens / measured, with_context / measured])
        rest.append((measured - predicted(table, shape)) / measured)
    if not rows:
        return 0.0, 0.0
    from scipy.optimize import nnls

    (context, pairs), _ = nnls(np.array(rows), np.array(rest))
    return float(context), float(pairs)


def _hop(found: Measurements) -> Seconds:
    """Median of what a second stage adds to a step."""
    added = [
        statistics.median(times) - statistics.median(found.one_stage[shape])
        for shape, times in found.two_stages.items()
    ]
    return max(0.0, statistics.median(added)) if added else 0.0


def _slowdown(ratios: Sequence[Mapping[Shape, Sequence[float]]]) -> tuple[Factors, ...]:
    """Median ratios by rows for each number of busy instances, none below that of one instance less."""
    factors: list[Factors] = [((1, 1.0),)]
    for found in ratios:
        last = dict(factors[-1])
        factors.append(
            tuple(
                (shape.rows, max(last.get(shape.rows, 1.0), statistics.median(each))) for shape, each in found.items()
            )
        )
    return tuple(factors)


def _beside(pairs: Mapping[tuple[Shape, Shape], Sequence[float]]) -> Beside:
    """Median ratios by the rows of the other step and of the step, none below 1."""
    found: dict[int, dict[int, float]] = {}
    for (shape, other), ratios in pairs.items():
        found.setdefault(other.rows, {})[shape.rows] = max(1.0, statistics.median(ratios))
    return tuple((rows, tuple(sorted(factors.items()))) for rows, factors in sorted(found.items()))


def _duration(stage: StageRecord) -> Seconds:
    return stage.ended_at - stage.started_at
