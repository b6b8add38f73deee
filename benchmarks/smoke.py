"""The floors of kernel, engine and scheduler, quickly, for CI: exit code 1 when one is missed by more than 2x.

    python benchmarks/smoke.py                  # under 10 s

Machines of CI are shared and differ, hence the slack; ``kernel.py``, ``engine.py``, ``scheduler.py`` measure properly.
"""

import sys

import engine
import kernel
import scheduler

SLACK = 2.0
NUM_EVENTS = 128_000
NUM_REQUESTS = 800
REPEATS = 3
NUM_INSTANCES = 256
SIMULATED = 0.5  # seconds


def main() -> int:
    """Measure, print, and judge."""
    found = kernel.rates(NUM_EVENTS, REPEATS) + engine.rates(engine.JUDGED_BATCH, NUM_REQUESTS, REPEATS)
    found += scheduler.rates(NUM_INSTANCES, SIMULATED)
    for rate in found:
        print(rate)
    missed = [rate for rate in found if rate.misses(SLACK)]
    for rate in missed:
        print(f"Error: {rate.name} is more than {SLACK:g}x below its floor", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
