"""Comparison: one figure's values in two logs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aebench.claim_syntax import key_text
from aebench.errors import UsageError
from aebench.report import signed_percent
from aebench.shown_runs import is_run, measured_on
from aebench.workflow import Drawn

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 10
"""Points of a metric listed at most, largest difference first."""
EQUAL = 1e-9
"""Relative difference up to which two values are the same; what is summed in another order differs in its last
digits."""


@dataclass(frozen=True, slots=True)
class Change:
    """A metric at one point in the other log and in this one; NaN: that log has no value there."""

    where: str
    before: float
    after: float

    @property
    def relative(self) -> float | None:
        """Signed, of the value before; None where there is none, or it is 0."""
        either_missing = math.isnan(self.before) or math.isnan(self.after)
        return None if either_missing or self.before == 0 else (self.after - self.before) / abs(self.before)

    @property
    def size(self) -> float:
        """Its absolute value, for the order; endless where it cannot be said."""
        if self.before == self.after:
            return 0.0
        return math.inf if self.relative is None else abs(self.relative)

    @property
    def text(self) -> str:
        """``rate=2 seed=0  6.82 -> 7.5  +9.9%``."""
        old, new = ("absent" if math.isnan(value) else f"{value:.4g}" for value in (self.before, self.after))
        return f"{self.where}  {old} -> {new}  {signed_percent(self.relative)}"


def counterpart(one: Drawn, others: Sequence[Drawn], folder: Path) -> Drawn | None:
    """The same figure in the log at ``folder``, made by the same backend on the same device and hardware; None: there
    is none. A run that is named by its own folder may be by the other backend: a simulation from a machine's profile
    stands beside what that machine did."""
    wanted = measured_on(one.log)
    found = [other for other in others if other.figure.figure_id == one.figure.figure_id]
    same = next((other for other in found if measured_on(other.log) == wanted), None)
    if same is not None or not wanted[1] or not is_run(folder):
        return same
    return next((other for other in found if measured_on(other.log)[1:] == wanted[1:]), None)


def comparisons(drawn: Sequence[Drawn], others: Sequence[Drawn], folder: Path) -> list[str]:
    """Every figure beside its counterpart in the log at ``folder``; UsageError when none has one."""
    pairs = [(one, counterpart(one, others, folder)) for one in drawn]
    if all(other is None for _, other in pairs):
        found = ", ".join(dict.fromkeys(made_on(other) for other in others))
        raise UsageError(
            f"--against {folder}: no run of the same machine there. Expected {made_on(drawn[0])}, found {found}. "
            "A prediction and what it predicts are compared by --against RUN_FOLDER, on hardware of one name"
        )
    return [_absent(one, folder) if other is None else compare(one, other) for one, other in pairs]


def made_on(drawn: Drawn) -> str:
    """Backend and hardware of a run: ``live on NVIDIA H200, 16 cores``."""
    return f"{drawn.log.manifest.backend} on {drawn.log.manifest.measured or 'the machines of the paper'}"


def _absent(one: Drawn, folder: Path) -> str:
    name, metrics = one.figure.figure_id, ", ".join(_metrics(one))
    return f"{name}  {metrics} ({made_on(one)}) against {folder}: no run of the same machine there"


def _metrics(drawn: Drawn) -> Sequence[str]:
    return drawn.figure.plot.metrics or (drawn.figure.plot.y,)


def compare(one: Drawn, other: Drawn) -> str:
    """How far each of the figure's metrics in ``one`` is from ``other``, over the points and seeds that both have."""
    keys = [*one.figure.view.keys, "seed"]
    here, there = (_places(each.summary, keys) for each in (one, other))
    both = [place for place in here if place in there]
    if not both:
        return f"{one.figure.figure_id}: the two logs have no point in common"
    rest = f", {len(here) - len(both)} have no counterpart there" if len(here) > len(both) else ""
    rest += f", {len(there) - len(both)} are only there" if len(there) > len(both) else ""
    differ = measured_on(one.log) != measured_on(other.log)
    this, that = (f" ({made_on(each)})" if differ else "" for each in (one, other))
    lines = []
    for metric in _metrics(one):
        olds, news = other.summary[metric].tolist(), one.summary[metric].tolist()
        found = [Change(_where(keys, place), olds[there[place]], news[here[place]]) for place in both]
        known = [change for change in found if not (math.isnan(change.before) and math.isnan(change.after))]
        changed = sorted((change for change in known if change.size > EQUAL), key=lambda change: -round(change.size, 9))
        count = f"{len(changed)} of {len(known)} points differ{rest}"
        lines.append(f"{one.figure.figure_id}  {metric}{this} against {other.log.folder}{that}: {count}")
        lines += [f"  {change.text}" for change in changed[:SHOWN]]
        lines += [f"  and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
    return "\n".join(lines)


def _where(keys: Sequence[str], place: Sequence[str]) -> str:
    return " ".join(f"{key}={text}" for key, text in zip(keys, place, strict=True))


def _places(summary: "pd.DataFrame", keys: Sequence[str]) -> dict[tuple[str, ...], int]:
    """Row number by grid values and seed, as text."""
    columns = [summary[key].map(key_text).tolist() for key in keys]
    return {place: row for row, place in enumerate(zip(*columns, strict=True))}
