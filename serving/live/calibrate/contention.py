"""Contention: what steps cost each other that instances of one machine compute at once."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

from serving.core.clock import FlowBody, spawn
from serving.core.instance import Instance
from serving.live.calibrate.bench import Bench
from serving.live.calibrate.fit import Measurements
from serving.live.calibrate.shapes import Shape
from serving.units import Seconds

CONTENDING = (Shape.decode(1), Shape.decode(4), Shape.prompt(128))
"""In order of rows: from what waits for memory to what computes."""


@dataclass(slots=True, eq=False)
class Contention:
    """Times of steps beside others over their times alone, which come before and after, within seconds: the speed of a
    machine may drift, and each ratio should hold two times of the same minute."""

    bench: Bench
    busy_time: Seconds
    rounds: int
    found: Measurements
    tell: Callable[[str], None]

    def everything(self, instances: Sequence[Instance]) -> FlowBody:
        """Each pair of steps on two instances; then the same step on three and more."""
        for number in range(2, len(instances) + 1):
            self.tell(f"{number} instances at once")
            ratios: dict[Shape, list[float]] = {shape: [] for shape in CONTENDING}
            for _ in range(self.rounds):
                for shapes in self._together(number):
                    found = yield from self._ratios(list(zip(instances, shapes, strict=False)))
                    if len(dict.fromkeys(shapes)) == 1:
                        ratios[shapes[0]] += found
                    if number == 2:
                        for pair, ratio in zip((shapes, shapes[::-1]), found, strict=True):
                            self.found.pairs.setdefault((pair[0], pair[1]), []).append(ratio)
            self.found.ratios.append(ratios)

    def _together(self, number: int) -> list[tuple[Shape, ...]]:
        """What so many instances compute."""
        if number == 2:
            return list(combinations_with_replacement(CONTENDING, 2))
        return [(shape,) * number for shape in CONTENDING]

    def _ratios(self, work: Sequence[tuple[Instance, Shape]]) -> FlowBody:
        """Of each instance's step: its time beside the others over its time alone."""
        before, after = [], []
        for each in work:
            before += yield from self._busy([each])
        together = yield from self._busy(work)
        for each in work:
            after += yield from self._busy([each])
        return [2 * all_ / (first + last) for first, all_, last in zip(before, together, after, strict=True)]

    def _busy(self, work: Sequence[tuple[Instance, Shape]]) -> FlowBody:
        """Mean step time of each of some instances that compute side by side."""
        ends_at = self.bench.clock.now + self.busy_time
        times: list[list[Seconds]] = [[] for _ in work]

        def loop(index: int) -> FlowBody:
            instance, shape = work[index]
            while True:
                took = yield from self.bench.step(instance, shape)
                if self.bench.clock.now > ends_at and times[index]:
                    return
                times[index].append(took)

        yield from [spawn(self.bench.clock, loop(index)) for index in range(len(work))]
        return [statistics.fmean(each) for each in times]
