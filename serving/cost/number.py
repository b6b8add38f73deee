"""Number: a constant of a cost model with its unit and source, as a report prints it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A sourced constant."""

    name: str
    value: float
    unit: str
    source: str
