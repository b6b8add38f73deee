"""Reads ``.claim`` files: what a paper asserts, one claim a line.

    claim     = id [aggregate] metric value relation ["for every" key {"," key}] "#" source
              | id "share" metric value sign quantity relation [...] "#" source      of the groups on that side
    value     = [selector] | [selector] ("/" | "-") selector
    selector  = "[" {key "=" text {"|" text}} "]"                  none: all rows
    relation  = "=" quantity [tolerance]
              | ("=" | "in") number ".." quantity [tolerance]
              | sign quantity
              | sign selector {sign selector}                                a chain, all of its signs alike
              | ("increasing" | "decreasing") "over" key
    sign      = ">" | ">=" | "<" | "<="
    quantity  = ["-"] number ["s" | "ms" | "x" | "%" | "pp"]
    tolerance = ("±" | "+-") number unit                           %: relative to the paper's number
    aggregate = "mean" | "geomean" | "median" | "min" | "max"      over the matched groups

``share gpu_memory_time <= 1x >= 85%``: of the groups at least 85 % have a value of at most 1.

``#`` begins a comment; the comment behind a claim is its source and may not be missing. A line that
begins with ``->`` is an evaluation of the line above and is dropped, so measured files parse too.
"""

import math
import re
from pathlib import Path
from typing import NoReturn

from aebench.claim_syntax import (
    AGGREGATES,
    DIMENSIONS,
    RESULT_MARK,
    SIGNS,
    UNITS,
    Bound,
    Claim,
    ClaimFile,
    Near,
    Order,
    Quantity,
    Relation,
    Selector,
    Trend,
    key_text,
)
from aebench.errors import SpecError

_UNIT_NAMES = ", ".join(unit for unit in UNITS if unit)
_RELATIONS = f"a relation: =, in, {', '.join(SIGNS)}, increasing over or decreasing over"
_BEHIND_A_NUMBER = ("for", "in", "increasing", "decreasing")
"""Words that may follow a number without being its unit."""
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<selector>\[[^\[\]]*\])
      | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
      | (?P<word>[^\W\d]\w*(?:[.-]\w+)*)
      | (?P<mark>±|\+-|\.\.|>=|<=|[-/=<>,%])
      | (?P<stray>\S)
    )""",
    re.VERBOSE | re.ASCII,
)
_SELECTION = re.compile(r"(?P<key>[^\W\d][\w.-]*)=(?P<texts>[^\s|=,]+(?:\|[^\s|=,]+)*)", re.ASCII)


def parse(text: str, path: Path) -> ClaimFile:
    """The claims of a file's text; SpecError names the line, the word found and what was expected."""
    lines: list[str] = []
    claims: list[Claim] = []
    seen: dict[str, int] = {}
    for number, written in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        if written.lstrip().startswith(RESULT_MARK):
            continue
        lines.append(written.rstrip())
        body, _, source = written.partition("#")
        if not body.strip():
            continue
        claim = _Reader(body, source.strip(), number, path).claim(len(lines))
        earlier = seen.setdefault(claim.claim_id, number)
        if earlier != number:
            message = f"found a second claim '{claim.claim_id}', expected another id than on line {earlier}"
            raise SpecError(path, f"line {number}", message)
        claims.append(claim)
    return ClaimFile(path=path, lines=tuple(lines), claims=tuple(claims))


class _Reader:
    """Reads one claim from left to right; each method consumes what it is named for."""

    def __init__(self, body: str, source: str, line: int, path: Path) -> None:
        self.source = source
        self.line = line
        self.path = path
        self.tokens = [(match.lastgroup or "", match[match.lastgroup or 0]) for match in _TOKEN.finditer(body)]
        self.tokens.append(("end", "the end of the claim"))
        self.at = 0

    def claim(self, line: int) -> Claim:
        claim_id = self.take("word", "an id such as c1")
        aggregate = self.accept(*AGGREGATES)
        metric = self.take("word", "a metric such as ttft_mean")
        left = self.selector() if self.kind == "selector" else Selector({})
        operator = self.accept("/", "-")
        right = self.selector() if operator else None
        counted = self.counted(operator) if aggregate == "share" else None
        relation = self.relation(None if counted else operator)
        then: list[Selector] = []
        if isinstance(relation, Order):
            if counted:
                self.fail("a number that the share is compared with")
            right = self.selector()
            while self.accept(relation.sign):
                then.append(self.selector())
            if self.token in SIGNS:
                self.fail(f"{relation.sign} as before it, because the signs of a chain are alike")
        every = self.every() if self.accept("for") else ()
        if self.kind != "end":
            self.fail("'for every' with keys, or '#' and the source")
        if not self.source:
            self.fail("'#' and the source of the claim, such as # Fig. 7a")
        return Claim(
            claim_id=claim_id,
            aggregate=aggregate,
            metric=metric,
            left=left,
            operator=operator,
            right=right,
            then=tuple(then),
            counted=counted,
            relation=relation,
            every=every,
            source=self.source,
            line=line,
        )

    def selector(self) -> Selector:
        inside = self.take("selector", "a selector such as [system=hydraserve]")[1:-1]
        texts: dict[str, tuple[str, ...]] = {}
        for part in re.sub(r"\s*([=|])\s*", r"\1", inside).split():
            match = _SELECTION.fullmatch(part)
            if match is None:
                self.fail("key=value or key=value|value, separated by blanks", found=part)
            if match["key"] in texts:
                self.fail("each key once in a selector", found=part)
            texts[match["key"]] = tuple(dict.fromkeys(key_text(text) for text in match["texts"].split("|")))
        return Selector(texts)

    def counted(self, operator: str | None) -> Bound:
        sign = self.accept(*SIGNS) or self.fail(f"what the share is of: {', '.join(SIGNS)} and a number")
        return Bound(sign, self.quantity(operator))

    def relation(self, operator: str | None) -> Relation:
        if self.accept("in"):
            return self.near(operator, must_be_range=True)
        if self.accept("="):
            return self.near(operator, must_be_range=False)
        if sign := self.accept(*SIGNS):
            if self.kind == "selector" and operator is None:
                return Order(sign)
            return Bound(sign, self.quantity(operator))
        if direction := self.accept("increasing", "decreasing"):
            self.expect("over")
            return Trend(direction, self.take("word", "the grid key that it runs over"))
        return self.fail(_RELATIONS)

    def near(self, operator: str | None, must_be_range: bool) -> Near:
        first = self.number()
        if must_be_range or self.token == "..":
            self.expect("..")
            high = self.quantity(operator)
            low = Quantity(first, high.unit)
        else:
            low = high = Quantity(first, self.unit(operator))
        if low.number > high.number:
            self.fail("the lower end first", found=f"{low.number:.12g}..{high.number:.12g}")
        return Near(low, high, self.tolerance(high) if self.accept("±", "+-") else None)

    def tolerance(self, value: Quantity) -> Quantity:
        if self.token == "-":
            self.fail("a number")
        tolerance = Quantity(self.number(), self.unit(None))
        if tolerance.unit != "%" and DIMENSIONS[tolerance.unit] != DIMENSIONS[value.unit]:
            self.fail("a tolerance in % of the value, or in the unit of the value", found=f"±{tolerance.text}")
        return tolerance

    def quantity(self, operator: str | None) -> Quantity:
        return Quantity(self.number(), self.unit(operator))

    def number(self) -> float:
        sign = -1.0 if self.accept("-") else 1.0
        text = self.take("number", "a number")
        if math.isinf(float(text)):
            self.fail("a finite number", found=text)
        return sign * float(text)

    def unit(self, operator: str | None) -> str:
        if self.token != "%" and (self.kind != "word" or self.token in _BEHIND_A_NUMBER):
            return ""
        if self.token not in UNITS:
            self.fail(f"a unit ({_UNIT_NAMES}) or none")
        if operator == "/" and DIMENSIONS[self.token] == "time":
            self.fail("x, % or no unit, because a ratio has no unit of time")
        return self.advance()

    def every(self) -> tuple[str, ...]:
        self.expect("every")
        keys = [self.take("word", "a grid key")]
        while self.accept(","):
            keys.append(self.take("word", "a grid key"))
        return tuple(keys)

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0]

    @property
    def token(self) -> str:
        return self.tokens[self.at][1]

    def advance(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1][1]

    def accept(self, *texts: str) -> str | None:
        return self.advance() if self.token in texts else None

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self.fail(f"'{text}'")

    def take(self, kind: str, expected: str) -> str:
        if self.kind != kind:
            self.fail(expected)
        return self.advance()

    def fail(self, expected: str, found: str | None = None) -> NoReturn:
        if found is None and self.token == "[":
            expected = "a closing ']' before the end or the next '['"
        what = f"'{found or self.token}'" if found or self.kind != "end" else self.token
        raise SpecError(self.path, f"line {self.line}", f"found {what}, expected {expected}")
