"""Figure: what a paper printed (plot, points, claims), and its Cells: measured values beside the paper's."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev

import pandas as pd
from scipy.special import stdtrit

from aebench.claim_syntax import ClaimFile, key_text
from aebench.errors import SpecError
from aebench.view import View

Keys = Mapping[str, str]
IsCalibrated = Callable[[Keys], bool]
"""Whether the paper's point at these grid keys was used to set a parameter."""

SOURCE_COLUMN = "source"
METRIC = "metric"
"""The key by which cells of a figure of several metrics are told apart."""
SECONDS_METRICS = (
    *("ttft", "tpot", "itl", "e2e", "normalized_latency", "queue", "pause", "consolidation_time"),
    *("request_p", "request_mean", "prefill_", "decode_", "preemption_loss", "downtime"),
)
FRACTION_WORDS = ("attainment", "fraction", "share", "utilization", "fragmentation")


def unit_of(metric: str) -> str:
    """Unit of a metric in print, by its name."""
    if any(word in metric for word in FRACTION_WORDS):
        return "%"
    return "s" if metric.startswith(SECONDS_METRICS) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotSpec:
    """How a figure is drawn: which grid key goes where, and what each value is called in print."""

    kind: str
    """One of ``aebench.plotting.draw.KINDS``."""
    x: str
    y: str
    """The metric, a column of the table that it is drawn from."""
    metrics: Sequence[str] = ()
    """Of a figure of several metrics: all of them, ``y`` first."""
    near_zero: Sequence[str] = ()
    """Of these, those that come so near to 0 that relative errors say nothing."""
    series: str | None = None
    """Grid key told apart by colour and order; None: one series."""
    panel: str | None = None
    x_label: str = ""
    y_label: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Printed label by slug, for values of series, x and panel and for the keys themselves."""
    order: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Values in printed order by grid key; values not named here follow as they come."""
    is_ratio: bool = False
    """Whether the metric is that of one system divided by that of another."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The grid keys that place a value in the plot: panel, x, series."""
        return tuple(key for key in (self.panel, self.x, self.series) if key is not None)

    @property
    def unit(self) -> str:
        """Unit of the metric in print: ``s``, ``%`` (of a fraction), or nothing; also nothing where metrics differ."""
        units = list(dict.fromkeys(map(unit_of, self.metrics or (self.y,))))
        return units[0] if len(units) == 1 and not self.is_ratio else ""

    def label(self, value: str) -> str:
        """The printed label of a grid value or key."""
        return self.labels.get(value, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure or table of a paper, as declared in ``figures/<paper>/``."""

    figure_id: str
    """``paper/figureN``."""
    paper: str
    shows: str
    """One sentence: what the figure is about."""
    experiment: str
    """Id of the experiment whose points it draws."""
    plot: PlotSpec
    paper_points: pd.DataFrame | None
    """The paper's points: grid keys, the metric ``plot.y``, and maybe ``source``."""
    claims: ClaimFile
    notes: str | None
    """Markdown of ``figureN.md``: what differs and why."""
    folder: Path
    grid: Sequence[Keys] = ()
    """Cells of the experiment's grid that it is about; one that neither ran nor was printed shows as absent by them."""
    paper_label: str = "paper"
    """What the legend calls the paper's points."""
    paper_bars: pd.DataFrame | None = None
    """The paper's bars where they are of other things than ours: ``bar``, ``plot.series`` (if any), ``plot.y``,
    ``source``. No bar is any cell's; what is shown of them is how they are distributed."""
    orientation: bool = False
    """The paper's points were made on other hardware: they are shown, and nothing is compared with them."""
    view: View = View()
    """What it sees of a run."""

    def of(self, metric: str) -> "Figure":
        """The figure as far as it is about one of its metrics."""
        points = self.paper_points
        if points is not None:
            points = points.drop(columns=[name for name in self.plot.metrics if name != metric and name in points])
        plot = replace(self.plot, y=metric, metrics=(), near_zero=())
        return replace(self, plot=plot, paper_points=points if points is not None and metric in points else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean over seeds, with a 95% t-interval from 3 seeds on, the range for 2, a point for 1."""

    mean: float
    low: float
    high: float
    num_seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One place in a figure: what was measured there and what the paper printed."""

    keys: Keys
    measured: Spread | None
    """None: absent."""
    paper: float | None
    calibrated: bool
    """The paper's value was used to set a parameter."""
    history: bool
    """The measured value was filled in from a shipped log."""
    orientation: bool = False
    """The paper's value is of other hardware."""
    near_zero: bool = False
    """A relative error would say nothing."""

    @property
    def error(self) -> float | None:
        """Signed relative difference to the paper; None where either is missing, the paper's is 0 or may be near it, or
        it is there for orientation only."""
        if self.measured is None or not self.paper or self.orientation or self.near_zero:
            return None
        return (self.measured.mean - self.paper) / abs(self.paper)


def cells(figure: Figure, summary: pd.DataFrame, calibrated: IsCalibrated) -> list[Cell]:
    """Every cell that ran, was printed or is in the grid, in printed order; metric after metric where there are
    several, which ``METRIC`` tells apart."""
    if figure.plot.metrics:
        return [
            replace(cell, keys={**cell.keys, METRIC: metric}, near_zero=metric in figure.plot.near_zero)
            for metric in figure.plot.metrics
            for cell in cells(figure.of(metric), summary, calibrated)
        ]
    keys = _cell_keys(figure)
    measured = _measured(figure, summary, keys)
    paper = _paper_values(figure, keys)
    declared = (tuple(key_text(cell[key]) for key in keys) for cell in figure.grid if set(keys) <= set(cell))
    found = dict.fromkeys([*measured, *paper, *declared])
    rank = _rank(figure.plot, keys, found)
    ordered = [
        _cell(dict(zip(keys, place, strict=True)), measured.get(place), paper.get(place), calibrated)
        for place in sorted(found, key=rank)
    ]
    return [replace(cell, orientation=True) for cell in ordered] if figure.orientation else ordered


def values_in_order(plot: PlotSpec, key: str | None, found: Iterable[Cell]) -> list[str]:
    """Values of ``key`` that occur in the cells, in printed order; one empty value when there is no key."""
    if key is None:
        return [""]
    seen = list(dict.fromkeys(cell.keys[key] for cell in found))
    declared = [value for value in map(key_text, plot.order.get(key, ())) if value in seen]
    return [*declared, *(value for value in seen if value not in declared)]


def value_text(value: float, unit: str) -> str:
    """A value as printed, three digits that matter: ``8.19 s``, ``97.5%``, ``1240``."""
    if unit == "%":
        return f"{100 * value:.1f}%"
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    number = f"{value:.{decimals}f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"
    return f"{number} {unit}".rstrip()


Place = tuple[str, ...]


def _cell_keys(figure: Figure) -> tuple[str, ...]:
    """The plot's keys, then those that the paper's points add."""
    if figure.paper_points is None:
        return figure.plot.keys
    missing = [name for name in (*figure.plot.keys, figure.plot.y) if name not in figure.paper_points]
    if missing:
        raise SpecError(figure.figure_id, "paper", f"the paper's points lack the column {missing[0]!r}")
    others = (figure.plot.y, SOURCE_COLUMN, *figure.plot.keys)
    return (*figure.plot.keys, *(name for name in figure.paper_points.columns if name not in others))


def _rows(figure: Figure, table: pd.DataFrame, keys: Sequence[str]) -> Iterator[tuple[Place, float, int]]:
    """Place, metric and row number of each row that has the metric."""
    values = pd.to_numeric(table[figure.plot.y], errors="coerce").tolist()
    places = zip(*(map(key_text, table[key].tolist()) for key in keys), strict=True)
    for number, (place, value) in enumerate(zip(places, values, strict=True)):
        if math.isfinite(value):
            yield place, float(value), number


def _paper_values(figure: Figure, keys: Sequence[str]) -> dict[Place, float]:
    if figure.paper_points is None:
        return {}
    found: dict[Place, float] = {}
    for place, value, _ in _rows(figure, figure.paper_points, keys):
        if place in found:
            where = ", ".join(f"{key}={text}" for key, text in zip(keys, place, strict=True))
            raise SpecError(figure.figure_id, "paper", f"the paper's points name {where} twice")
        found[place] = value
    return found


def _measured(figure: Figure, summary: pd.DataFrame, keys: Sequence[str]) -> dict[Place, tuple[Spread, bool]]:
    """Spread over seeds and the history flag by place; two rows for one place and seed are refused."""
    if summary.empty:
        return {}
    missing = [name for name in (*keys, figure.plot.y) if name not in summary]
    if missing:
        raise SpecError(figure.figure_id, "summary", f"the log's summary has no column {missing[0]!r}")
    seeds = summary["seed"].tolist() if "seed" in summary else [0] * len(summary)
    history = summary["history"].tolist() if "history" in summary else [False] * len(summary)
    values: dict[Place, dict[int, float]] = {}
    filled: dict[Place, bool] = {}
    for place, value, number in _rows(figure, summary, keys):
        of_place = values.setdefault(place, {})
        if seeds[number] in of_place:
            where = ", ".join(f"{key}={text}" for key, text in zip(keys, place, strict=True))
            message = f"two rows for {where}, seed {seeds[number]}; a figure shows one value there"
            raise SpecError(figure.figure_id, "summary", message)
        of_place[seeds[number]] = value
        filled[place] = filled.get(place, False) or history[number] is True
    return {place: (_spread(list(found.values())), filled[place]) for place, found in values.items()}


def _spread(values: list[float]) -> Spread:
    mean, count = fmean(values), len(values)
    if count < 3:
        return Spread(mean=mean, low=min(values), high=max(values), num_seeds=count)
    half = float(stdtrit(count - 1, 0.975)) * stdev(values) / math.sqrt(count)
    return Spread(mean=mean, low=mean - half, high=mean + half, num_seeds=count)


def _cell(keys: Keys, measured: tuple[Spread, bool] | None, paper: float | None, calibrated: IsCalibrated) -> Cell:
    return Cell(
        keys=keys,
        measured=None if measured is None else measured[0],
        paper=paper,
        calibrated=paper is not None and calibrated(keys),
        history=measured is not None and measured[1],
    )


def _rank(plot: PlotSpec, keys: Sequence[str], found: Iterable[Place]) -> Callable[[Place], tuple[int, ...]]:
    """Sort key: for each grid key the declared position, then the order of first appearance."""
    positions: list[dict[str, int]] = []
    for column, key in enumerate(keys):
        named = [*map(key_text, plot.order.get(key, ())), *(place[column] for place in found)]
        positions.append({value: index for index, value in enumerate(dict.fromkeys(named))})
    return lambda place: tuple(positions[column][value] for column, value in enumerate(place))
