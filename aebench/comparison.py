"""Comparison: one figure's values in two logs."""

from collections.abc import Sequence
from pathlib import Path

from aebench.errors import UsageError
from aebench.report import signed_percent
from aebench.shown_runs import is_run, measured_on
from aebench.workflow import Drawn

SHOWN = 10
"""Cells listed at most, largest difference first."""


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
    name = one.figure.figure_id
    return f"{name}  {one.figure.plot.y} ({made_on(one)}) against {folder}: no run of the same machine there"


def compare(one: Drawn, other: Drawn) -> str:
    """How far the figure's metric in ``one`` is from ``other``, over the cells and seeds that both have."""
    metric = one.figure.plot.y
    keys = [*one.figure.view.keys, "seed"]
    both = one.summary.merge(other.summary, on=keys, suffixes=("", "_other"))
    if both.empty:
        return f"{one.figure.figure_id}: the two logs have no point in common"
    both["change"] = both[metric] / both[f"{metric}_other"] - 1
    changed = both[both["change"].abs() > 0].sort_values("change", key=abs, ascending=False)
    alone = len(one.summary) - len(both)
    found = f"{len(changed)} of {len(both)} points differ"
    if alone:
        found += f", {alone} have no counterpart there"
    differ = measured_on(one.log) != measured_on(other.log)
    this, that = (f" ({made_on(each)})" if differ else "" for each in (one, other))
    lines = [f"{one.figure.figure_id}  {metric}{this} against {other.log.folder}{that}: {found}"]
    for _, row in changed.head(SHOWN).iterrows():
        where = " ".join(f"{key}={row[key]}" for key in keys)
        lines.append(f"  {where}  {row[f'{metric}_other']:.4g} -> {row[metric]:.4g}  {signed_percent(row['change'])}")
    if len(changed) > SHOWN:
        lines.append(f"  and {len(changed) - SHOWN} more")
    return "\n".join(lines)
