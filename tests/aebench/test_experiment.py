"""Experiment: grid, scales, settings and overrides make the points; what cannot make one is refused."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aebench.catalog import Catalog
from aebench.errors import SpecError
from aebench.execute import deployments
from aebench.settings import apply_setting, held, merge
from tests.aebench.checkout import Cases, Checkout, make_checkout

BREAKDOWN_TOML: Cases = [
    ("[grid]", "[grid", ": not valid TOML: Expected ']' at the end of a table declaration (at line 19, column 6)"),
    (
        "testbed = ",
        "testbd = ",
        (
            ", testbd: unknown key. Did you mean testbed? Known: backend, cache_gb, cache_gib, deployments, "
            "exclude, gpu, grid, include, live, max_servers, measure, model, policy, scale, seconds_per_point, "
            "sets, sources, system, testbed, title, when, workload"
        ),
    ),
    (
        "repeats ",
        "repeat ",
        (
            ", workload.repeat: unknown key. Did you mean repeats or prepare? Known: applications, arrivals, "
            "duration, first_after, gap, high_priority_share, kind, lengths, num_requests, output, output_tokens, "
            "phase, prepare, prepare_output_tokens, prompt, prompt_tokens, repeats, trace, "
            "warmups"
        ),
    ),
    ("repeats       = 3", 'repeats = "three"', ", workload.repeats: expected an integer, got 'three'"),
    ("gap           = 35.0", "gap = inf", ", workload.gap: expected a finite number, got inf"),
    ('title   = "One', 'title = 3 # "', ", title: expected a string, got 3"),
    (
        'testbed = "testbed_i"',
        'testbed = "testbed_l"',
        (
            ", testbed: unknown testbed 'testbed_l'. Did you mean testbed_i or testbed_ii? Known: testbed_i, "
            "testbed_ii, live_cpu, live_cpu_far, live_h200"
        ),
    ),
    (
        '[workload]\nkind          = "cold_requests"',
        '[workload]\nkind = "cold_request"',
        ", workload.kind: expected 'cold_requests', 'open_loop', 'serverless' or 'batches', got 'cold_request'",
    ),
    (
        '"prefetch", "stream"',
        '"prefetch", "straem"',
        ", grid.step: 'straem' means nothing: add [when.step.straem]. Did you mean stream?",
    ),
    (
        'step = ["vllm", "prefetch", "stream", "overlap", "parallel"]',
        "step = []",
        ", grid.step: expected at least one value, got an empty list",
    ),
    ('"overlap", "parallel"]', '"overlap", "overlap"]', ", grid.step[4]: 'overlap' is given twice"),
    (
        "",
        '[[exclude]]\npair = ["llama2-13b-v100", "llama2-7b-a10"]\n',
        ", grid: no point is left: every cell of the grid is excluded",
    ),
    ("", '[[exclude]]\npear = "x"\n', ", exclude[0]: unknown grid key 'pear'. Did you mean pair? Known: pair, step"),
    (
        '[when.step.vllm]\nsystem = "serverless_vllm"',
        '[when.step.vllm]\nsystem = "serverles_vllm"',
        (
            ", system: unknown system 'serverles_vllm'. Did you mean serverless_vllm or serverlessllm? "
            "Known: serverless_vllm, serverlessllm, serverlessllm_with_cached_model, "
            "hydraserve_with_single_worker, hydraserve, hydraserve_with_cache, fixed_instances, "
            "llumnix, llumnix-base, infaas++, round-robin"
        ),
    ),
    ('gpu   = "v100"', 'gpu   = "v1000"', ", gpu: unknown GPU 'v1000'. Did you mean v100? Known: a10, v100, h200, cpu"),
    (
        'model = "llama2-7b"',
        'model = "llama3-7b"',
        (", model: unknown model 'llama3-7b'. Did you mean llama2-7b or llama2-13b? Known: llama2-7b, llama2-13b"),
    ),
    (
        '"llama2-13b" = {',
        '"llama9-13b" = {',
        (
            ", deployments.llama9-13b: unknown model 'llama9-13b'. Did you mean llama2-13b or llama-30b "
            "or llama-7b? Known: opt-2.7b, opt-6.7b, opt-13b, llama2-7b, llama2-13b, llama3-8b, "
            "smollm2-135m, falcon-7b, llama-7b, llama-30b"
        ),
    ),
    (
        "policy = { overlap",
        "policy = { overlaps",
        (
            ", policy.overlaps: unknown knob of hydraserve 'overlaps'. Did you mean overlap? Known: "
            "prefetch, stream, overlap, parallel, sizing, variant, max_pipeline_size, contention_aware, consolidate, "
            "consolidate_full, migrate, cache, small_model, kv_reserve, leftover, batch_size, max_step_tokens, "
            "after_fetch, hop, imbalance, grace_period, interval, network_poll, exclusive_poll"
        ),
    ),
    (
        "policy = { parallel = false }",
        'policy = { parallel = "no" }',
        ", policy.parallel: expected a boolean, got 'no'",
    ),
    ("policy = { parallel = false }", "policy = { batching = 3 }", ", policy.batching: expected a table, got 3"),
    (
        "drop_largest = 1",
        "drop_largest = 3",
        ", measure.drop_largest: expected less than workload.repeats, which is 3, got 3",
    ),
    (
        "[deployments]",
        "[deployment]",
        (
            ", deployment: unknown key. Did you mean deployments? Known: backend, cache_gb, cache_gib, "
            "deployments, exclude, gpu, grid, include, live, max_servers, measure, model, policy, scale, "
            "seconds_per_point, sets, sources, system, testbed, title, when, workload"
        ),
    ),
    ("[when.step.vllm]", "[when.stepp.vllm]", ", when: unknown grid key 'stepp'. Did you mean step? Known: pair, step"),
    (
        'testbed = "testbed_i"',
        'testbed = "testbed_i"\ncache_gib = 1000',
        ", cache_gib: expected at most the 368 GB of memory of v100x4, got 1000 GiB",
    ),
    (
        'pair = ["llama2-13b-v100", "llama2-7b-a10"]',
        'system = ["hydraserv"]',
        (
            ", grid.system[0]: unknown system 'hydraserv'. Did you mean hydraserve or hydraserve_with_cache? Known: "
            "serverless_vllm, serverlessllm, serverlessllm_with_cached_model, "
            "hydraserve_with_single_worker, hydraserve, hydraserve_with_cache, fixed_instances, "
            "llumnix, llumnix-base, infaas++, round-robin"
        ),
    ),
    (
        'pair = ["llama2-13b-v100", "llama2-7b-a10"]',
        'gpu = ["v10"]',
        ", grid.gpu[0]: unknown GPU 'v10'. Did you mean v100 or a10? Known: a10, v100, h200, cpu",
    ),
    (
        'pair = ["llama2-13b-v100", "llama2-7b-a10"]',
        'model = ["llama2-8b"]',
        (
            ", grid.model[0]: unknown model 'llama2-8b'. Did you mean llama2-7b or llama2-13b? Known: "
            "llama2-7b, llama2-13b"
        ),
    ),
]
TESTBEDS_TOML: Cases = [
    ('gpu           = "a10"', 'gpu = "a100"', ", server.a10x1.gpu: unknown GPU 'a100'. Known: a10, v100, h200, cpu"),
    ("a10x1 = 4", "a10x2 = 4", ", testbed.testbed_i.servers: no [server.a10x2]"),
    (
        'like          = "a10x1"',
        'like = "a10x"',
        " with calibration.toml, server.a10x4.like: expected another server, got 'a10x'. Did you mean a10x1 or v100x4? "
        "Known: a10x1, v100x4, cpu_process, cpu_process_far, h200_slice",
    ),
    (
        'gpu           = "a10"',
        'like = "v100x4"',
        " with calibration.toml, server.a10x4.like: expected a server that takes after none, but a10x1 does",
    ),
    (
        'assignment     = "best_fit"',
        'assignment = "bestfit"',
        " with calibration.toml, testbed.testbed_ii.assignment: expected 'largest' or 'best_fit', got 'bestfit'",
    ),
    (
        "stores         = 2",
        "stores = 0",
        (" with calibration.toml, testbed.testbed_i.stores: expected a number greater than or equal to 1, got 0"),
    ),
    (
        "v100x4 = 4",
        'v100x4 = "4"',
        " with calibration.toml, testbed.testbed_i.servers.v100x4: expected an integer, got '4'",
    ),
    (
        "servers        = { a10x1 = 4, v100x4 = 4 }",
        "servers = { v100x4 = 4 }",
        ("Error: ROOT/experiments/hydraserve/breakdown.toml, gpu: testbed testbed_i has no server with a GPU 'a10'"),
    ),
    (
        "[server.a10x1.startup]\njitter        = 0.06",
        "[server.a10x1.startup]\njitter = 1",
        " with calibration.toml, server.a10x1.startup.jitter: expected a number less than 1, got 1",
    ),
    (
        "v100x4 = 4",
        "v100x4 = 0",
        (
            " with calibration.toml, testbed.testbed_i.servers.v100x4: expected a number greater than or "
            "equal to 1, got 0"
        ),
    ),
    (
        "[server.a10x1.startup]",
        "[server.a10x1.strtup]",
        (
            "Error: ROOT/experiments/hydraserve/calibration.toml, parameter[0].name: testbeds.toml has no"
            " table [server.a10x1.startup]"
        ),
    ),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """One copy for all cases; each puts back what it spoilt."""
    return make_checkout(tmp_path_factory.mktemp("experiment"))


@pytest.mark.parametrize("case", BREAKDOWN_TOML, ids=lambda case: case[1][:40])
def test_a_bad_experiment_is_refused(original: Checkout, case: tuple[str, str, str]) -> None:
    original.check_case("breakdown.toml", case)


@pytest.mark.parametrize("case", TESTBEDS_TOML, ids=lambda case: case[1][:40])
def test_bad_testbeds_are_refused(original: Checkout, case: tuple[str, str, str]) -> None:
    original.check_case("testbeds.toml", case)


def test_the_points_are_the_grid_without_what_is_excluded_the_last_key_fastest(original: Checkout) -> None:
    points = Catalog(original.root).experiment("hydraserve/cold_start").points([0, 1])
    assert len(points) == (7 + 5) * 5 * 2
    assert [point.name for point in points[:3]] == [
        "gpu=v100,model=opt-2.7b,system=serverless_vllm",
        "gpu=v100,model=opt-2.7b,system=serverless_vllm,seed=1",
        "gpu=v100,model=opt-2.7b,system=serverlessllm",
    ]
    assert not [point for point in points if point.keys["gpu"] == "a10" and "13b" in str(point.keys["model"])]


def test_a_point_takes_over_what_its_grid_values_say(original: Checkout) -> None:
    experiment = Catalog(original.root).experiment("hydraserve/cold_start")
    spec = experiment.resolve({"gpu": "a10", "model": "opt-2.7b", "system": "serverlessllm"})
    assert (spec["gpu"], spec["model"], spec["system"]) == ("a10", "opt-2.7b", "serverlessllm")
    assert (spec["cache_gib"], spec["max_servers"]) == (16, 1)
    assert (spec["workload"]["prepare"], spec["workload"]["output_tokens"]) == ("evict", 10)
    other = experiment.resolve({"gpu": "v100", "model": "opt-2.7b", "system": "hydraserve"})
    assert (other["cache_gib"], other["max_servers"], other["workload"]["prepare"]) == (27, None, "nothing")


def test_a_scale_and_settings_change_the_grid_in_this_order(original: Checkout) -> None:
    catalog = Catalog(original.root)
    smoke = catalog.experiment("hydraserve/cold_start", "smoke")
    assert smoke.file.grid["model"] == ["opt-2.7b", "llama2-7b"]
    both = catalog.experiment("hydraserve/cold_start", "smoke", ["grid.model=opt-13b", "workload.gap=40"])
    assert (both.file.grid["model"], both.file.workload.gap) == (["opt-13b"], 40)
    assert len(both.cells()) == 5


def test_a_setting_reaches_a_key_with_a_dot_in_it_by_quotes(original: Checkout) -> None:
    setting = 'deployments."opt-2.7b".size_gb=8'
    experiment = Catalog(original.root).experiment("hydraserve/cold_start", settings=[setting])
    assert experiment.file.deployments["opt-2.7b"].size_gb == 8
    assert experiment.file.deployments["opt-6.7b"].size_gb == 13


NAMES = st.lists(st.text("abcdefg", min_size=1, max_size=3), min_size=1, max_size=4)
TABLES = st.recursive(
    st.integers() | st.booleans(), lambda inner: st.dictionaries(st.text("abcdefg", min_size=1, max_size=2), inner)
)


@given(NAMES, st.integers() | st.booleans().map(lambda value: "yes" if value else "no"))
@settings(max_examples=100, deadline=None)
def test_what_is_set_is_held_and_nothing_else_changes(names: list[str], value: int | str) -> None:
    tables: dict[str, Any] = {"grid": {"zeta": [1]}, "zulu": {"yankee": 1}}
    apply_setting(tables, f"{'.'.join(names)}={value}")
    assert held(tables, names) == value
    assert (tables["grid"], tables["zulu"]) == ({"zeta": [1]}, {"yankee": 1})


@given(st.dictionaries(st.text("abc", min_size=1, max_size=2), TABLES), st.dictionaries(st.sampled_from("abc"), TABLES))
@settings(max_examples=40, deadline=None)
def test_merging_twice_is_merging_once_and_leaves_what_is_merged_alone(under: Any, over: Any) -> None:
    once, before = copy.deepcopy(under), copy.deepcopy(over)
    merge(once, over)
    twice = copy.deepcopy(once)
    merge(twice, over)
    assert once == twice
    assert over == before


@pytest.mark.parametrize("setting", ["workload.first_after=0.0", "measure.token_gaps=true"])
def test_a_setting_may_say_what_goes_without_saying(original: Checkout, setting: str) -> None:
    catalog = Catalog(original.root)
    plain, said = (catalog.experiment("hydraserve/breakdown", settings=given).points([0]) for given in ([], [setting]))
    assert [point.digest for point in said] == [point.digest for point in plain]


def test_only_a_system_that_plans_by_slos_needs_them(original: Checkout) -> None:
    path = original.root / "experiments" / "hydraserve" / "breakdown.toml"
    text = re.sub(r", ttft_slo = [0-9.]+, +tpot_slo = [0-9.]+", "", path.read_text())
    path.write_text(text)
    with pytest.raises(SpecError, match=r"deployments.llama2-7b.ttft_slo: missing: hydraserve plans by it, in seconds"):
        Catalog(original.root).experiment("hydraserve/breakdown").points([0])
    (point, *_) = Catalog(original.root).experiment("hydraserve/breakdown", settings=["grid.step=vllm"]).points([0])
    assert [sorted(table) for table in point.spec["deployments"].values()] == [["size_gb"]] * 2
    assert [deployment.ttft_slo for deployment in deployments(point.spec)] == [None, None]


SETTINGS: list[tuple[list[str], str]] = [
    (["grid.model"], "Error: --set grid.model: expected KEY=VALUE, for example --set grid.model=opt-2.7b"),
    (["=3"], "Error: --set =3: expected KEY=VALUE, for example --set grid.model=opt-2.7b"),
    (["grid.gpu="], "Error: --set grid.gpu=: expected KEY=VALUE, for example --set grid.model=opt-2.7b"),
    (["a..b=1"], "Error: --set a..b=1: expected KEY=VALUE, for example --set grid.model=opt-2.7b"),
    (["grid.modell=x"], "Error: --set grid.modell=x: the grid has no key 'modell'. Known: gpu, model, system"),
    (["title.x=3"], "Error: --set title.x=3: 'title' is no table"),
    (["gpu=a10"], "Error: --set gpu=a10: gpu is an axis of the grid; set it with --set grid.gpu=a10"),
    (
        ["cache_gib=3"],
        "Error: --set cache_gib=3: no effect, every point gets its cache_gib from a [when...] table of "
        "ROOT/experiments/hydraserve/cold_start.toml",
    ),
    (["grid.gpu=a10", "grid.gpu=v100"], "Error: --set grid.gpu is given 2 times; give it once"),
    (
        ["grid.model=opt-2.7b,opt-2.7b"],
        "Error: ROOT/experiments/hydraserve/cold_start.toml with --set grid.model=opt-2.7b,opt-2.7b, grid.model[1]: "
        "'opt-2.7b' is given twice",
    ),
    (
        ["workload.repeats=true"],
        "Error: ROOT/experiments/hydraserve/cold_start.toml with --set workload.repeats=true, workload.repeats: "
        "expected an integer, got True",
    ),
    (
        ["grid.gpu=a10", "grid.model=opt-13b"],
        "Error: ROOT/experiments/hydraserve/cold_start.toml with --set grid.gpu=a10 --set grid.model=opt-13b, grid: "
        "no point is left: every cell of the grid is excluded",
    ),
    (
        ["policy.interval=soon"],
        "Error: ROOT/experiments/hydraserve/cold_start.toml with --set policy.interval=soon, policy.interval: "
        "expected a number, got 'soon'",
    ),
]


@pytest.mark.parametrize(("changes", "said"), SETTINGS, ids=lambda value: str(value)[:40])
def test_a_bad_setting_is_refused(original: Checkout, changes: list[str], said: str) -> None:
    words = [word for change in changes for word in ("--set", change)]
    assert original.refusal(original.run("figure7", *words)) == said
    assert not original.logs.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "{path}: cannot be read (No such file or directory)"),
        (
            "arrived_at,model\n",
            "{path}, line 1, header: held 'arrived_at,model', expected num_prompt_tokens, num_output_tokens too",
        ),
    ],
)
def test_a_bad_trace_is_refused_before_anything_runs(
    original: Checkout, tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "trace.csv"
    if content is not None:
        path.write_text(content)
    words = ("--set", "workload.arrivals.kind=trace", "--set", f"workload.arrivals.file={path}")
    refused = original.refusal(original.run("hello", *words))
    assert refused == (
        f"Error: ROOT/experiments/hydraserve/hello.toml with {' '.join(words)}, workload.arrivals.file: "
        f"{said.format(path=path)}"
    )
    assert not original.logs.exists()


def test_points_change_when_the_content_of_their_trace_does(original: Checkout, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    changes = ("workload.arrivals.kind=trace", f"workload.arrivals.file={path}")
    digests = []
    for num_tokens in (8, 8, 9):
        path.write_text(f"arrived_at,model,num_prompt_tokens,num_output_tokens\n0.5,opt-6.7b,16,{num_tokens}\n")
        experiment = Catalog(original.root).experiment("hydraserve/hello", settings=changes)
        digests.append(experiment.points([0])[0].digest)
    assert digests[0] == digests[1] != digests[2]
