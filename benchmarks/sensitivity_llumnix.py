"""What Figure 11 owes to the length of prefills: the same points with all of them longer, nothing fitted anew.

    python benchmarks/sensitivity_llumnix.py               # about 1 minute in 2 processes; a table in Markdown

Seconds, seed 0: as shipped → with longer prefills (paper). The default factor is what Llumnix's prefill latencies at
L-L 2.6 lack, where hardly anything waits.
"""

import argparse
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from unittest.mock import patch

from aebench.catalog import Catalog
from aebench.execute import execute
from aebench.figure import Figure
from aebench.llumnix_metrics import decode
from aebench.metrics import mean_of, percentile_of, ttft
from aebench.point import Point
from serving.core.model import ModelSpec
from serving.core.worker import Worker
from serving.cost.roofline import forward_time
from serving.records import Record, RequestRecord
from serving.sim import pipeline
from serving.units import Seconds, Tokens

Place = tuple[str, float, str]
"""Kind of lengths, rate, system."""
Latencies = list[Seconds]
"""In the order of the metrics."""
PLACES: tuple[Place, ...] = (
    ("l-l", 2.6, "llumnix"),
    ("sharegpt", 7.0, "llumnix"),
    ("sharegpt", 7.5, "llumnix"),
    ("sharegpt", 7.5, "infaas++"),
    ("sharegpt", 8.0, "llumnix"),
    ("sharegpt", 8.0, "infaas++"),
    ("sharegpt", 8.0, "round-robin"),
    ("s-s", 36.0, "llumnix"),
    ("s-s", 36.0, "infaas++"),
    ("l-s", 10.0, "llumnix"),
    ("l-s", 18.0, "llumnix"),
    ("l-l", 3.0, "llumnix"),
    ("l-l", 3.0, "infaas++"),
)
"""The rows."""
METRICS: dict[str, Callable[[Sequence[RequestRecord]], float]] = {
    "prefill_mean": mean_of(ttft),
    "prefill_p99": percentile_of(ttft, 99),
    "decode_p99": percentile_of(decode, 99),
}
"""The columns, by their names in the paper's points; as in ``aebench.llumnix_metrics``."""
NUM_PROCESSES = 2


@contextmanager
def longer_prefills(factor: float) -> Iterator[None]:
    """Simulated forward passes over prompts take so many times as long. Decodes, which are in none of them here, stay
    as they are, and so does what the engine takes for each step and sequence beside the GPU's work."""

    def longer(
        model: ModelSpec, worker: Worker, total_tokens: Tokens, context_tokens: Tokens, chunk_pairs: int = 0
    ) -> Seconds:
        time = forward_time(model, worker, total_tokens, context_tokens, chunk_pairs)
        return time * factor if chunk_pairs else time

    with patch.object(pipeline, "forward_time", longer):
        yield


def latencies(point: Point, factor: float) -> Latencies:
    """The point's latencies when its prefills are so many times as long."""
    records: list[Record] = []
    with longer_prefills(factor):
        execute(point, records.append)
    requests = [record for record in records if isinstance(record, RequestRecord)]
    return [measure(requests) for measure in METRICS.values()]


def figure11() -> tuple[Figure, dict[Place, Point]]:
    """The figure, and its experiment's points with seed 0 by their place."""
    catalog = Catalog()
    (declared,) = catalog.resolve(["llumnix/figure11"])
    experiment = catalog.experiment(declared.experiment_id)
    points = {
        (str(point.keys["trace"]), float(point.keys["rate"]), str(point.keys["system"])): point
        for point in experiment.points([0])
    }
    return catalog.figure(declared, experiment), points


def printed(figure: Figure) -> dict[Place, Latencies]:
    """The paper's latencies."""
    assert figure.paper_points is not None
    return {
        (row["trace"], float(row["rate"]), row["system"]): [row[metric] for metric in METRICS]
        for row in figure.paper_points.to_dict("records")
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factor", type=_factor, default=1.75, help="on the forward passes of prefills (1.75)")
    factor = parser.parse_args().factor
    figure, points = figure11()
    paper = printed(figure)
    names = " | ".join(metric.replace("_p99", " P99").replace("_", " ") for metric in METRICS)
    print(f"| point | system | {names} |\n|---|---|---|---|---|", flush=True)
    with ProcessPoolExecutor(NUM_PROCESSES, multiprocessing.get_context("spawn")) as processes:
        runs = {
            place: [processes.submit(latencies, points[place], times) for times in (1.0, factor)] for place in PLACES
        }
        above: tuple[str, float] | None = None
        for place, (shipped, longer) in runs.items():
            trace, rate, system = place
            name = f"{figure.plot.label(trace)} {rate:g} " if (trace, rate) != above else ""
            cells = zip(shipped.result(), longer.result(), paper[place], strict=True)
            texts = [f"{_text(ours)} → {_text(changed)} ({_text(theirs)})" for ours, changed, theirs in cells]
            print(f"| {name}| {figure.plot.label(system)} | {' | '.join(texts)} |", flush=True)
            above = trace, rate


def _factor(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, such as 1.75")


def _text(value: Seconds) -> str:
    """Three digits, and all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


if __name__ == "__main__":
    main()
