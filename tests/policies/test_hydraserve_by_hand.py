"""One cold start of Llama2-13B on the testbed of the end-to-end experiment, reckoned like a spreadsheet.

Two workers, one of them with memory for the whole model: choice, start, pipeline, consolidation, warm steps, end.
Nothing of the engine is used to reckon: numbers of the model and the machines are repeated here.
"""

from dataclasses import replace
from itertools import pairwise
from math import ceil, floor

import pytest

from serving.cost.startup import StartupCosts
from serving.policies import SYSTEMS
from serving.policies.hydraserve import HydraServeConfig
from serving.records import DecisionRecord, PauseRecord, StageRecord, WorkerRecord
from serving.testbed import ServerKind, Testbed
from serving.units import GB, Gbps
from tests.build import Outcome, make_deployment, make_requests, run, sent

A10X4 = ServerKind(
    name="a10x4", gpu="a10", num_gpus=4, gpu_memory=22 * GB, dram=752 * GB, nic_rate=64 * Gbps, fetch_rate=7.82 * GB,
    pcie_rate=10.541 * GB, cache=567 * GB,
    startup=StartupCosts(
        container=0.255, libraries=3.111, context=0.878, engine=1.215, first_step=0.171, engine_load_rate=3.923 * GB,
        jitter=0.0,
    ),
)  # fmt: skip
V100X4 = ServerKind(
    name="v100x4", gpu="v100", num_gpus=4, gpu_memory=32 * GB, dram=368 * GB, nic_rate=16 * Gbps, fetch_rate=1.766 * GB,
    pcie_rate=6.203 * GB, cache=182 * GB,
    startup=StartupCosts(
        container=1.704, libraries=3.83, context=2.782, engine=2.273, first_step=0.121, engine_load_rate=2.15 * GB,
        jitter=0.0,
    ),
)  # fmt: skip
TESTBED_II = Testbed(
    servers=((A10X4, 2), (V100X4, 4)), num_stores=6, store_nic_rate=32 * Gbps, exclusive=False, assignment="best_fit"
)
ADAPTIVE = replace(SYSTEMS["hydraserve"], config=HydraServeConfig(sizing="adaptive"))

ARRIVED, PROMPT, OUTPUT = 0.25, 512, 400

# Llama2-13B: 40 layers of hidden size 5120, FFN 13824, vocabulary 32000, fp16; norms of two vectors a layer.
LAYER = 2.0 * (4 * 5120**2 + 3 * 5120 * 13824 + 2 * 5120)
HEAD = 2.0 * 32000 * 5120
MLP_MATRIX = 2.0 * 5120 * 13824
HALF = HEAD + 20 * LAYER  # either half: embedding and layers, or layers and head
KV_LAYER = 2.0 * 2 * 5120  # bytes a token


def forward(
    *, flops_rate: float, memory_rate: float, share: float, weights: float, layers: int, rows: int, context: int
) -> float:
    """Half of the peak arithmetic and three quarters of the peak bandwidth, whichever takes longer."""
    pairs = rows * (rows + 1) // 2 if rows > 1 else 1 + context
    flops = weights * rows + 4 * 5120 * layers * pairs
    moved = weights + context * layers * KV_LAYER
    return max(flops / (flops_rate * 0.5), moved / (memory_rate * 0.75)) / share


def on_v100(weights: float, layers: int, rows: int, context: int) -> float:
    """All of the GPU: 30 GB leave 2, which are taken as well."""
    return forward(
        flops_rate=125e12, memory_rate=900e9, share=1.0, weights=weights, layers=layers, rows=rows, context=context
    )


def on_a10(rows: int, context: int) -> float:
    """15 of 22 GB are 68 %, floored to 65."""
    return forward(
        flops_rate=125e12, memory_rate=600e9, share=0.65, weights=HALF, layers=20, rows=rows, context=context
    )


def piped(rows: int, context: int) -> float:
    return on_v100(HALF, 20, rows, context) + 0.001 + on_a10(rows, context)


class Sheet:
    """The columns, from left to right."""

    def __init__(self) -> None:
        # rank 0, V100: the fetch has 1.766 GB/s from the decision on and is the slowest; one tensor is copied behind it
        self.fetched_0 = ARRIVED + HALF / 1.766e9
        self.loaded_0 = self.fetched_0 + MLP_MATRIX / 6.203e9
        ready_0 = max(ARRIVED + 1.704 + 3.83, self.loaded_0) + 2.273
        # rank 1, A10: two stores give 7.82 GB/s; the copy is never short of bytes once the context is there
        self.fetched_1 = ARRIVED + HALF / 7.82e9
        self.loaded_1 = ARRIVED + 0.255 + 0.878 + HALF / 10.541e9
        ready_1 = max(ARRIVED + 0.255 + 3.111, self.loaded_1) + 1.215
        self.ready = max(ready_0, ready_1)
        # the prompt, with the kernels of either stage loaded on the way; then a token a step, one step in flight
        self.tokens = [self.ready + piped(PROMPT, 0) + 0.121 + 0.171]
        # the next turn of the loop begins to fetch the other half, the head last
        self.begun = floor(self.ready) + 1.0
        self.rest_fetched = self.begun + HALF / 1.766e9
        self.asked = self.rest_fetched + HEAD / 6.203e9
        while self.tokens[-1] < self.asked:
            self.tokens.append(self.tokens[-1] + piped(1, PROMPT + len(self.tokens) - 1))
        self.num_piped = len(self.tokens)
        # what is in flight ends; the blocks of the last 20 layers go over the NIC, then it runs on one GPU
        self.frozen = self.tokens[-1]
        self.moved = ceil((PROMPT + self.num_piped - 1) / 16) * 16 * KV_LAYER * 20
        self.switched = self.frozen + self.moved / 1.766e9
        at = self.switched
        while len(self.tokens) < OUTPUT:
            at += on_v100(2 * HALF, 40, 1, PROMPT + len(self.tokens) - 1)
            self.tokens.append(at)
        self.retired = floor(at + 30.0) + 1.0


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    deployment = make_deployment("llama2-13b", ttft_slo=12.0)
    (request,) = make_requests(1, PROMPT, OUTPUT, model="llama2-13b")
    return run(ADAPTIVE, sent([(ARRIVED, request)], linger=60.0), deployment, testbed=TESTBED_II)


def exactly(value: float) -> object:
    return pytest.approx(value, rel=0, abs=1e-6)


def stage(outcome: Outcome, rank: int, name: str) -> StageRecord:
    (found,) = [r for r in outcome.records if isinstance(r, StageRecord) and (r.rank, r.stage) == (rank, name)]
    return found


def test_two_workers_are_chosen_one_of_them_whole(outcome: Outcome) -> None:
    # one: 25 GB / 2 GB/s + 2 s = 14.5 s > 12; two, one whole: 25 / (2 x 2) + 2 = 8.25. The whole one fits a V100 only,
    # the other goes to the widest NIC.
    launch = next(r for r in outcome.records if isinstance(r, DecisionRecord) and r.action == "launch")
    assert launch.servers == ("v100x4-0", "a10x4-0")
    assert [memory / GB for memory in launch.memory] == [32.0, 15.0]


def test_both_workers_start_as_reckoned(outcome: Outcome) -> None:
    sheet = Sheet()
    assert stage(outcome, 0, "fetch").num_bytes == HALF
    assert stage(outcome, 0, "fetch").ended_at == exactly(sheet.fetched_0)
    assert stage(outcome, 0, "load").ended_at == exactly(sheet.loaded_0)
    assert stage(outcome, 0, "engine").ended_at == exactly(sheet.ready)
    assert stage(outcome, 1, "fetch").ended_at == exactly(sheet.fetched_1)
    assert stage(outcome, 1, "load").ended_at == exactly(sheet.loaded_1)


def test_every_token_comes_when_reckoned(outcome: Outcome) -> None:
    sheet, (record,) = Sheet(), outcome.requests
    assert record.dispatched_at == exactly(sheet.ready)
    assert record.first_token_at == exactly(sheet.tokens[0])
    gaps = [after - before for before, after in pairwise(sheet.tokens)]
    assert list(record.token_gaps) == pytest.approx(gaps, rel=0, abs=1e-6)
    assert record.finished_at == exactly(sheet.tokens[-1])
    assert 1 < sheet.num_piped < OUTPUT  # tokens of both kinds


def test_it_consolidates_as_reckoned(outcome: Outcome) -> None:
    sheet = Sheet()
    assert stage(outcome, 0, "await network").ended_at == exactly(sheet.begun)
    fetch = stage(outcome, 0, "background fetch")
    assert (fetch.started_at, fetch.ended_at) == (exactly(sheet.begun), exactly(sheet.rest_fetched))
    assert stage(outcome, 0, "background load").ended_at == exactly(sheet.asked)
    migration = stage(outcome, 0, "kv migration")
    assert (migration.started_at, migration.ended_at) == (exactly(sheet.frozen), exactly(sheet.switched))
    assert migration.num_bytes == sheet.moved
    (pause,) = [r for r in outcome.records if isinstance(r, PauseRecord)]
    assert (pause.paused_at, pause.resumed_at) == (exactly(sheet.frozen), exactly(sheet.switched))
    whole = stage(outcome, 0, "consolidation")
    assert (whole.started_at, whole.ended_at) == (exactly(sheet.begun), exactly(sheet.switched))


def test_what_it_holds_is_billed_as_planned(outcome: Outcome) -> None:
    sheet = Sheet()
    low, whole = [r for r in outcome.records if isinstance(r, WorkerRecord)]
    assert (low.server, low.memory, whole.server, whole.memory) == ("a10x4-0", 15 * GB, "v100x4-0", 30 * GB)
    assert (low.started_at, low.ended_at) == (ARRIVED, exactly(sheet.switched))
    assert (whole.started_at, whole.last_busy_at) == (ARRIVED, exactly(sheet.tokens[-1]))
    assert whole.ended_at == exactly(sheet.retired)
