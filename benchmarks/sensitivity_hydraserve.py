"""What Figure 7's errors rest on: change one modelling choice at a time, without fitting anew, and compare.

    python benchmarks/sensitivity_hydraserve.py            # about 1 minute; a table in Markdown

Errors are over the bars that were not used for calibration, and, apart, over those that were.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import fmean
from typing import Any
from unittest.mock import patch

from aebench.catalog import Catalog
from aebench.execute import execute
from aebench.metrics import summarise
from aebench.point import Point
from serving.core.stages import StageGraph
from serving.policies import hydraserve, serverlessllm
from serving.records import RequestRecord

Errors = tuple[list[float], list[float]]
"""Relative errors of predicted and of calibration bars."""


def as_declared(spec: Any) -> None:
    """Change nothing."""
    del spec


def errors(seeds: range, change: Callable[[Any], None] = as_declared) -> Errors:
    """Every bar that the paper printed, simulated with the resolved spec changed."""
    catalog = Catalog()
    (declared,) = catalog.resolve(["hydraserve/figure7"])
    experiment = catalog.experiment(declared.experiment_id, settings=["workload.output_tokens=1"])
    points = catalog.figure(declared, experiment).paper_points
    assert points is not None
    paper = {(row.gpu, row.model, row.system): row.ttft_mean for row in points.itertuples()}
    calibration = catalog.calibration(declared.paper)
    predicted: list[float] = []
    calibrated: list[float] = []
    for cell in experiment.cells():
        place = (cell["gpu"], cell["model"], cell["system"])
        if place in paper:
            spec = copy.deepcopy(experiment.resolve(cell))
            change(spec)
            error = fmean(ttft(Point(experiment="", keys=cell, seed=seed, spec=spec)) for seed in seeds) / paper[place]
            (calibrated if calibration.uses(declared.figure_id, cell) else predicted).append(error - 1)
    return predicted, calibrated


def ttft(point: Point) -> float:
    """The point's TTFT, as Figure 7 measures it."""
    records: list[Any] = []
    execute(point, records.append)
    requests = [record for record in records if isinstance(record, RequestRecord)]
    return summarise(requests, point.spec)["ttft_mean"]


def set_startup(key: str, value: float) -> Callable[[Any], None]:
    """Set one start-up number of every server."""

    def change(spec: Any) -> None:
        for server in spec["servers"].values():
            server["startup"][key] = value

    return change


def line_rate(spec: Any) -> None:
    """Let fetches have all of the NIC."""
    for server in spec["servers"].values():
        server["fetch_gb_s"] = server["nic_gbps"] / 8


def in_step(spec: Any) -> None:
    """Send requests at whole multiples of the gap after answers."""
    spec["workload"]["phase"] = 0.0


@contextmanager
def context_in_series() -> Iterator[None]:
    """HydraServe makes the CUDA context after the imports."""
    built = hydraserve.start_graph

    def serial(config: hydraserve.HydraServeConfig) -> StageGraph:
        stages = built(config).stages
        return StageGraph(stages=tuple(replace(s, after=("libraries",)) if s.name == "context" else s for s in stages))

    with patch.object(hydraserve, "start_graph", serial):
        yield


@contextmanager
def fetch_when_scheduled() -> Iterator[None]:
    """ServerlessLLM's store starts the fetch with the instance."""
    stages = serverlessllm.STORE_START.stages
    early = tuple(replace(stage, after=()) if stage.name == "fetch" else stage for stage in stages)
    with patch.object(serverlessllm, "STORE_START", StageGraph(stages=early)):
        yield


@contextmanager
def no_loops() -> Iterator[None]:
    """ServerlessLLM's store and load balancer act at once."""
    stages = tuple(replace(stage, period=1e-9 if stage.period else 0.0) for stage in serverlessllm.STORE_START.stages)
    with patch.object(serverlessllm, "STORE_START", StageGraph(stages=stages)):
        yield


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="simulations per bar")
    seeds = range(parser.parse_args().seeds)
    print("| change | predicted: MAPE | bias | worst | calibration: MAPE |\n|---|---|---|---|---|")
    _show("none", errors(seeds))
    _show("no jitter", errors(seeds, set_startup("jitter", 0.0)))
    _show("jitter 0.12", errors(seeds, set_startup("jitter", 0.12)))
    _show("clients in step with the ticks", errors(seeds, in_step))
    _show("fetches at line rate", errors(seeds, line_rate))
    for name, changed in (
        ("HydraServe: context after the imports", context_in_series),
        ("ServerlessLLM: fetch when scheduled", fetch_when_scheduled),
        ("ServerlessLLM: no waits for store and balancer", no_loops),
    ):
        with changed():
            _show(name, errors(seeds))


def _show(name: str, found: Errors) -> None:
    predicted, calibrated = found
    worst = max(predicted, key=abs)
    print(
        f"| {name} | {100 * fmean(map(abs, predicted)):.1f} % | {100 * fmean(predicted):+.1f} % "
        f"| {100 * worst:+.1f} % | {100 * fmean(map(abs, calibrated)):.1f} % |",
        flush=True,
    )


if __name__ == "__main__":
    main()
