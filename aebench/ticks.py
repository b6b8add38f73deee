"""Ticks: times of a log as whole numbers of its resolution, most of them since an earlier time of the same record.

A log keeps as many digits of a second as its experiment says (``measure.time_digits``); it may say all, by not saying.
Rounded times fit into whole numbers, and differences of whole numbers are exact, so a sealed point keeps what is small:
how long after its arrival a request had its first token, not when. That is a third of the bytes (docs/adr/0013).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]
    """A column; NaN where a row has nothing."""

MAX_DIGITS = 6
"""Microseconds. What a clock or a cost model tells beyond is noise, and years of them are exact in a float."""

TIMES = frozenset(
    (
        "arrived_at",
        "dispatched_at",
        "first_token_at",
        "finished_at",
        "token_gaps",
        "preempted_for",
        "computed_for",
        "started_at",
        "ended_at",
        "at",
        "ready_at",
        "last_busy_at",
        "paused_at",
        "resumed_at",
        "downtime",
        "first_stage",
    )
)
"""Columns with moments and durations that were measured; SLOs were not."""

SINCE: dict[str, tuple[str, str | None]] = {
    "dispatched_at": ("arrived_at", None),
    "first_token_at": ("dispatched_at", None),
    "finished_at": ("first_token_at", None),
    "computed_for": ("finished_at", "dispatched_at"),
    "ended_at": ("started_at", None),
    "ready_at": ("started_at", None),
    "last_busy_at": ("ready_at", None),
    "resumed_at": ("paused_at", None),
}
"""Column: what it is near to, one column or the difference of two; each stands behind those that it names."""


class NotInTicks(ValueError):
    """A time that has more digits than its log keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticks:
    """How the times of one log are kept."""

    digits: int
    """Of a second."""
    since: Mapping[str, tuple[str, str | None]]
    """Of ``SINCE``, what holds for this log."""

    @classmethod
    def of(cls, measure: Mapping[str, Any]) -> Self | None:
        """By an experiment's ``[measure]``; None: times are exact. What a log leaves out is near to nothing."""
        digits = measure.get("time_digits")
        since = {name: near for name, near in SINCE.items() if measure.get(name, True)}
        return None if digits is None else cls(digits=digits, since=since)


def to_ticks(columns: "Mapping[str, Values]", how: Ticks) -> "dict[str, Values]":
    """Times in seconds as whole numbers, those that are near to others as differences."""
    import numpy as np

    ticks = {}
    for name, seconds in columns.items():
        ticks[name] = np.rint(seconds * 10.0**how.digits)
        if not np.array_equal(ticks[name] / 10.0**how.digits, seconds, equal_nan=True):
            raise NotInTicks(f"column {name} has times of more than {how.digits} digits")
    return {name: each - _near(name, ticks, how) for name, each in ticks.items()}


def from_ticks(columns: "Mapping[str, Values]", how: Ticks) -> "dict[str, Values]":
    """The inverse: seconds, to the last bit what was written."""
    ticks = dict(columns)
    for name in how.since:
        if name in ticks:
            ticks[name] = ticks[name] + _near(name, ticks, how)
    return {name: each / 10.0**how.digits for name, each in ticks.items()}


def _near(name: str, ticks: "Mapping[str, Values]", how: Ticks) -> "Values | float":
    """What a column's values are the differences to: 0 where that is not known."""
    import numpy as np

    first, second = how.since.get(name, (None, None))
    if first is None:
        return 0.0
    near = ticks[first] if second is None else ticks[first] - ticks[second]
    return np.nan_to_num(near)
