"""An experiment with a breakdown: a folder that declares it, and a log of records made by hand."""

from dataclasses import dataclass
from pathlib import Path

from aebench.catalog import Catalog
from aebench.logs import RunLog
from aebench.point import Point
from aebench.point_log import PointWriter
from aebench.run_manifest import RunManifest
from aebench.tables import table_frames
from serving.records import DecisionRecord, PauseRecord, Record, RequestRecord, StageRecord, WorkerRecord
from tests.aebench.checkout import Checkout, make_checkout
from tests.aebench.fake_execute import make_decision, make_request, make_stage

EXPERIMENT = """
title   = "Two models of each of two applications"
testbed = "testbed_ii"
cache_gb = { a10x4 = 567, v100x4 = 182 }

[workload]
kind     = "open_loop"
arrivals = { kind = "poisson", rate = 1.0 }
prompt   = { kind = "fixed", tokens = 8 }
output   = { kind = "fixed", tokens = 8 }

[measure]
slo        = ["ttft"]
token_gaps = false
breakdown  = ["application", "model"]

[grid]
system = ["serverless_vllm", "hydraserve"]
cv     = [8, 4.0]

[when.cv."8"]
[when.cv."4.0"]
workload.first_after = 1.0

[deployments."llama2-7b-chatbot"]
architecture = "llama2-7b"
size_gb = 13
ttft_slo = 7.5
tpot_slo = 0.2
copies = 2
application = "chatbot"
[deployments."llama2-7b-code"]
architecture = "llama2-7b"
size_gb = 13
ttft_slo = 7.5
tpot_slo = 0.084
copies = 2
application = "code"
"""
BY_APPLICATION = """
shows      = "attainment by application"
experiment = "toy"
table      = "by_application"
where      = { cv = 4 }
plot       = { kind = "bars", x = "application", series = "system", y = "slo_attainment" }
paper      = "apps.csv"
"""
APPS_CSV = """application,system,slo_attainment,source
chatbot,hydraserve,0.5,here
code,hydraserve,0.8,here
"""
APPS_CLAIM = """c1 slo_attainment [application=chatbot] > [application=code] for every system  # here
"""
RATIO = """
shows      = "TPOT of each model"
experiment = "toy"
table      = "by_model"
where      = { cv = 8 }
ratio      = { key = "system", of = "hydraserve", to = "serverless_vllm" }
plot       = { kind = "bars", x = "model", series = "application", y = "tpot" }
"""
RATIO_CLAIM = """c1 mean tpot in 1.0..2.0x              # here
c2 share gpu_memory_time <= 1x >= 50%   # here
c3 num_requests = 1x                    # here: both systems got the same requests
"""
ATTAINMENT = """
shows      = "attainment"
experiment = "toy"
plot       = { kind = "bars", x = "cv", series = "system", y = "slo_attainment" }
"""
ATTAINMENT_CLAIM = """c1 slo_attainment [system=serverless_vllm] <= [system=hydraserve] for every cv  # here
"""
FILES = {
    "experiments/hydraserve/toy.toml": EXPERIMENT,
    "figures/hydraserve/apps.toml": BY_APPLICATION,
    "figures/hydraserve/apps.csv": APPS_CSV,
    "figures/hydraserve/apps.claim": APPS_CLAIM,
    "figures/hydraserve/penalty.toml": RATIO,
    "figures/hydraserve/penalty.claim": RATIO_CLAIM,
    "figures/hydraserve/attained.toml": ATTAINMENT,
    "figures/hydraserve/attained.claim": ATTAINMENT_CLAIM,
}


def make_toy(folder: Path) -> Checkout:
    """A checkout that has the experiment ``toy`` and its figures too."""
    checkout = make_checkout(folder)
    for name, text in FILES.items():
        (checkout.root / name).write_text(text)
    return checkout


def request(request_id: int, model: str, ttft: float, tokens: int = 11, tpot: float = 0.1) -> RequestRecord:
    """A request that arrives when its id says, is dispatched after half its TTFT, and finishes."""
    at = float(request_id)
    return make_request(
        request_id,
        model=model,
        label=model.split("/")[0].rpartition("-")[2],
        arrived_at=at,
        dispatched_at=at + ttft / 2,
        first_token_at=at + ttft,
        finished_at=at + ttft + (tokens - 1) * tpot,
        num_output_tokens=tokens,
        token_gaps=(),
        ttft_slo=7.5,
        tpot_slo=0.25,
    )


def worker(model: str, memory: float, start: float, end: float | None, **changes: float | int | None) -> WorkerRecord:
    """A worker process of so many GB."""
    fields = {"instance": 0, "rank": 0, "ready_at": None, "last_busy_at": None, **changes}
    return WorkerRecord(
        model=model,
        server="s0",
        gpu="s0/gpu0",
        memory=memory * 1e9,
        started_at=start,
        ended_at=end,
        **fields,  # type: ignore[arg-type]  # checked by the dataclass
    )


def decision(action: str, **changes: bool) -> DecisionRecord:
    """A decision of a kind."""
    return DecisionRecord(at=0.0, hook="arrival", action=action, detail="", **changes)  # type: ignore[arg-type]


def pause(seconds: float) -> PauseRecord:
    """A pause of so many seconds."""
    return PauseRecord(
        request_id=0, instance=0, paused_at=1.0, resumed_at=1.0 + seconds, num_bytes=1e6, reason="kv migration"
    )


def stage(name: str, start: float, end: float) -> StageRecord:
    """A stage of a worker."""
    return make_stage(stage=name, started_at=start, ended_at=end)


CHAT0, CHAT1, CODE0 = "llama2-7b-chatbot/0", "llama2-7b-chatbot/1", "llama2-7b-code/0"


def records(slow: float) -> list[Record]:
    """Four requests to three models; 40 + 1 * (10 + 30) + 20 + 4 = 104 GB·s of workers with a grace period of 30 s."""
    return [
        request(0, CHAT0, 4.0 * slow, tokens=11, tpot=0.1 * slow),
        request(1, CHAT0, 2.0 * slow, tokens=31, tpot=0.2 * slow),
        request(2, CHAT1, 4.0 * slow, tpot=0.1 * slow),
        request(3, CODE0, 9.0, tpot=0.1 * slow),
        worker(CHAT0, 5, 0.0, 8.0),
        worker(CHAT0, 1, 0.0, None, ready_at=5.0, last_busy_at=10.0),
        worker(CHAT1, 10, 0.0, 2.0),
        worker(CODE0, 4, 3.0, 4.0),
        decision("launch", from_cache=False),
        decision("launch", from_cache=True),
        make_decision(),
        decision("refuse"),
        stage("fetch", 0.0, 50.0),
        stage("consolidation", 1.0, 4.0),
        pause(0.25),
        pause(0.75),
    ]


@dataclass(frozen=True, slots=True)
class Logged:
    """A log of the toy experiment."""

    checkout: Checkout
    log: RunLog
    points: list[Point]


def make_logged(checkout: Checkout) -> Logged:
    """A finished run: HydraServe is 1.5 times as slow as serverless vLLM at CV 8, as fast at CV 4."""
    experiment = Catalog(checkout.root).experiment("hydraserve/toy")
    points = experiment.points([0])
    log = RunLog.create(
        checkout.logs,
        RunManifest(
            experiment="hydraserve/toy",
            spec={"grid": {key: list(values) for key, values in experiment.file.grid.items()}},
            seeds=(0,),
            backend="sim",
            grid_keys=experiment.grid_keys,
            figures=(),
            argv=(),
            num_points=len(points),
            scale="paper",
            settings=(),
        ),
    )
    for point in points:
        is_slow = point.keys == {"system": "hydraserve", "cv": 8}
        with PointWriter(log.points_folder, point) as writer:
            for record in records(1.5 if is_slow else 1.0):
                writer.write(record)
            writer.seal()
    for name, frame in table_frames(log, points).items():
        log.write_table(name, frame)
    log.update(status="success")
    return Logged(checkout, log, points)
