"""What a ``.claim`` file says, as values: claims, their selectors, relations and quantities.

``claim_parser`` reads them, ``claims`` judges them; ``text`` of each is its normal form.
"""

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

SIGNS = (">", ">=", "<", "<=")
UNITS: Mapping[str, float] = {"": 1.0, "s": 1.0, "ms": 1e-3, "x": 1.0, "%": 1e-2, "pp": 1e-2}
"""What one of each unit is in the units of ``summary.csv``."""
DIMENSIONS: Mapping[str, str] = {
    "": "plain",
    "s": "time",
    "ms": "time",
    "x": "ratio",
    "%": "share",
    "pp": "share",
}
RESULT_MARK = "->"

_DECIMAL = re.compile(r"[+-]?\d+\.\d+", re.ASCII)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; exact in any order, and infinite where a value is."""
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else sum(values)


def _geomean(values: Sequence[float]) -> float:
    if min(values) < 0:
        return math.nan
    return math.exp(mean([math.log(value) for value in values])) if min(values) > 0 else 0.0


AGGREGATES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": mean,
    "geomean": _geomean,
    "median": statistics.median,
    "min": min,
    "max": max,
    "share": mean,
}
"""What may stand before a metric, by name."""


def key_text(value: object) -> str:
    """A grid value as claims compare it: 8, 8.0 and "8" are the same text."""
    text = str(value)
    if isinstance(value, bool) or text in ("True", "False"):
        return text.lower()
    if isinstance(value, float) or _DECIMAL.fullmatch(text):
        return f"{float(text):.15g}"
    return text


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with the unit it was written in."""

    number: float
    unit: str

    @property
    def base(self) -> float:
        """The number in the units of ``summary.csv``: seconds, fractions."""
        return self.number * UNITS[self.unit]

    @property
    def text(self) -> str:
        """As a claim says it."""
        return with_unit(f"{self.number:.12g}", self.unit)


def with_unit(text: str, unit: str) -> str:
    """A number's text and its unit: ``8.1 s``, ``3.11x``, ``20%``."""
    return text + unit if unit in ("", "x", "%") else f"{text} {unit}"


def digits(value: float) -> str:
    """Three significant digits, without an exponent where a reader can do without."""
    text = f"{value + 0.0:.3g}"
    return f"{float(text):.0f}" if "e+" in text and abs(value) < 1e9 else text


def span(low: float, high: float, unit: str) -> str:
    """A range of values in a unit: ``1.9..4.4x``, or ``7.6 s`` where both ends read the same."""
    ends = dict.fromkeys(digits(end / UNITS[unit]) for end in (low, high))
    return with_unit("..".join(ends), unit)


@dataclass(frozen=True, slots=True)
class Selector:
    """Which rows one side of a claim is about."""

    texts: Mapping[str, tuple[str, ...]]
    """Allowed texts by grid key; a key that is not named is free."""

    def matches(self, keys: Mapping[str, str]) -> bool:
        """Whether a row with these grid values is selected."""
        return all(keys[key] in texts for key, texts in self.texts.items())

    @property
    def text(self) -> str:
        """As a claim says it."""
        return "[" + " ".join(f"{key}={'|'.join(texts)}" for key, texts in self.texts.items()) + "]"


@dataclass(frozen=True, slots=True)
class Near:
    """``= 8.1 s ±20%`` or ``in 1.7..4.7x``: between the ends, widened by the tolerance."""

    low: Quantity
    high: Quantity
    tolerance: Quantity | None

    @property
    def text(self) -> str:
        """As a claim says it."""
        ends = f"= {self.low.text}" if self.low == self.high else f"in {self.low.number:.12g}..{self.high.text}"
        return ends if self.tolerance is None else f"{ends} ±{self.tolerance.text}"


@dataclass(frozen=True, slots=True)
class Bound:
    """``> 1x``: every value lies on this side of a constant."""

    sign: str
    bound: Quantity

    @property
    def text(self) -> str:
        """As a claim says it."""
        return f"{self.sign} {self.bound.text}"


@dataclass(frozen=True, slots=True)
class Order:
    """``[...] > [...]``: the left side is so related to the right one in every group."""

    sign: str

    @property
    def text(self) -> str:
        """As a claim says it."""
        return self.sign


@dataclass(frozen=True, slots=True)
class Trend:
    """``decreasing over step``: strictly monotone along a grid key, in the order of summary.csv."""

    direction: str
    key: str

    @property
    def text(self) -> str:
        """As a claim says it."""
        return f"{self.direction} over {self.key}"


Relation = Near | Bound | Order | Trend


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One line of a ``.claim`` file."""

    claim_id: str
    metric: str
    aggregate: str | None
    left: Selector
    operator: str | None
    """``/`` or ``-`` between the two sides; None: one side, or an Order."""
    right: Selector | None
    then: tuple[Selector, ...]
    """The rest of a chain of Orders: each side is so related to the next."""
    counted: Bound | None
    """Of an aggregate ``share``: what is counted is 1 where a value is on this side, 0 where it is not."""
    relation: Relation
    every: tuple[str, ...]
    """Keys of ``for every``; empty when it was not written."""
    source: str
    """Where the paper says it."""
    line: int
    """Its line in ``ClaimFile.lines``, from 1."""

    @property
    def pairs(self) -> "list[Claim]":
        """A chain's neighbours as claims of their own; of any other claim, itself."""
        sides = [self.left, *([self.right] if self.right else []), *self.then]
        return (
            [replace(self, left=one, right=other, then=()) for one, other in pairwise(sides)] if self.then else [self]
        )

    @property
    def text(self) -> str:
        """The claim in its normal form, without id and source."""
        words = [self.aggregate or "", self.metric, self.left.text if self.left.texts or self.right else ""]
        if self.right is not None:
            words += [self.operator or self.relation.text, self.right.text]
        for side in self.then:
            words += [self.relation.text, side.text]
        words += [] if self.counted is None else [self.counted.text]
        words += [self.relation.text] if self.right is None or self.operator else []
        words += [f"for every {', '.join(self.every)}"] if self.every else []
        return " ".join(word for word in words if word)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimFile:
    """A parsed ``.claim`` file: its claims, and its lines as they were written."""

    path: Path
    lines: tuple[str, ...]
    claims: tuple[Claim, ...]

    def render(self) -> str:
        """The file again, without evaluations."""
        return "".join(f"{line}\n" for line in self.lines)
