"""What the GPU benchmarks print: rates by way and batch size, notes, and how long each part took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median


@dataclass(slots=True)
class Table:
    """Rates by column and batch size."""

    rates: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def add(self, column: str, batch_size: int, rate: float) -> None:
        """One measurement, in tokens/s."""
        self.rates.setdefault(column, {}).setdefault(batch_size, []).append(rate)
        say(f"  {column:<24} batch {batch_size:<4} {rate:>9.0f} tokens/s")

    def note(self, line: str) -> None:
        """Something to repeat at the end."""
        say(line)
        self.lines.append(line)

    def __str__(self) -> str:
        sizes = sorted({size for found in self.rates.values() for size in found})
        rows = [f"{'output tokens/s at batch':<26}" + "".join(f"{size:>10}" for size in sizes)]
        for column, found in self.rates.items():
            cells = [f"{median(found[size]):.0f}" if size in found else "-" for size in sizes]
            rows.append(f"{column:<26}" + "".join(f"{cell:>10}" for cell in cells))
        return "\n".join([*self.lines, *rows])


def say(line: str) -> None:
    """Print at once: a run that is cut off has shown what it had."""
    print(line, flush=True)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Says how long a part took."""
    start = time.perf_counter()
    yield
    say(f"[{name}: {time.perf_counter() - start:.1f} s]")
