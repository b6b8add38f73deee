"""Rates of a piece of work, measured in this process's own CPU time, so that neighbours on the machine count little."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How much work a second of one core does, beside what is asked of it."""

    name: str
    unit: str
    per_second: float
    floor: float | None = None
    """What design and CI ask for; None: shown only."""

    def misses(self, slack: float = 1.0) -> bool:
        """Whether the floor is missed by more than a factor of ``slack``."""
        return self.floor is not None and self.per_second * slack < self.floor

    def __str__(self) -> str:
        floor = "" if self.floor is None else f"   floor {self.floor:>12,.0f}   {self.per_second / self.floor:5.2f}x"
        return f"{self.name:<34} {self.per_second:>14,.0f} {self.unit}/s{floor}"


def best_time(work: Callable[[], object], repeats: int) -> float:
    """Least CPU seconds of some runs: noise only ever adds."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)
