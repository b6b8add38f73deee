"""Serverless traffic of an experiment: who asks which model, the same for every system; files; what is refused."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from aebench.catalog import Catalog
from aebench.deployed_models import tables_by_model
from aebench.execute import deployments
from aebench.experiment import Experiment
from aebench.serverless_workload import SYNTHETIC
from aebench.workload_tables import Trace
from aebench.workloads import timed_requests
from serving.core.request import Request
from serving.units import Seconds
from serving.workload.functions import SyntheticFunctions
from serving.workload.serverless import Replay
from serving.workload.traces import TraceRow, write_trace
from tests.aebench.checkout import Checkout, make_checkout

EXPERIMENT = """
title   = "Serverless traffic of two applications"
testbed = "testbed_i"

[workload]
kind     = "serverless"
duration = 500.0
[workload.trace]
rate = 0.5
cv = 8
days = 2
num_functions = 14
num_invocations = 20_000
[workload.applications.chatbot]
prompt = { kind = "lognormal", mean = 300, sigma = 0.5, max = 512 }
output = { kind = "lognormal", median = 100, sigma = 0.5, max = 512 }
[workload.applications.code]
prompt = { kind = "fixed", tokens = 17 }
output = { kind = "empirical", values = [5, 6] }

[grid]
system = ["serverless_vllm", "hydraserve"]
cv     = [8, 2]

[when.cv.8]
workload.trace.cv = 8
[when.cv.2]
workload.trace.cv = 2

[deployments]
"opt-chat" = { architecture = "opt-2.7b", size_gb = 5, ttft_slo = 9, tpot_slo = 0.2, application = "chatbot", copies=4 }
"opt-6.7b" = { size_gb = 13, ttft_slo = 8.0, tpot_slo = 0.1, application = "code" }
"""
FIGURE = """
shows      = "TTFT of serverless traffic"
experiment = "two_apps"
plot       = { kind = "bars", x = "cv", y = "ttft_mean", series = "system" }
"""
Timed = list[tuple[Seconds, Request]]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A checkout with the experiment ``two_apps`` and a figure of it."""
    made = make_checkout(tmp_path_factory.mktemp("checkout"))
    (made.root / "experiments" / "hydraserve" / "two_apps.toml").write_text(EXPERIMENT)
    (made.root / "figures" / "hydraserve" / "figure99.toml").write_text(FIGURE)
    yield made


def traffic(checkout: Checkout, *settings: str) -> Experiment:
    """The experiment, with settings."""
    return Catalog(checkout.root).experiment("hydraserve/two_apps", settings=settings)


def requests(spec: dict[str, Any], seed: int = 0) -> Timed:
    """What a point's client sends."""
    return list(timed_requests(spec, seed, deployments(spec)))


def test_every_system_is_asked_the_same(checkout: Checkout) -> None:
    points = traffic(checkout).points([0])
    by_cv = {cv: [requests(point.spec) for point in points if point.keys["cv"] == cv] for cv in (8, 2)}
    assert all(first == second for first, second in by_cv.values())
    assert by_cv[8][0] != by_cv[2][0]


def test_a_request_is_like_its_models_application(checkout: Checkout) -> None:
    sent = requests(traffic(checkout).points([0])[0].spec)
    assert len(sent) == 250  # 0.5 a second in 500 s
    assert [request.request_id for _, request in sent] == list(range(250))
    assert [at for at, _ in sent] == sorted(at for at, _ in sent)
    chats = [request for _, request in sent if request.label == "chatbot"]
    codes = [request for _, request in sent if request.label == "code"]
    assert len(chats) + len(codes) == 250
    assert {request.model for request in chats} <= {f"opt-chat/{copy}" for copy in range(4)}
    assert {(request.model, request.ttft_slo, request.tpot_slo) for request in codes} == {("opt-6.7b", 8.0, 0.1)}
    assert {(request.ttft_slo, request.tpot_slo) for request in chats} == {(9.0, 0.2)}
    assert {request.num_prompt_tokens for request in codes} == {17}
    assert {request.num_output_tokens for request in codes} == {5, 6}
    assert max(request.num_prompt_tokens for request in chats) == 512


def test_the_lengths_of_an_application_do_not_move_those_of_another(checkout: Checkout) -> None:
    def chats(*settings: str) -> Timed:
        sent = requests(traffic(checkout, *settings).points([0])[0].spec)
        return [each for each in sent if each[1].label == "chatbot"]

    assert chats() == chats("workload.applications.code.prompt.tokens=99")


def test_applications_of_equal_lengths_draw_them_from_streams_of_their_own(checkout: Checkout) -> None:
    alike = ('kind="lognormal"', "mean=300", "sigma=0.5", "max=512")
    changes = [f"workload.applications.code.prompt.{key}" for key in alike]
    sent = requests(traffic(checkout, *changes).points([0])[0].spec)
    chats, codes = ([r.num_prompt_tokens for _, r in sent if r.label == label] for label in ("chatbot", "code"))
    assert chats[:20] != codes[:20]


def test_another_seed_is_another_trace_unless_the_trace_has_its_own(checkout: Checkout) -> None:
    def busiest(*settings: str) -> list[str]:
        spec = traffic(checkout, *settings).points([0])[0].spec
        counts = [Counter(request.model for _, request in requests(spec, seed)) for seed in range(8)]
        return [count.most_common(1)[0][0] for count in counts]

    assert len(dict.fromkeys(busiest())) > 1
    assert len(dict.fromkeys(busiest("workload.trace.seed=3"))) == 1


def test_shares_fix_the_mix(checkout: Checkout) -> None:
    shares = ("workload.applications.chatbot.share=0.7", "workload.applications.code.share=0.3")
    sent = requests(traffic(checkout, *shares).points([0])[0].spec)
    assert Counter(request.label for _, request in sent) == {"chatbot": 175, "code": 75}


@pytest.mark.parametrize(
    "key", ["diurnal=0", "spike_factor=1", "active_share=0.3", "timer_share=1", "gap_cv_median=3", "stationary=true"]
)
def test_each_part_of_the_structure_can_be_switched(checkout: Checkout, key: str) -> None:
    usual = requests(traffic(checkout).points([0])[0].spec)
    assert requests(traffic(checkout, f"workload.trace.{key}").points([0])[0].spec) != usual


def test_a_file_says_everything_but_missing_slos(checkout: Checkout, tmp_path: Path) -> None:
    rows = [
        TraceRow(arrived_at=1.5, model="opt-chat/3", num_prompt_tokens=8, num_output_tokens=9, label="code"),
        TraceRow(arrived_at=2.5, model="opt-6.7b", num_prompt_tokens=4, num_output_tokens=3, ttft_slo=1.0),
    ]
    write_trace(tmp_path / "two.csv", rows)
    settings = ("workload.trace.kind=file", f"workload.trace.file={tmp_path / 'two.csv'}", "grid.cv=8")
    point = traffic(checkout, *settings).points([0])[0]
    first, second = requests(point.spec)
    assert (first[0], first[1].model, first[1].label, first[1].ttft_slo) == (1.5, "opt-chat/3", "code", 9.0)
    assert (second[0], second[1].model, second[1].ttft_slo, second[1].tpot_slo) == (2.5, "opt-6.7b", 1.0, 0.1)
    write_trace(tmp_path / "two.csv", rows[:1])
    assert traffic(checkout, *settings).points([0])[0].digest != point.digest


def test_it_runs(checkout: Checkout) -> None:
    result = checkout.run("figure99", "--set", "workload.duration=60")
    assert result.exit_code == 0, result.output
    assert "hydraserve/figure99" in result.output


def test_copies_are_in_the_order_of_tables_and_then_of_copies() -> None:
    assert list(tables_by_model({"a": {"copies": 2}, "b": {}, "c": {"copies": 1}})) == ["a/0", "a/1", "b", "c/0"]


SPOILT = [
    (
        'kind     = "serverless"',
        'kind = "serverles"',
        "workload.kind: expected 'cold_requests', 'open_loop', 'serverless' or 'batches', got 'serverles'",
    ),
    ("[workload.trace]\nrate = 0.5", "[workload.trace]", "workload.trace.rate: missing: kind = 'synthetic' needs it"),
    (
        "rate = 0.5",
        "rat = 0.5",
        "workload.trace.rat: unknown key. Did you mean rate? Known: active_share, compression, cv, "
        "days, diurnal, file, gap_cv_median, gap_cv_sigma, kind, num_functions, num_invocations, "
        "peak_hour, rate, rate_cap, rate_sigma, seed, spike_factor, spike_length, stationary, "
        "timer_cv, timer_share, window",
    ),
    ("rate = 0.5", 'kind = "file"', "workload.trace.file: missing: kind = 'file' needs it"),
    (
        "duration = 500.0",
        "duration = 515.0",
        "workload.duration: expected at most 514.286, which is trace.days compressed, got 515",
    ),
    ("duration = 500.0\n", "", "workload.duration: missing: serverless traffic needs it, in seconds"),
    (
        "num_invocations = 20_000",
        "num_invocations = 13",
        "workload.trace.num_invocations: expected at least one a function, 14, got 13",
    ),
    (', application = "code"', "", "deployments.opt-6.7b.application: missing: serverless traffic needs it"),
    (
        'application = "code"',
        'application = "cod"',
        "deployments.opt-6.7b.application: unknown application 'cod'. Did you mean code? Known: chatbot, code",
    ),
    (
        "median = 100",
        "mean = 1, median = 100",
        "workload.applications.chatbot.output: kind = 'lognormal' needs median or mean, not both",
    ),
    ("median = 100, ", "", "workload.applications.chatbot.output: kind = 'lognormal' needs one of median and mean"),
    ("tokens = 17", "median = 17", "workload.applications.code.prompt.tokens: missing: kind = 'fixed' needs it"),
    (
        "[workload.applications.code]",
        "[workload.applications.code]\nshare = 0.5",
        "workload.applications: expected a share of each that add up to 1, or none, got none, 0.5",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), SPOILT)
def test_a_mistake_gets_one_message(checkout: Checkout, old: str, new: str, message: str) -> None:
    assert old in EXPERIMENT
    path = checkout.path("two_apps.toml")
    path.write_text(EXPERIMENT.replace(old, new))
    try:
        said = checkout.refusal(checkout.run("figure99"))
    finally:
        path.write_text(EXPERIMENT)
    assert said.endswith(f"two_apps.toml, {message}"), said


def test_the_tables_defaults_are_those_of_the_functions_and_of_the_replay() -> None:
    for spec in (SyntheticFunctions, Replay):
        defaults = {field.name: field.default for field in fields(spec) if field.default is not MISSING}
        shared = {name: value for name, value in defaults.items() if name in Trace.model_fields}
        assert shared == {name: Trace.model_fields[name].default for name in shared}
    assert tuple(field.name for field in fields(SyntheticFunctions)) == SYNTHETIC
