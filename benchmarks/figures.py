"""Wall time of whole ``aebench`` commands from a cold process, and the peak memory of a worker.

    python benchmarks/figures.py --repeats 5    # about 2 min

Every command is a fresh interpreter that writes into a folder of its own. The median of the repeats is shown, with the
fastest and the slowest; a first start that only warms the file cache is not counted.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MB = 1e6
KIB = 1024
POLL_SECONDS = 0.02
MEMORY_CEILING = 300 * MB
WORKER = b"spawn_main"
"""In the command line of a worker, from the moment that it is no copy of its parent any more."""
OUTCOMES = (0, 1)
"""Exit codes of a run that went through: 1 says that a claim failed, which is a result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """An ``aebench`` command and the wall seconds it may take."""

    arguments: tuple[str, ...]
    ceiling: float
    writes: bool = True
    """Whether it takes ``--log-path``."""

    @property
    def name(self) -> str:
        """As typed."""
        return " ".join(("aebench", *self.arguments))


class CommandFailed(RuntimeError):
    """A command that ended otherwise than it should."""


COMMANDS = (
    Command(arguments=("--help",), ceiling=0.2, writes=False),
    Command(arguments=("run", "hello"), ceiling=20.0),
    Command(arguments=("run", "figure7"), ceiling=60.0),
    Command(arguments=("run", "figure8"), ceiling=60.0),
)
WEIGHED = Command(arguments=("run", "figure7", "--jobs", "1"), ceiling=60.0)


def start(command: Command, folder: str) -> "subprocess.Popen[bytes]":
    """The command as a process of its own."""
    arguments = [sys.executable, "-m", "aebench", *command.arguments]
    if command.writes:
        arguments += ["--log-path", folder]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the end; a command that did not go through raises with its last line."""
    _, errors = process.communicate()
    if process.returncode not in OUTCOMES:
        lines = errors.decode(errors="replace").strip().splitlines() or ["(no message)"]
        raise CommandFailed(f"exit code {process.returncode}: {lines[-1]}")


def wall_time(command: Command) -> float:
    """Seconds from start to exit."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        finish(start(command, folder))
        return time.perf_counter() - began


def peak_of_workers(process_id: int) -> int:
    """Bytes that the largest worker has had resident at most so far (Linux)."""
    children = Path(f"/proc/{process_id}/task/{process_id}/children")
    peak = 0
    for child in children.read_text().split():
        try:
            if WORKER not in Path(f"/proc/{child}/cmdline").read_bytes():
                continue
            status = Path(f"/proc/{child}/status").read_text()
        except OSError:  # it has ended in between
            continue
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                peak = max(peak, int(line.split()[1]) * KIB)
    return peak


def worker_memory(command: Command) -> int:
    """Peak bytes of a worker process of the command, looked at while it runs."""
    peak = 0
    with tempfile.TemporaryDirectory() as folder:
        process = start(command, folder)
        while process.poll() is None:
            try:
                peak = max(peak, peak_of_workers(process.pid))
            except OSError:  # the command itself has just ended
                break
            time.sleep(POLL_SECONDS)
        finish(process)
    return peak


def line(name: str, times: Sequence[float], ceiling: float) -> str:
    """Median and spread of some times."""
    median = statistics.median(times)
    verdict = "" if median <= ceiling else "   OVER"
    return f"{name:<28} {median:8.3f} s   ({min(times):.3f} to {max(times):.3f})   at most {ceiling:g} s{verdict}"


def main() -> int:
    """Measure and print; exit code 1 when a command fails or takes more than it may."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed starts of each command (default: 5)")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats: held {options.repeats}, expected at least 1")
    passed = True
    for command in COMMANDS:
        try:
            times = [wall_time(command) for _ in range(1 + options.repeats)][1:]
        except CommandFailed as error:
            print(f"{command.name:<28} failed: {error}", flush=True)
            passed = False
            continue
        print(line(command.name, times, command.ceiling), flush=True)
        passed &= statistics.median(times) <= command.ceiling
    if os.path.exists("/proc/self/status"):
        peak = worker_memory(WEIGHED)
        print(f"{'worker of figure7':<28} {peak / MB:8.0f} MB peak   at most {MEMORY_CEILING / MB:.0f} MB")
        passed &= peak <= MEMORY_CEILING
    else:
        print(f"{'worker of figure7':<28} skipped: peak memory is read from /proc, which is not here")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
