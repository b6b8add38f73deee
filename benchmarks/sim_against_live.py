"""What the simulator predicts of this machine from its profile, beside the live engine: metric, both, error, target.

    python benchmarks/sim_against_live.py --model smollm2-135m          # calibrates first; about 15 minutes on 2 cores
    python benchmarks/sim_against_live.py --profile here.json --only two_instances

Targets: mean TTFT and TPOT within 10 %, their 99th percentiles within 20 %; TTFT of each system's cold start within
10 %. Requests of the first seconds, which find both instances starting, are left out of the open loop's. The machine
should do nothing else. Where others share its memory and cores, its speed drifts: ``--again`` calibrates once more
after the live runs, says how far steps have moved, and takes the mean of both predictions. Exit code 1 when a target is
missed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from aebench.log_format import read_parquet, read_parquet_header
from aebench.logs import RunLog, find_runs
from aebench.metrics import METRICS
from serving.cost.profile import Profile, StepTable
from serving.records import RequestRecord
from serving.units import Seconds

SETTLED: Seconds = 10.0
"""Both instances run by then, and what waited for them has been served."""
TARGETS = {"ttft_mean": 0.10, "tpot_mean": 0.10, "ttft_p99": 0.20, "tpot_p99": 0.20}
"""Of the open loop, relative."""
COLD_TARGET = 0.10
QUIET = 0.05
"""Of a core: what may run beside a measurement."""
EXPERIMENTS = {"two_instances": "live/two_instances", "figure7": "hydraserve/cold_start"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric of one cell of a grid, in both worlds."""

    cell: str
    metric: str
    live: float
    sim: float
    target: float

    @property
    def error(self) -> float:
        """Of the prediction, relative."""
        return self.sim / self.live - 1

    @property
    def holds(self) -> bool:
        """Whether it is within the target."""
        return abs(self.error) <= self.target

    def __str__(self) -> str:
        return (
            f"{self.cell:<34} {self.metric:<10} {self.live:9.4f} {self.sim:9.4f} {self.error:+8.1%}   "
            f"{self.target:4.0%}   {'yes' if self.holds else 'NO'}"
        )


def cpu_time_of_others() -> Seconds:
    """What the machine has computed since it started, but for this process and those that it has waited for; 0 where
    there is no ``/proc/stat``."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.read_text().split(maxsplit=9)[1:9])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy - sum(usage.ru_utime + usage.ru_stime for usage in usages)


def aebench(*arguments: str) -> None:
    """One command; its output goes to ours, with a line when the machine had something else to do."""
    print("\n$ aebench", *arguments, flush=True)
    began, of_others = time.monotonic(), cpu_time_of_others()
    code = subprocess.run([sys.executable, "-m", "aebench", *arguments], check=False).returncode
    share = (cpu_time_of_others() - of_others) / (time.monotonic() - began)
    if share > QUIET:
        print(f"NOT QUIET: meanwhile other processes used {share:.2f} of a core", flush=True)
    if code not in (0, 1):  # 1: a claim failed, which is not what is judged here
        raise SystemExit(code)


def calibrated(out: Path, options: argparse.Namespace) -> Path:
    """A new profile of this machine."""
    aebench("calibrate", "--model", options.model, "--device", options.device, "--out", str(out), "--force")
    return out


def live_run(experiment: str, folder: Path, options: argparse.Namespace) -> RunLog:
    """The newest live run under the folder, or a new one."""
    if not (options.keep and find_runs(folder, experiment)):
        where = ("--backend", "live", "--device", options.device, "--log-path", str(folder))
        aebench("run", experiment, *where, *_settings(options))
    return RunLog.open(find_runs(folder, experiment)[0])


def prediction(experiment: str, profile: Path, folder: Path, options: argparse.Namespace) -> RunLog:
    """The same in virtual time."""
    aebench("run", experiment, "--profile", str(profile), "--log-path", str(folder), *_settings(options))
    return RunLog.open(find_runs(folder, experiment)[0])


def in_between(rows: Sequence[Row]) -> Row:
    """One metric as predicted from several profiles: the mean of them."""
    return replace(rows[0], sim=fmean(row.sim for row in rows))


def drift(before: Path, after: Path) -> str:
    """How far the machine's steps have moved, in words."""
    tables = [Profile.from_json(json.loads(path.read_text())).steps for path in (before, after)]

    def moved(seconds: Callable[[StepTable], Seconds]) -> str:
        first, last = map(seconds, tables)
        return f"{1e3 * first:.1f} -> {1e3 * last:.1f} ms ({last / first - 1:+.0%})"

    return (
        f"\nCalibrated before and after: a decode of one sequence {moved(lambda table: table.decode[0][1])}, "
        f"a prompt of 128 tokens {moved(lambda table: table.prefill_time(128))}"
    )


def _settings(options: argparse.Namespace) -> list[str]:
    return [*(argument for each in options.settings for argument in ("--set", each)), "--runs", str(options.runs)]


def open_loop(live: RunLog, sim: RunLog) -> Iterator[Row]:
    """Each metric of each rate, over the requests of all seeds."""
    found = [_settled(log) for log in (live, sim)]
    for cell, requests in found[0].items():
        for metric, target in TARGETS.items():
            values = [METRICS[metric](each) for each in (requests, found[1][cell])]
            yield Row(cell=cell, metric=metric, live=values[0], sim=values[1], target=target)


def cold_starts(live: RunLog, sim: RunLog) -> Iterator[Row]:
    """Mean TTFT of each cell, over all seeds."""
    keys = list(live.manifest.grid_keys)
    found = [log.summary().groupby(keys, sort=False)["ttft_mean"].mean().reset_index() for log in (live, sim)]
    merged = found[0].merge(found[1], on=keys, suffixes=("_live", "_sim"))
    for row in merged.to_dict("records"):
        cell = str(row["system"]) if "system" in row else " ".join(str(row[key]) for key in keys)
        values = {world: float(row[f"ttft_mean_{world}"]) for world in ("live", "sim")}
        yield Row(cell=cell, metric="ttft_mean", target=COLD_TARGET, **values)


def _settled(log: RunLog) -> dict[str, list[RequestRecord]]:
    found: dict[str, list[RequestRecord]] = {}
    for path in sorted(log.points_folder.glob("*.parquet")):
        cell = " ".join(map(str, read_parquet_header(path).keys.values()))
        requests = [record for record in read_parquet(path, (RequestRecord,)) if isinstance(record, RequestRecord)]
        found.setdefault(cell, []).extend(request for request in requests if request.arrived_at >= SETTLED)
    return found


def report(name: str, rows: Sequence[Row]) -> bool:
    """Print a table; whether every target holds."""
    print(f"\n{name:<34} metric          live       sim    error   target   within")
    for row in rows:
        print(row)
    print(f"{sum(row.holds for row in rows)} of {len(rows)} within the target")
    return all(row.holds for row in rows)


TABLES: dict[str, Callable[[RunLog, RunLog], Iterator[Row]]] = {"two_instances": open_loop, "figure7": cold_starts}


def main() -> int:
    """Calibrate, run, predict, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="checkpoint to calibrate with")
    parser.add_argument("--profile", type=Path, help="take this one instead of calibrating")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--runs", type=int, default=1, help="seeds")
    parser.add_argument("--only", choices=sorted(EXPERIMENTS), help="one of the two experiments")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="as of aebench run; with --only")
    parser.add_argument("--log-path", type=Path, help="keep the logs here")
    parser.add_argument("--again", action="store_true", help="calibrate after the live runs as well")
    parser.add_argument("--keep", action="store_true", help="take the newest live run under --log-path, if any")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.log_path or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        profiles = [options.profile or calibrated(folder / "profile.json", options)]
        names = [options.only] if options.only else list(EXPERIMENTS)
        live = {name: live_run(EXPERIMENTS[name], folder / "live", options) for name in names}
        if options.again:
            profiles.append(calibrated(folder / "profile-after.json", options))
        results: dict[str, list[Row]] = {}
        for name in names:
            logs = [
                prediction(EXPERIMENTS[name], each, folder / f"sim-{i}", options) for i, each in enumerate(profiles)
            ]
            tables = [list(TABLES[name](live[name], log)) for log in logs]
            results[name] = [in_between(rows) for rows in zip(*tables, strict=True)]
        if options.again:
            print(drift(*profiles))
    held = [report(name, rows) for name, rows in results.items()]
    return 0 if all(held) else 1


if __name__ == "__main__":
    raise SystemExit(main())
