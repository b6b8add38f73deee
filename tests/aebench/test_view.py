"""Figures over tables: rows kept, keys settled, quotients of two systems; and whole figures of them."""

import math
from pathlib import Path

import pandas as pd
import pytest

from aebench.catalog import Catalog
from aebench.claims import Verdict
from aebench.figure import cells
from aebench.view import Ratio, View
from aebench.workflow import Drawn, judged
from tests.aebench.checkout import Checkout
from tests.aebench.end_to_end import CHAT0, CHAT1, CODE0, Logged, make_logged, make_toy

KEYS = ("system", "cv", "model")
ROWS = pd.DataFrame(
    [
        ("a", 8.0, "m0", 0, 2.0, 4),
        ("a", 8.0, "m1", 0, 3.0, 4),
        ("a", 4.0, "m0", 0, 5.0, 4),
        ("b", 8.0, "m0", 0, 1.0, 8),
        ("b", 8.0, "m2", 0, 9.0, 8),
        ("b", 8.0, "m1", 1, 6.0, 8),
        ("c", 8.0, "m1", 0, 0.0, 0),
    ],
    columns=[*KEYS, "seed", "tpot", "num"],
)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """A log that nobody spoils."""
    return make_logged(make_toy(tmp_path_factory.mktemp("toy")))


def figure(logged: Logged, name: str) -> Drawn:
    (drawn,) = judged(Catalog(logged.checkout.root), [name], logged.checkout.logs)
    return drawn


def test_where_keeps_rows_and_settles_its_keys() -> None:
    view = View(table_keys=KEYS, where={"cv": "8", "system": "a"})
    assert view.keys == ("model",)
    assert view.rows(ROWS).to_dict("list") == {"model": ["m0", "m1"], "seed": [0, 0], "tpot": [2.0, 3.0], "num": [4, 4]}


def test_a_ratio_divides_where_all_other_keys_and_the_seed_agree() -> None:
    view = View(table_keys=KEYS, ratio=Ratio("system", "a", "b"))
    assert view.keys == ("cv", "model")
    # m0 at CV 8 only: m1 of b has another seed, m2 has no a, and b has no CV 4
    assert view.rows(ROWS).to_dict("records") == [{"cv": 8.0, "model": "m0", "seed": 0, "tpot": 2.0, "num": 0.5}]


def test_dividing_by_nothing_is_infinite_and_nothing_by_nothing_empty() -> None:
    rows = pd.concat([ROWS, ROWS[ROWS.system == "c"].assign(system="d", num=0, tpot=1.0)])
    found = View(table_keys=KEYS, ratio=Ratio("system", "d", "c")).rows(rows).to_dict("records")
    assert [(row["tpot"], math.isnan(row["num"])) for row in found] == [(math.inf, True)]


def test_a_quotient_of_history_is_history() -> None:
    rows = ROWS[(ROWS.model == "m0") & (ROWS.cv == 8.0)].assign(history=[False, True])
    assert View(table_keys=KEYS, ratio=Ratio("system", "a", "b")).rows(rows)["history"].tolist() == [True]


def test_the_points_behind_a_view_are_those_of_its_rows() -> None:
    grid = [{"system": system, "cv": cv} for system in "abc" for cv in ("8", "4")]
    view = View(table_keys=KEYS, where={"cv": "8", "model": "m0"}, ratio=Ratio("system", "a", "b"))
    assert view.points(grid) == [{"system": "a", "cv": "8"}, {"system": "b", "cv": "8"}]


def test_a_figure_by_application_is_judged_beside_the_papers_points(logged: Logged) -> None:
    drawn = figure(logged, "hydraserve/apps")
    assert drawn.figure.view.keys == ("system", "application")
    places = [(cell.keys["application"], cell.keys["system"]) for cell in cells_of(drawn)]
    both = ("serverless_vllm", "hydraserve")
    assert places == [(application, system) for application in ("chatbot", "code") for system in both]
    measured = [cell.measured.mean for cell in cells_of(drawn)]
    assert measured == [1.0, 1.0, 0.0, 0.0]
    assert [cell.paper for cell in cells_of(drawn)] == [None, 0.5, None, 0.8]
    assert drawn.result.prediction.predicted.num_points == 2
    assert [judgement.verdict for judgement in drawn.result.judgements] == [Verdict.PASS]


def test_a_ratio_figure_has_a_quotient_a_model_and_claims_about_all_of_them(logged: Logged) -> None:
    drawn = figure(logged, "hydraserve/penalty")
    assert drawn.figure.plot.unit == ""
    found = {cell.keys["model"]: cell.measured.mean for cell in cells_of(drawn)}
    assert found == pytest.approx({CHAT0: 1.5, CHAT1: 1.5, CODE0: 1.5})
    judgements = {judgement.claim.claim_id: judgement for judgement in drawn.result.judgements}
    assert {name: judgement.verdict for name, judgement in judgements.items()} == dict.fromkeys(
        ("c1", "c2", "c3"), Verdict.PASS
    )
    assert (judgements["c1"].measured, judgements["c2"].measured) == ("1.5x", "100%")


def test_a_claim_of_a_ratio_is_absent_when_one_of_its_points_was_not_run(tmp_path: Path) -> None:
    logged = make_logged(make_toy(tmp_path))
    log = logged.log
    log.update(status="partial")
    frames = {name: log.table(name) for name in ("summary", "by_model", "by_application")}
    for name, rows in frames.items():
        log.write_table(name, rows[~((rows.system == "hydraserve") & (rows.cv == 8))])
    (claim, *_) = figure(logged, "hydraserve/penalty").result.judgements
    assert (claim.verdict, claim.detail) == (Verdict.ABSENT, "missing: all rows")
    attained = figure(logged, "hydraserve/attained").result.judgements[0]
    assert attained.verdict is Verdict.ABSENT


def cells_of(drawn: Drawn) -> list:
    return cells(drawn.figure, drawn.summary, drawn.calibrated)


def test_all_commands_draw_judge_and_report_figures_of_tables(logged: Logged, tmp_path: Path) -> None:
    checkout, names = logged.checkout, ("apps", "penalty", "attained")
    logs = ("--log-path", str(checkout.logs))
    plotted = checkout.aebench("plot", *names, *logs, "--out", str(tmp_path))
    assert plotted.exit_code == 0, plotted.output
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["apps.png", "attained.png", "penalty.png"]
    compared = checkout.aebench("diff", *names, *logs, "--points", "--against", str(logged.log.folder))
    assert compared.exit_code == 0, compared.output
    assert "hydraserve/penalty  tpot against" in compared.output
    assert "0 of 3 points differ" in compared.output
    reported = checkout.aebench("report", *names, *logs, "--out", str(tmp_path / "report.html"))
    assert reported.exit_code == 0, reported.output
    rehearsed = checkout.run(*names, "--dry-run")
    assert rehearsed.exit_code == 0, rehearsed.output


REFUSED = {
    "penalty.toml": [
        (
            '"by_model"',
            '"by_modl"',
            ", table: unknown table 'by_modl'. Did you mean by_model? Known: summary, by_application, by_model",
        ),
        (
            "cv = 8",
            "cv = 9",
            ", where.cv: unknown cv '9'. Known: 8, 4",
        ),
        (
            "cv = 8",
            "cvv = 8",
            ", where.cvv: unknown key 'cvv'. Did you mean cv? Known: system, cv, application, model",
        ),
        (
            'key = "system"',
            'key = "cv"',
            ", ratio.key: unknown key 'cv'. Known: system, application, model",
        ),
        (
            'of = "hydraserve"',
            'of = "hydraserv"',
            (", ratio.of: unknown system 'hydraserv'. Did you mean hydraserve? Known: serverless_vllm, hydraserve"),
        ),
        (
            'to = "serverless_vllm"',
            'to = "hydraserve"',
            ", ratio: expected two values of system, got hydraserve twice",
        ),
        (
            'x = "model"',
            'x = "cv"',
            ", plot: what it draws has no key 'cv'. Known: application, model",
        ),
        (
            'y = "tpot"',
            'y = "ttft_p99"',
            (
                ", plot.y: unknown metric 'ttft_p99'. Known: num_requests, tpot, ttft_mean, "
                "slo_attainment, gpu_memory_time"
            ),
        ),
    ],
    "penalty.claim": [
        (
            "gpu_memory_time",
            "gpu_memory",
            (
                ", line 2: unknown metric 'gpu_memory' in c2. Did you mean gpu_memory_time? Known: "
                "num_requests, tpot, ttft_mean, slo_attainment, gpu_memory_time"
            ),
        ),
    ],
    "toy.toml": [
        (
            'application = "code"\n',
            "",
            ", deployments.llama2-7b-code.application: missing: measure.breakdown needs it",
        ),
        (
            "cv     = [8, 4.0]",
            'cv = [8, 4.0]\napplication = ["x"]',
            ", grid.application: the tables of measure.breakdown have a column application of their own",
        ),
        (
            '[when.cv."8"]',
            '[when.cv."8"]\nmeasure.breakdown = ["model"]',
            (
                ", measure.breakdown: expected the same for all points, which make one table; a [when...] "
                "table changes it"
            ),
        ),
        (
            'breakdown  = ["application", "model"]',
            'breakdown  = ["applications"]',
            ", measure.breakdown.0: expected 'application' or 'model', got 'applications'",
        ),
        (
            'slo        = ["ttft"]',
            "slo = []",
            ", measure.slo: expected at least 1 item, got []",
        ),
        (
            "copies = 2",
            "copies = 0",
            ", deployments.llama2-7b-chatbot.copies: expected a number greater than or equal to 1, got 0",
        ),
        (
            '[deployments."llama2-7b-code"]',
            (
                '[deployments."llama2-7b-chatbot/1"]\narchitecture = "llama2-7b"\nsize_gb = 1\nttft_slo = 1\n'
                'tpot_slo = 1\napplication = "code"\n[deployments."llama2-7b-code"]'
            ),
            (
                ", deployments.llama2-7b-chatbot/1: deploys llama2-7b-chatbot/1, as "
                "[deployments.'llama2-7b-chatbot'] does; give one of them another name"
            ),
        ),
        (
            "cv     = [8, 4.0]",
            'cv = [8, 4.0]\nmodel = ["llama2-7b-code"]',
            (
                ", grid.model[0]: unknown model 'llama2-7b-code'. Did you mean llama2-7b-code/0..1 or "
                "llama2-7b-chatbot/0..1? Known: llama2-7b-chatbot/0..1, llama2-7b-code/0..1"
            ),
        ),
        (
            "cache_gb = { a10x4 = 567, v100x4 = 182 }",
            "cache_gb = { a10x4 = 567, v100x4 = 400 }",
            ", cache_gb: expected at most the 368 GB of memory of v100x4, got 400 GB",
        ),
        (
            "cache_gb = { a10x4 = 567, v100x4 = 182 }",
            "cache_gb = { a10x1 = 567 }",
            ", cache_gb.a10x1: unknown server 'a10x1'. Did you mean a10x4? Known: a10x4, v100x4",
        ),
        (
            "cache_gb = {",
            "cache_gib = 5\ncache_gb = {",
            ", cache_gb: given beside cache_gib = 5; give one of them",
        ),
    ],
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose files are spoilt one at a time."""
    return make_toy(tmp_path_factory.mktemp("spoilt"))


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name, cases in REFUSED.items() for case in cases],
    ids=lambda value: value[1][:40],
)
def test_what_cannot_be_seen_is_refused_before_anything_runs(
    checkout: Checkout, name: str, case: tuple[str, str, str]
) -> None:
    old, new, said = case
    path = checkout.path(name)
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new, 1))
    try:
        refused = checkout.refusal(checkout.run("penalty", "--dry-run"))
    finally:
        path.write_text(before)
    assert refused == f"Error: {checkout.short(str(path))}{said}"


def test_a_table_that_the_experiment_does_not_make_is_missed_where_it_is_named(checkout: Checkout) -> None:
    path = checkout.path("toy.toml")
    before = path.read_text()
    path.write_text(before.replace('breakdown  = ["application", "model"]', 'breakdown = ["application"]'))
    try:
        refused = checkout.refusal(checkout.run("penalty", "--dry-run"))
    finally:
        path.write_text(before)
    assert refused == (
        "Error: ROOT/figures/hydraserve/penalty.toml, table: a run of ROOT/experiments/hydraserve/toy.toml makes no "
        "by_model; expected 'model' in its measure.breakdown"
    )
