"""How much the start of a Python process with heavy imports varies on an otherwise idle machine.

    python benchmarks/process_start.py --runs 30

Starts a fresh interpreter again and again, one at a time, and times it from start to exit, after some
starts that only warm the file cache. The coefficient of variation is what the simulator may take as
the jitter of start-up stages; the robust one tells whether single outliers made it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

NUM_WARM_UPS = 3
IMPORTS = "import numpy, scipy.stats, pandas, matplotlib.pyplot, pyarrow"
MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Measured times in seconds, and how far they spread."""

    num_runs: int
    load_average: float
    """Of the last minute, before the first start."""
    mean: float
    standard_deviation: float
    cv: float
    median: float
    p90: float
    robust_cv: float

    def __str__(self) -> str:
        return (
            f"{self.num_runs} starts, load average before: {self.load_average:.2f}\n"
            f"mean                {self.mean:.4f} s\n"
            f"standard deviation  {self.standard_deviation:.4f} s\n"
            f"CV                  {self.cv:.4f}\n"
            f"median              {self.median:.4f} s\n"
            f"p90                 {self.p90:.4f} s\n"
            f"robust CV           {self.robust_cv:.4f}"
        )


def start_time() -> float:
    """Seconds from starting an interpreter to its exit."""
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", IMPORTS],
        check=True,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
    )
    return time.perf_counter() - begin


def spread(times: list[float], load_average: float) -> Spread:
    """The summary of at least two times."""
    mean, median = statistics.fmean(times), statistics.median(times)
    deviation = statistics.stdev(times)
    median_deviation = statistics.median(abs(time - median) for time in times)
    return Spread(
        num_runs=len(times),
        load_average=load_average,
        mean=mean,
        standard_deviation=deviation,
        cv=deviation / mean,
        median=median,
        p90=statistics.quantiles(times, n=10, method="inclusive")[-1],
        robust_cv=MAD_TO_SIGMA * median_deviation / median,
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=30, help="starts to time, at least 2 (default: 30)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    options = parser.parse_args()
    if options.runs < 2:
        parser.error(f"--runs: held {options.runs}, expected at least 2")
    load_average = os.getloadavg()[0]
    try:
        times = [start_time() for _ in range(NUM_WARM_UPS + options.runs)][NUM_WARM_UPS:]
    except subprocess.CalledProcessError as error:
        print(f"Error: '{IMPORTS}' failed: {error.stderr.decode().strip().splitlines()[-1]}", file=sys.stderr)
        return 2
    result = spread(times, load_average)
    print(json.dumps(asdict(result)) if options.json else result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
