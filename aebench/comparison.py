"""Comparison: one figure's values in two logs."""

from collections.abc import Sequence

from aebench.report import signed_percent
from aebench.shown_runs import measured_on
from aebench.workflow import Drawn

SHOWN = 10
"""Cells listed at most, largest difference first."""


def counterpart(one: Drawn, others: Sequence[Drawn]) -> Drawn:
    """The same figure of another log: made in the same world on the same hardware if there is one, else on the same
    device, else any."""
    found = [other for other in others if other.figure.figure_id == one.figure.figure_id]
    wanted = measured_on(one.log)

    def fit(other: Drawn) -> tuple[bool, bool]:
        found = measured_on(other.log)
        return found == wanted, found[1] == wanted[1]

    return max(found, key=fit)


def compare(one: Drawn, other: Drawn) -> str:
    """How far the figure's metric in ``one`` is from ``other``, over the cells and seeds that both have."""
    metric = one.figure.plot.y
    keys = [*one.log.manifest.grid_keys, "seed"]
    both = one.summary.merge(other.summary, on=keys, suffixes=("", "_other"))
    if both.empty:
        return f"{one.figure.figure_id}: the two logs have no point in common"
    both["change"] = both[metric] / both[f"{metric}_other"] - 1
    changed = both[both["change"].abs() > 0].sort_values("change", key=abs, ascending=False)
    alone = len(one.summary) - len(both)
    found = f"{len(changed)} of {len(both)} points differ"
    if alone:
        found += f", {alone} have no counterpart there"
    lines = [f"{one.figure.figure_id}  {metric} against {other.log.folder}: {found}"]
    for _, row in changed.head(SHOWN).iterrows():
        where = " ".join(f"{key}={row[key]}" for key in keys)
        lines.append(f"  {where}  {row[f'{metric}_other']:.4g} -> {row[metric]:.4g}  {signed_percent(row['change'])}")
    if len(changed) > SHOWN:
        lines.append(f"  and {len(changed) - SHOWN} more")
    return "\n".join(lines)
