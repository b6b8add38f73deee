"""Re-derive the calibrated parameters of experiments/hydraserve/calibration.toml.

    python benchmarks/calibrate_hydraserve.py            # about 10 minutes; prints the [[parameter]] values

Least squares on the relative errors of the declared calibration points, and of nothing else, each simulated with
several seeds. Parameters are bounded below by 0, fetch rates above by the NIC's line rate. The first start is the
present values, further ones are scattered around them, since the longest path through a cold start changes with the
parameters and least squares may stop at such kinks.
"""

import argparse
import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from aebench.calibration import Calibration
from aebench.execute import execute
from aebench.experiment import Experiment
from aebench.metrics import summarise
from aebench.point import Point
from serving.records import RequestRecord

ROOT = Path(__file__).resolve().parent.parent
FIGURES = {"figure7": "cold_start", "figure8": "breakdown"}
SHORTER = ["workload.output_tokens=1", "workload.prepare_output_tokens=1"]
"""Only TTFT is fitted, so answers may be short."""

LINE_RATE = 2.0
"""GB/s of the testbed's 16 Gbps NICs: no fetch is faster."""


def paper_points(figure: str) -> dict[tuple[str, ...], float]:
    """The paper's TTFT by grid keys."""
    with (ROOT / "figures" / "hydraserve" / f"{figure}.csv").open() as file:
        return {
            tuple(v for k, v in row.items() if k not in ("ttft_mean", "source")): float(row["ttft_mean"])
            for row in csv.DictReader(file)
        }


def targets(calibration: Calibration, seeds: Iterable[int]) -> list[tuple[str, list[Point], float]]:
    """Group name, the point with every seed, and the paper's TTFT, for each point that a parameter names."""
    assert calibration.file is not None
    named = {name for parameter in calibration.file.parameter for name in parameter.points}
    found = []
    for figure, name in FIGURES.items():
        path = ROOT / "experiments" / "hydraserve" / f"{name}.toml"
        experiment = Experiment.read(path, calibration, settings=SHORTER)
        paper = paper_points(figure)
        for cell in experiment.cells():
            key = tuple(str(value) for value in cell.values())
            if calibration.uses(f"hydraserve/{figure}", cell) and key in paper:
                group = group_of(calibration, figure, cell)
                if group not in named:
                    continue
                spec = experiment.resolve(cell)
                points = [Point(experiment=experiment.experiment_id, keys=cell, seed=seed, spec=spec) for seed in seeds]
                found.append((group, points, paper[key]))
    return found


def group_of(calibration: Calibration, figure: str, cell: dict[str, Any]) -> str:
    """The name in [points] that the cell belongs to."""
    assert calibration.file is not None
    for name, group in calibration.file.points.items():
        wanted = {k: v if isinstance(v, list) else [v] for k, v in group.keys.items()}
        if group.figure == figure and all(cell.get(key) in values for key, values in wanted.items()):
            return name
    raise ValueError(f"{figure} {cell} is in no group")


def simulated(points: list[Point], names: list[str], values: Iterable[float]) -> float:
    """Mean TTFT over seeds with the parameters at these values."""
    found = []
    for point in points:
        for name, value in zip(names, values, strict=True):
            _, server, *tables, key = name.split(".")
            table: Any = point.spec["servers"][server]
            for part in tables:
                table = table[part]
            table[key] = float(value)
        records: list[Any] = []
        execute(point, records.append)
        requests = [record for record in records if isinstance(record, RequestRecord)]
        found.append(summarise(requests, point.spec)["ttft_mean"])
    return fmean(found)


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="simulations per calibration point")
    parser.add_argument("--gpu", choices=("a10", "v100"), action="append", help="only this GPU's server")
    parser.add_argument("--starts", type=int, default=4, help="starts of the search; 0 only evaluates")
    arguments = parser.parse_args()
    calibration = Calibration.read(ROOT / "experiments" / "hydraserve" / "calibration.toml")
    assert calibration.file is not None
    wanted = targets(calibration, range(arguments.seeds))
    for gpu in arguments.gpu or ("a10", "v100"):
        parameters = [p for p in calibration.file.parameter if p.name.startswith(f"server.{gpu}")]
        names = [parameter.name for parameter in parameters]
        mine = [target for target in wanted if target[0].startswith(gpu)]

        def errors(values: Any, names: list[str] = names, mine: Any = mine) -> Any:
            return np.array([simulated(points, names, values) / paper - 1 for _, points, paper in mine])

        values = np.array([parameter.value for parameter in parameters])
        if arguments.starts:
            values = np.round(fitted(errors, values, names, arguments.starts), 3)
        for name, value in zip(names, values, strict=True):
            print(f"{name} = {value:.3f}")
        left = errors(values)
        for group in dict.fromkeys(name for name, _, _ in mine):
            own = [abs(error) for error, (name, _, _) in zip(left, mine, strict=True) if name == group]
            print(f"residual {group} = {fmean(own):.4f}   worst {max(own):.4f}   n {len(own)}")


def fitted(errors: Callable[[Any], Any], present: Any, names: list[str], num_starts: int) -> Any:
    """The values that leave the least sum of squared errors, over all starts."""
    upper = np.array([LINE_RATE if name.endswith(".fetch_gb_s") else np.inf for name in names])
    scatter = np.random.default_rng(0).lognormal(0.0, 0.3, (num_starts, len(names)))
    scatter[0] = 1.0
    fits = [
        least_squares(
            errors,
            np.minimum(present * factor, 0.99 * upper),
            bounds=(0.0, upper),
            x_scale=present,
            diff_step=0.03,
            max_nfev=20,
        )
        for factor in scatter
    ]
    print("cost per start", " ".join(f"{found.cost:.5f}" for found in fits))
    return min(fits, key=lambda found: float(found.cost)).x


if __name__ == "__main__":
    main()
