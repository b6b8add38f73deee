"""What scheduling costs at 16 to 1,024 instances: Llumnix's decisions, and how long a step waits for its scheduler.

    python benchmarks/scheduler.py                   # 1 minute; a table
    python benchmarks/scheduler.py --write           # and scheduler.csv beside it, docs/images/scheduler.png
    python benchmarks/scheduler.py --instances 16

Instances compute nothing: a step takes ``STEP`` whatever is in it, and KV moves in no time. What is left is code that
decides. Load per instance is the same at every size, and memory is so short that a part of the instances always has to
give sequences away. Times are CPU seconds of this process, means over all decisions of a kind: what an idle core takes.
"""

import argparse
import csv
import gc
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import count
from pathlib import Path
from random import Random
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, cast
from unittest.mock import patch

from measure import Rate, best_time
from scheduler_free import FreeCompute, FreeTransport, Watched, Watches
from scheduler_messages import messages
from scheduler_stall import INTERVAL, RATE, STEP, centralized, draw
from scheduler_stall import llumnix as apart

from serving.core.cluster import Cluster, Deployment
from serving.core.instance import Phase
from serving.core.request import Request
from serving.cost.engine import EngineCosts
from serving.cost.models import MODELS
from serving.cost.startup import StartupCosts
from serving.policies import configured, llumnix_board
from serving.policies.llumnix import Llumnix
from serving.policies.llumnix_scaling import missing, share_of
from serving.records import Record
from serving.serve import Setup, build_control, simulated_backend
from serving.testbed import ServerKind, Testbed
from serving.units import GB, Gbps, Seconds

SIZES = (16, 64, 256, 1024)
MODEL = "llama-7b"
TOKENS = range(64, 193)
"""Of prompts, and of answers."""
NUM_BLOCKS = 168
"""KV blocks of an instance: about a fifth more than its sequences have in the mean."""
READY_AT: Seconds = 0.01
"""When all instances are there, which the first request has asked for."""
WARM_UP: Seconds = 1.0
GPUS_PER_SERVER = 4
REPEATS = 3
NUMBERS = Path(__file__).with_suffix(".csv")
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "scheduler.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of one size of cluster: CPU seconds of each kind of decision, and how the decisions were."""

    num_instances: int
    dispatch: Seconds
    """Of one request by freeness, without the reports."""
    report: Seconds
    """An instance looks at its own load."""
    pairing: Seconds
    """One migration tick over all instances, without the reports."""
    scaling: Seconds
    """One check of how many instances there should be, without the reports."""
    step: Seconds
    """Fold one step's tokens into its sequences and plan the next: what a centralized scheduler does for every step of
    every instance, and a llumlet for its own."""
    exchange: Seconds
    """Send a step to an instance's process and receive its tokens."""
    send_report: Seconds
    receive_report: Seconds
    reports_per_dispatch: float
    migrations_per_tick: float
    sequences_per_step: float


def setup_of(num_instances: int) -> Setup:
    """So many instances, on servers that start in no time."""
    free = StartupCosts(
        container=0.0, libraries=0.0, context=0.0, engine=0.0, first_step=0.0, engine_load_rate=1 * GB, jitter=0.0
    )
    kind = ServerKind(
        name="server",
        gpu="a10",
        num_gpus=GPUS_PER_SERVER,
        gpu_memory=22 * GB,
        dram=752 * GB,
        nic_rate=64 * Gbps,
        fetch_rate=8 * GB,
        pcie_rate=10 * GB,
        startup=free,
        engine=EngineCosts(kv_blocks=NUM_BLOCKS),
    )
    num_servers = -(-num_instances // GPUS_PER_SERVER)
    policy = {
        "num_instances": num_instances,
        "max_instances": 2 * num_instances,
        "interval": INTERVAL,
        "scheduler_down_from": 0.0,  # what is there at the beginning is dealt out by turns
        "scheduler_down_until": 2 * READY_AT,
    }
    return Setup(
        testbed=Testbed(servers=((kind, num_servers),), num_stores=1, store_nic_rate=64 * Gbps, exclusive=True),
        system=configured("llumnix", policy),
        deployments=(Deployment(model=MODEL, spec=MODELS[MODEL], size=13.5 * GB, ttft_slo=60.0, tpot_slo=1.0),),
        seed=0,
    )


def requests_of(num_instances: int, seconds: Seconds) -> Iterator[tuple[Seconds, Request]]:
    """As many as are running in the mean, with what is left of their answers; then Poisson arrivals."""
    random = Random("benchmark/requests")
    num_there = round(num_instances * RATE * fmean(TOKENS) * STEP)
    at = 0.0
    for number in count():
        at = READY_AT if number == 1 else at
        if number >= num_there:
            at += random.expovariate(RATE * num_instances)
        if at >= seconds:
            return
        num_output = random.choice(TOKENS)
        num_output = random.randint(1, num_output) if number < num_there else num_output
        yield (
            at,
            Request(
                request_id=number,
                model=MODEL,
                num_prompt_tokens=random.choice(TOKENS),
                num_output_tokens=num_output,
            ),
        )


def costs_of(num_instances: int, seconds: Seconds) -> Costs:
    """Measured in a run of so many simulated seconds after the warm-up."""
    setup, watches = setup_of(num_instances), Watches()
    clock, ports = simulated_backend(setup.testbed, setup.seed)
    ports = replace(ports, executor=FreeCompute(clock, watches), transport=cast("Any", FreeTransport(clock)))
    control = build_control(setup, ports, _drop)
    control.controller = Watched(cast("Llumnix", control.controller), watches)
    for at, request in requests_of(num_instances, WARM_UP + seconds):
        clock.call_at(at, control.arrive, request)
    with patch.object(llumnix_board, "report_of", watches.report_of):
        control.start()
        clock.run(until=WARM_UP)
        watches.start()
        gc.freeze()
        clock.run(until=WARM_UP + seconds)
        gc.unfreeze()
    sequences_per_step = watches.num_sequences / watches.submits.count
    return Costs(
        num_instances=num_instances,
        dispatch=watches.dispatches.mean,
        report=watches.reports.mean,
        pairing=watches.ticks.mean,
        scaling=scaling_of(control.cluster, setup),
        step=watches.steps.mean,
        reports_per_dispatch=watches.dispatches.num_inside / watches.dispatches.count,
        migrations_per_tick=watches.num_migrations / watches.ticks.count,
        sequences_per_step=sequences_per_step,
        **asdict(messages(round(sequences_per_step))),
    )


def scaling_of(cluster: Cluster, setup: Setup) -> Seconds:
    """A check that finds instances missing: every one is asked for its share, and as many empty ones are added in
    thought as bring the average to the low end."""
    config = setup.system.config
    ready = list(cluster.instances_of(MODEL, Phase.READY))

    def check() -> int:
        return missing([share_of(instance, config.rule) for instance in ready], config.scale_range)

    if not check():
        raise RuntimeError("no instance is missing: the check would be over at once")
    return best_time(check, REPEATS)


def _drop(record: Record) -> None:
    del record


def rates(num_instances: int, seconds: Seconds) -> list[Rate]:
    """Decisions of each kind a second, with floors for 256 instances: ten times what such a cluster asks for."""
    costs = costs_of(num_instances, seconds)
    found = {
        "dispatches": (costs.dispatch, 20_000),
        "load reports": (costs.report, 200_000),
        "migration ticks": (costs.pairing, 500),
        "scaling checks": (costs.scaling, 500),
    }
    return [
        Rate(name=f"{name} at {num_instances} instances", unit="times", per_second=1 / cost, floor=floor)
        for name, (cost, floor) in found.items()
    ]


def table(found: list[Costs]) -> str:
    """In Markdown: microseconds of decisions, milliseconds of waits."""
    lines = [
        "| instances | dispatch | load report | migration tick | scaling check | a step | its messages "
        "| stall: centralized | Llumnix |",
        "|---" * 9 + "|",
    ]
    for costs in found:
        decisions = (costs.dispatch, costs.report, costs.pairing, costs.scaling, costs.step, costs.exchange)
        micro = " | ".join(f"{float(f'{1e6 * cost:.3g}'):,g} µs" for cost in decisions)
        waits = (centralized(costs).step, apart(costs).step)
        milli = " | ".join(f"{1e3 * wait:.3g} ms" for wait in waits)
        lines.append(f"| {costs.num_instances:,} | {micro} | {milli} |")
    return "\n".join(lines)


def write(found: list[Costs]) -> None:
    """The numbers and the figure."""
    with NUMBERS.open("w", newline="") as file:
        rows = csv.DictWriter(file, [each.name for each in fields(Costs)], lineterminator="\n")
        rows.writeheader()
        rows.writerows({key: f"{value:.4g}" for key, value in asdict(costs).items()} for costs in found)
    picture(found)


def read() -> list[Costs]:
    """The numbers that were written last."""
    with NUMBERS.open(newline="") as file:
        rows = [{key: float(text) for key, text in row.items()} for row in csv.DictReader(file)]
    return [Costs(**{**row, "num_instances": int(row["num_instances"])}) for row in rows]


def picture(found: list[Costs]) -> None:
    """The figure."""
    with TemporaryDirectory() as folder:
        draw(found, Path(folder) / PICTURE.stem)
        shutil.copyfile(Path(folder) / PICTURE.name, PICTURE)


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--instances", type=int, nargs="+", default=SIZES, help="sizes of clusters")
    parser.add_argument("--seconds", type=float, default=2.0, help="simulated, of each run (default: 2)")
    parser.add_argument("--write", action="store_true", help=f"write {NUMBERS.name} and {PICTURE.name} as well")
    parser.add_argument("--draw", action="store_true", help=f"measure nothing, draw {NUMBERS.name} again")
    options = parser.parse_args()
    if options.draw:
        picture(read())
        return
    found = []
    for size in options.instances:
        found.append(costs_of(size, options.seconds))
        print(found[-1], flush=True)
    print(table(found))
    if options.write:
        write(found)


if __name__ == "__main__":
    main()
