"""How long a step waits for its scheduler, from what decisions cost: one core decides for all, or each for itself.

The idea of Llumnix's Figure 16. An instance computes for ``STEP``, then must be told its next step. A *centralized*
scheduler keeps the state of every request: one core folds in the tokens of each step, plans the next and dispatches
requests, first come first served. A *llumlet* folds and plans for its own instance only and looks at its load; one core
dispatches and pairs instances meanwhile, and no step waits for that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from aebench.plotting import style
from aebench.plotting.draw import write_canvas

STEP = 0.04
"""Seconds that an instance computes, about those of LLaMA-7B on an A10."""
RATE = 2.25
"""Requests per second and instance: S-S of Figure 11 at 36 a second on 16."""
INTERVAL = 0.16
"""Seconds between migration ticks."""
SIMULATED = 6.0
"""Seconds."""
SKIPPED = 1.0
"""Seconds of these, until queues are what they will be."""
HEIGHT = 3.1  # inches
SLOWER = (0.2e-3, 1e-3)
"""Seconds for a step in a centralized scheduler that the figure shows beside what was measured."""


class Measured(Protocol):
    """CPU seconds of each kind of decision, at one size of cluster."""

    @property
    def num_instances(self) -> int:
        """Size."""
        ...

    @property
    def dispatch(self) -> float:
        """Of a request."""
        ...

    @property
    def report(self) -> float:
        """Of an instance."""
        ...

    @property
    def pairing(self) -> float:
        """Of all instances, once."""
        ...

    @property
    def scaling(self) -> float:
        """Of all instances, once."""
        ...

    @property
    def step(self) -> float:
        """Of an instance."""
        ...

    @property
    def exchange(self) -> float:
        """Messages of a step."""
        ...

    @property
    def send_report(self) -> float:
        """Of an instance."""
        ...

    @property
    def receive_report(self) -> float:
        """Of an instance."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Mean seconds on one core: of a step from its end to the next, of a request until it is dispatched."""

    step: float
    request: float


def centralized(costs: Measured, per_step: float | None = None, seed: int = 0) -> Waits:
    """One core for all: every step of every instance passes through it, between requests. ``per_step``: if a step took
    so long there, not as measured."""
    service = {"step": per_step or costs.step + costs.exchange, "request": costs.dispatch}
    return _one_core([*_steps(costs, seed), *_requests(costs, seed)], service)


def llumnix(costs: Measured, seed: int = 0) -> Waits:
    """A core of its own for each llumlet; one for the global scheduler, which receives a report after each step."""
    ticks = [(INTERVAL * number, "tick") for number in range(int(SIMULATED / INTERVAL))]
    service = {"step": costs.receive_report, "tick": costs.pairing, "request": costs.dispatch}
    shared = _one_core([*_steps(costs, seed), *ticks, *_requests(costs, seed)], service)
    return Waits(step=costs.step + costs.report + costs.send_report, request=shared.request)


def _steps(costs: Measured, seed: int) -> list[tuple[float, str]]:
    """The first of each instance; they are not in step with each other."""
    random = Random(f"{seed}/steps")
    return [(random.uniform(0.0, STEP), "step") for _ in range(costs.num_instances)]


def _requests(costs: Measured, seed: int) -> list[tuple[float, str]]:
    """Poisson arrivals at the cluster's rate."""
    random, at = Random(f"{seed}/arrivals"), 0.0
    found = []
    while at < SIMULATED:
        at += random.expovariate(RATE * costs.num_instances)
        found.append((at, "request"))
    return found


def _one_core(asks: list[tuple[float, str]], service: dict[str, float]) -> Waits:
    """First come, first served; an instance asks again when it has computed the step that it was told."""
    heapify(asks)
    free_at = 0.0
    waits: dict[str, list[float]] = {"step": [], "request": [], "tick": []}
    while asks and asks[0][0] < SIMULATED:
        at, kind = heappop(asks)
        free_at = max(at, free_at) + service[kind]
        if at >= SKIPPED:
            waits[kind].append(free_at - at)
        if kind == "step":
            heappush(asks, (free_at + STEP, kind))
    return Waits(step=fmean(waits["step"] or [0.0]), request=fmean(waits["request"] or [0.0]))


def draw(found: Sequence[Measured], stem: Path) -> list[Path]:
    """The figure's files."""
    return write_canvas(lambda: _canvas(found), stem)


def _canvas(found: Sequence[Measured]) -> Canvas:
    canvas = Canvas(figsize=(style.PAGE_WIDTH, HEIGHT), layout="constrained")
    decisions, stalls = canvas.subplots(1, 2)
    kinds = {
        "scaling check": [costs.scaling for costs in found],
        "migration tick": [costs.pairing for costs in found],
        "dispatch of a request": [costs.dispatch for costs in found],
        "a step and its messages": [costs.step + costs.exchange for costs in found],
        "load report": [costs.report for costs in found],
    }
    waits = {"Llumnix": [llumnix(costs).step for costs in found]}
    waits["centralized, as measured"] = [centralized(costs).step for costs in found]
    for per_step in SLOWER:
        waits[f"centralized, {1e3 * per_step:g} ms a step"] = [centralized(costs, per_step).step for costs in found]
    sizes = [costs.num_instances for costs in found]
    _lines(decisions, sizes, kinds, "What a decision costs", "CPU time (ms)")
    _lines(stalls, sizes, waits, "How long a step waits", "Mean stall (ms)")
    stalls.axhline(1e3 * STEP, color=style.FAINT, linewidth=0.7, linestyle=(0, (4, 2)))
    place: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points", "color": style.FAINT}
    stalls.annotate("as long as a step computes", (sizes[0], 1e3 * STEP), **place)
    return canvas


def _lines(ax: Axes, sizes: Sequence[int], lines: dict[str, list[float]], title: str, label: str) -> None:
    for (name, values), color, marker in zip(lines.items(), style.PALETTE, style.MARKERS, strict=False):
        milliseconds = [1e3 * value for value in values]
        ax.plot(sizes, milliseconds, color=color, marker=marker, markersize=3.2, label=name, **style.MEASURED_LINE)
    ax.set(xscale="log", yscale="log", xlabel="Instances", ylabel=label)
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.minorticks_off()
    ax.set_title(title)
    ax.grid(axis="y")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
