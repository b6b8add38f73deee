"""TraceStatistics: what a workload trace is like, in numbers and as a table."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median, pstdev

from serving.units import Seconds, Tokens
from serving.workload.traces import TraceRow

BUSY = 20
"""Requests from which the gaps between a model's say something about their spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStatistics:
    """The requests of one label, which is their application where there are several."""

    label: str
    num_requests: int
    num_models: int
    """Models that are asked."""
    prompt: tuple[Tokens, ...]
    """Prompt tokens of every request, ascending."""
    output: tuple[Tokens, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStatistics:
    """A trace in numbers."""

    num_requests: int
    span: Seconds
    """From the run's start to the last arrival."""
    by_model: tuple[tuple[str, int], ...]
    """Requests of each model that is asked, busiest first."""
    gap_cv: float | None
    """Standard deviation of the gaps between arrivals over their mean; None: fewer than two gaps, or none above 0."""
    busy_gap_cvs: tuple[float, ...]
    """That of each model with at least ``BUSY`` requests, ascending."""
    keep_alive: Seconds
    warm_share: float
    """Of the requests, those that come within ``keep_alive`` of the one before to their model, arrival to arrival."""
    labels: tuple[LabelStatistics, ...]
    """In alphabetical order."""

    def top_share(self, num_models: int) -> float:
        """Fraction of the requests that go to so many models, the busiest ones."""
        return sum(count for _, count in self.by_model[:num_models]) / self.num_requests


def statistics_of(rows: Sequence[TraceRow], keep_alive: Seconds) -> TraceStatistics:
    """The statistics of a trace's rows, of which there is at least one."""
    arrivals: dict[str, list[Seconds]] = {}
    for row in rows:
        arrivals.setdefault(row.model, []).append(row.arrived_at)
    counts = Counter({model: len(times) for model, times in arrivals.items()})
    num_warm = sum(later - earlier <= keep_alive for times in arrivals.values() for earlier, later in pairwise(times))
    busy = [_gap_cv(times) for times in arrivals.values() if len(times) >= BUSY]
    return TraceStatistics(
        num_requests=len(rows),
        span=rows[-1].arrived_at,
        by_model=tuple(counts.most_common()),
        gap_cv=_gap_cv([row.arrived_at for row in rows]),
        busy_gap_cvs=tuple(sorted(cv for cv in busy if cv is not None)),
        keep_alive=keep_alive,
        warm_share=num_warm / len(rows),
        labels=tuple(_of_label(label, rows) for label in sorted({row.label for row in rows})),
    )


def _of_label(label: str, rows: Sequence[TraceRow]) -> LabelStatistics:
    own = [row for row in rows if row.label == label]
    return LabelStatistics(
        label=label,
        num_requests=len(own),
        num_models=len({row.model for row in own}),
        prompt=tuple(sorted(row.num_prompt_tokens for row in own)),
        output=tuple(sorted(row.num_output_tokens for row in own)),
    )


def _gap_cv(times: Sequence[Seconds]) -> float | None:
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = fmean(gaps) if len(gaps) > 1 else 0.0
    return pstdev(gaps) / mean if mean > 0 else None


def statistics_table(found: TraceStatistics) -> str:
    """The statistics as text."""
    return "\n".join(_lines(found))


def _lines(found: TraceStatistics) -> Iterator[str]:
    rate = f", {found.num_requests / found.span:.3f} a second" if found.span else ""
    yield f"requests     {found.num_requests:,} in {found.span:,.1f} s{rate}"
    shares = f"busiest {found.top_share(1):.1%} of the requests, busiest 10 {found.top_share(10):.1%}"
    yield f"models       {len(found.by_model)} asked; {shares}"
    yield (
        f"warm         {found.warm_share:.1%} of the requests come within {found.keep_alive:g} s "
        "of the one before to their model"
    )
    overall = "-" if found.gap_cv is None else f"{found.gap_cv:.2f}"
    cvs = found.busy_gap_cvs
    of_models = f"median {median(cvs):.2f}, {cvs[0]:.2f} to {cvs[-1]:.2f}" if cvs else "none"
    yield f"CV of gaps   {overall} overall; of the {len(cvs)} models with {BUSY} requests or more: {of_models}"
    width = max(len("label"), *(len(each.label) for each in found.labels))
    yield ""
    sizes = [f"{name} tokens (mean, p50, p99)" for name in ("prompt", "output")]
    yield f"{'label':<{width}}  requests   share  models  {'  '.join(sizes)}"
    for each in found.labels:
        share = f"{each.num_requests / found.num_requests:.1%}"
        yield (
            f"{each.label:<{width}}  {each.num_requests:>8,}  {share:>6}  {each.num_models:>6}"
            f"  {_sizes(each.prompt):>30}  {_sizes(each.output):>30}"
        )


def _sizes(ascending: Sequence[Tokens]) -> str:
    nearest = [ascending[min(len(ascending) - 1, int(rank * len(ascending)))] for rank in (0.5, 0.99)]
    return f"{fmean(ascending):.1f}, {nearest[0]}, {nearest[1]}"
