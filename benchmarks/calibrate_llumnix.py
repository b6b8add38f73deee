"""Re-derive the calibrated parameters of experiments/llumnix/calibration.toml.

    python benchmarks/calibrate_llumnix.py            # a second; prints the [[parameter]] values and what they leave
    python benchmarks/calibrate_llumnix.py --serving  # a minute; the older engine's step as well

As many points of Figure 10 as parameters, each on the level of a mechanism: two decode steps and two copies of
LLaMA-7B, a decode step beside a copy, and of LLaMA-30B a decode step, a prefill and a copy. They are solved for
exactly, in turn; what the same parameters say about the figure's other points is printed as prediction. Figure 11 and
the later ones were made with an older engine; what its steps take longer is set by one simulated point of Figure 11.
"""

import argparse
import csv
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from aebench.calibration import Calibration
from aebench.execute import execute, server_kind
from aebench.experiment import Experiment
from aebench.llumnix_metrics import decode
from aebench.testbed_tables import TestbedsFile, take_after
from aebench.toml_files import check, read_toml
from serving.core.model import ModelSpec
from serving.core.plan import chunk_pairs
from serving.core.worker import Worker
from serving.cost.engine import EngineCosts, num_messages
from serving.cost.gpus import GPUS
from serving.cost.models import MODELS
from serving.cost.roofline import forward_time
from serving.records import Record, RequestRecord
from serving.testbed import Testbed, build_inventory
from serving.units import GB, Bytes, Seconds, Tokens, ms

ROOT = Path(__file__).resolve().parent.parent
BATCH_TOKENS: Tokens = 8192
"""Of the decode steps: sequences of one length that add up to this."""
LENGTHS: tuple[Tokens, ...] = (256, 512, 1024, 2048, 4096, 8192)
OLDER = "a10x4_v01"
"""The server with the older engine."""
SERVERS = {"llama-7b": "a10x4", "llama-30b": "a10x4_tp4"}
Points = dict[tuple[str, str, Tokens], Seconds]
"""The paper's values by model, method and sequence length."""


def paper_points(figure: str) -> Points:
    """The paper's points of one half of Figure 10."""
    with (ROOT / "figures" / "llumnix" / f"{figure}.csv").open() as file:
        return {
            (row["architecture"], row["method"], int(row["seq_len"])): float(
                row.get("downtime_mean") or row["decode_step"]
            )
            for row in csv.DictReader(file)
        }


@dataclass(frozen=True)
class Engine:
    """A model on one server, with the parameters found so far."""

    model: ModelSpec
    worker: Worker
    costs: EngineCosts

    def decode(self, seq_len: Tokens, *, copying: bool = False) -> Seconds:
        """A decode step of sequences that add up to the batch."""
        size = BATCH_TOKENS // seq_len
        terms = self.costs.terms(self.model, self.worker, size, size, copying=copying)
        return terms.time(forward_time(self.model, self.worker, size, BATCH_TOKENS), BATCH_TOKENS)

    def prefill(self, seq_len: Tokens) -> Seconds:
        """A step of one prompt."""
        terms = self.costs.terms(self.model, self.worker, seq_len, 1)
        return terms.time(forward_time(self.model, self.worker, seq_len, 0, chunk_pairs(seq_len, 0)), 0)

    def copy(self, seq_len: Tokens) -> Seconds:
        """All KV of a sequence, to another instance."""
        assert self.costs.copy_rate is not None
        return self.costs.copy_delay(self.worker) + self.kv(seq_len) / self.costs.copy_rate

    def kv(self, num_tokens: Tokens) -> Bytes:
        """Bytes of so many tokens' KV."""
        return num_tokens * self.model.kv_bytes_per_layer * self.model.num_layers

    def changed(self, **costs: Any) -> "Engine":
        """With other parameters, rounded as they are declared: times to 0.1 us, the rest to four digits."""
        rounded = {
            key: round(value / GB, 4) * GB if key.endswith("_rate") else round(value, 7 if value < 0.01 else 4)
            for key, value in costs.items()
        }
        return replace(self, costs=replace(self.costs, **rounded))


def bare(model: str) -> Engine:
    """The model's engine with nothing calibrated."""
    path = ROOT / "experiments" / "llumnix" / "testbeds.toml"
    file = check(TestbedsFile, take_after(read_toml(path), str(path)), path)
    name, spec = SERVERS[model], MODELS[model]
    kind = server_kind(name, file.server[name].model_dump(), 0.0)
    machines = build_inventory(Testbed(servers=((kind, 1),), num_stores=1, store_nic_rate=GB, exclusive=True))
    server, layers = machines.servers[0], range(spec.num_layers)
    worker = Worker(
        rank=0,
        server=server,
        gpu=server.gpus[0],
        memory=kind.gpu_memory,
        layers=layers,
        tensors=spec.stage_tensors(layers),
        from_cache=False,
    )
    assert kind.engine is not None
    return Engine(spec, worker, kind.engine)


def fit_7b(downtime: Points, step: Points) -> Engine:
    """From decode steps with 32 sequences and with one, from the shortest and the longest copy, and from a decode step
    beside the longest."""
    engine = bare("llama-7b")
    many, one = (step["llama-7b", "normal", seq_len] for seq_len in (256, 8192))
    engine = engine.changed(sequence=(many - one) / (BATCH_TOKENS // 256 - 1))
    context = one - engine.prefill(1)  # what all but reading KV takes: a step of one token
    per_byte = context / engine.kv(BATCH_TOKENS)
    engine = engine.changed(kv_read_share=1 / (per_byte * GPUS[engine.worker.gpu.kind].memory_bandwidth))
    short, long = (downtime["llama-7b", "blocking", seq_len] for seq_len in (256, 8192))
    rate = engine.kv(8192 - 256) / (long - short)
    message = (short - engine.kv(256) / rate) / num_messages(engine.worker)
    return engine.changed(copy_rate=rate, copy_message=message, copy_slowdown=step["llama-7b", "migration", 8192] / one)


def fit_30b(downtime: Points, step: Points, small: Engine) -> Engine:
    """What is LLaMA-30B's own: all-reduces, their latency from a decode step with 32 sequences, their rate from the
    longest prefill, and the rate of copies that four GPUs send at once from the longest."""
    mine = bare("llama-30b")
    inherited = replace(small.costs, tensor_parallel=mine.costs.tensor_parallel, kv_blocks=mine.costs.kv_blocks)
    engine = replace(mine, costs=inherited)
    num_reduces = 2 * engine.model.num_layers
    latency = (step["llama-30b", "normal", 256] - engine.decode(256)) / num_reduces
    reduced = num_reduces * 8192 * engine.model.hidden * engine.model.bytes_per_value
    left = downtime["llama-30b", "recompute", 8192] - engine.prefill(8192)
    engine = engine.changed(all_reduce=latency, all_reduce_rate=reduced / left)
    left = downtime["llama-30b", "blocking", 8192] - engine.costs.copy_delay(engine.worker)
    return engine.changed(copy_rate=engine.kv(8192) / left)


def mean_decode(step: Seconds) -> Seconds:
    """Mean decode latency of the declared point of Figure 11 when steps take so much longer."""
    folder = ROOT / "experiments" / "llumnix"
    experiment = Experiment.read(folder / "serving.toml", Calibration.read(folder / "calibration.toml"))
    wanted = {"trace": "l-l", "rate": 2.6, "system": "infaas++"}
    (point,) = [point for point in experiment.points([0]) if point.keys == wanted]
    point.spec["servers"][OLDER]["engine"]["step"] = step
    records: list[Record] = []
    execute(point, records.append)
    found = (decode(record) for record in records if isinstance(record, RequestRecord))
    return fmean(value for value in found if value is not None)


def fit_step() -> Seconds:
    """The older engine's step, on a grid of 0.2 ms: the one that comes nearest to the paper's mean."""
    with (ROOT / "figures" / "llumnix" / "figure11.csv").open() as file:
        (paper,) = [
            float(row["decode_mean"])
            for row in csv.DictReader(file)
            if (row["trace"], float(row["rate"]), row["system"]) == ("l-l", 2.6, "infaas++")
        ]
    found = {tenths: mean_decode(tenths / 10 * ms) for tenths in range(48, 61, 2)}
    nearest = min(found, key=lambda tenths: abs(found[tenths] - paper))
    print(f"{OLDER} step = {nearest / 1e4:.4f}   residual {abs(found[nearest] / paper - 1):.4f}")
    return nearest / 10 * ms


def predictions(engine: Engine, figure: str) -> dict[tuple[str, Tokens], Seconds]:
    """What the cost model alone says about a half of the figure, by method and length; downtimes of live migrations
    come of the mechanism as well."""
    if figure == "figure10a":
        by_method = {"blocking": engine.copy, "recompute": engine.prefill}
    else:
        by_method = {"normal": engine.decode, "migration": lambda seq_len: engine.decode(seq_len, copying=True)}
    return {(method, seq_len): fn(seq_len) for method, fn in by_method.items() for seq_len in LENGTHS}


def report(calibration: Calibration, engines: dict[str, Engine], points: dict[str, Points]) -> None:
    """Parameters, then every point with its error."""
    for model, engine in engines.items():
        for key in ("sequence", "kv_read_share", "all_reduce", "copy_message", "copy_slowdown"):
            print(f"{SERVERS[model]} {key} = {getattr(engine.costs, key):.7g}")
        for key in ("all_reduce_rate", "copy_rate"):
            rate = getattr(engine.costs, key)
            print(f"{SERVERS[model]} {key} = {'none' if rate is None else f'{rate / GB:.4f} GB/s'}")
    for figure, paper in points.items():
        for model, engine in engines.items():
            report_errors(calibration, figure, engine, {key: value for key, value in paper.items() if key[0] == model})


def report_errors(calibration: Calibration, figure: str, engine: Engine, paper: Points) -> None:
    """One model's points of a half of the figure, and the mean error of those that set nothing."""
    misses, model = [], engine.model.slug
    for (method, seq_len), value in predictions(engine, figure).items():
        error = value / paper[model, method, seq_len] - 1
        used = calibration.uses(f"llumnix/{figure}", {"architecture": model, "method": method, "seq_len": seq_len})
        misses += [] if used else [abs(error)]
        label = "calibration" if used else "prediction"
        print(f"{figure} {model} {method} {seq_len}: {1e3 * value:.1f} ms  {100 * error:+.1f} %  {label}")
    print(f"{figure} {model}: predictions miss by {100 * fmean(misses):.1f} %, at worst {100 * max(misses):.1f} %")


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serving", action="store_true", help="fit the older engine's step as well")
    arguments = parser.parse_args()
    points = {figure: paper_points(figure) for figure in ("figure10a", "figure10b")}
    small = fit_7b(points["figure10a"], points["figure10b"])
    engines = {"llama-7b": small, "llama-30b": fit_30b(points["figure10a"], points["figure10b"], small)}
    if arguments.serving:
        fit_step()
    report(Calibration.read(ROOT / "experiments" / "llumnix" / "calibration.toml"), engines, points)


if __name__ == "__main__":
    main()
