"""Reports: the headline, the claim table, prediction errors and JSON."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from aebench import claims, report
from aebench.claims import Judgement, Verdict
from aebench.figure import Figure, PlotSpec, cells
from aebench.report_html import Calibration, FigureSection, Parameter, ReportInput
from aebench.report_json import to_json
from aebench.run_manifest import RunManifest

CLAIMS = """\
c1  ttft_mean  [system=hydraserve model=opt-13b] = 8.0 s ±20%            # Fig. 7a, bar 3
c2  ttft_mean  [system=serverless_vllm] / [system=hydraserve] in 2..4x  # Sec. 8.2
"""
CLAIM_FILE = claims.parse(CLAIMS, Path("figure7.claim"))
PAPER = pd.DataFrame(
    [("opt-2.7b", "serverless_vllm", 16.0), ("opt-2.7b", "hydraserve", 8.0), ("opt-13b", "hydraserve", 10.0),
     ("opt-13b", "serverless_vllm", 40.0)],
    columns=["model", "system", "ttft_mean"],
)  # fmt: skip
SUMMARY = PAPER.assign(ttft_mean=[20.0, 8.8, 9.0, 40.0], seed=0)
FIGURE = Figure(
    figure_id="hydraserve/figure7",
    paper="hydraserve",
    shows="Cold-start TTFT <per model>",
    experiment="hydraserve/cold_start",
    plot=PlotSpec(kind="bars", x="model", y="ttft_mean", series="system", labels={"opt-13b": "OPT-13B"}),
    paper_points=PAPER,
    claims=CLAIM_FILE,
    notes="# Why\n\nOne `NIC` is *slow* & <old>.",
    folder=Path("figures/hydraserve"),
)


def is_calibrated(keys) -> bool:
    return keys["model"] == "opt-2.7b" and keys["system"] == "hydraserve"


def judged(*verdicts: Verdict, detail: str = "") -> list[Judgement]:
    claim = CLAIM_FILE.claims[0]
    return [Judgement(claim, "7.6 s", "-6%", verdict, detail) for verdict in verdicts]


def make_prediction() -> report.PredictionError:
    prediction = report.prediction_error(FIGURE, SUMMARY, is_calibrated)
    assert prediction is not None
    return prediction


def make_page(svg: str | None = None, judgements: list[Judgement] | None = None) -> ReportInput:
    result = report.FigureResult(
        figure_id="hydraserve/figure7",
        backend="sim",
        wall_seconds=18.2,
        judgements=judged(Verdict.PASS, Verdict.FAIL) if judgements is None else judgements,
        prediction=make_prediction(),
    )
    manifest = RunManifest(
        status="success",
        experiment="hydraserve/cold_start",
        spec={},
        seeds=(0,),
        backend="sim",
        grid_keys=("model", "system"),
        commit="3f2c9ab",
        dirty=True,
        versions={"numpy": "2.4.6"},
    )
    section = FigureSection(
        figure=FIGURE, result=result, svg=svg, caption="Simulated; seed 0.", manifest=manifest, log="logs/x"
    )
    return ReportInput(
        title="A report",
        log_path="logs",
        figures=[section],
        parameters=[
            Parameter(area="testbed", name="nic", value="16", unit="Gbps", source="specification"),
            Parameter(area="GPUs", name="a10.memory", value="24", unit="GiB", source="data sheet"),
            Parameter(area="testbed", name="floor", value="4.7", unit="s", source="Fig. 7", calibrated=True),
        ],
        calibrations=[Calibration(parameter="floor", value="4.7", unit="s", points=["p1"], residual="0.05 s")],
    )


def test_the_headline_counts_every_claim_once():
    verdicts = [Verdict.PASS] * 9 + [Verdict.ABSENT, Verdict.SHAPE]
    line = report.headline("hydraserve/figure7", judged(*verdicts), "sim", 18.2)
    assert line == "hydraserve/figure7  9 of 11 claims pass, 1 shape, 1 absent   [sim, 18 s]"
    assert report.finding(judged(Verdict.PASS, Verdict.CALIBRATED)) == "1 of 2 claims pass, 1 calibrated"
    assert report.finding(judged(Verdict.CALIBRATED)) == "0 of 1 claims pass, 1 calibrated"
    assert report.finding([]) == "no claims"


def test_the_claim_table_reads_in_columns():
    judgements = judged(Verdict.PASS, detail="unsaid") + judged(Verdict.FAIL, detail="worst: model=opt-13b")
    assert report.claim_table(judgements) == (
        "verdict  claim  measured  deviation  what the paper says\n"
        "pass     c1     7.6 s     -6%        ttft_mean [system=hydraserve model=opt-13b] = 8 s ±20%  "
        "(Fig. 7a, bar 3)\n"
        "fail     c1     7.6 s     -6%        ttft_mean [system=hydraserve model=opt-13b] = 8 s ±20%  "
        "(Fig. 7a, bar 3)\n"
        "                worst: model=opt-13b"
    )


def test_no_line_of_the_claim_table_is_too_wide():
    judgements = judged(*Verdict, detail="missing: " + "model=llama2-13b gpu=v100, " * 20)
    wide = [Judgement(each.claim, "9" * 60, "+" * 40, each.verdict, each.detail) for each in judgements]
    assert max(map(len, report.claim_table(wide).splitlines())) <= report.WIDTH


def test_prediction_errors_leave_calibration_points_out():
    prediction = make_prediction()
    assert prediction.predicted is not None and prediction.calibration is not None
    assert prediction.predicted.num_points == 3
    assert prediction.predicted.mape == pytest.approx((0.25 + 0.1 + 0.0) / 3)
    assert prediction.predicted.bias == pytest.approx((0.25 - 0.1) / 3)
    assert prediction.predicted.worst.keys == {"model": "opt-2.7b", "system": "serverless_vllm"}
    assert prediction.calibration.mape == pytest.approx(0.1)
    assert prediction.text == (
        "prediction: MAPE 11.7% over 3 points, bias +5.0%, worst +25.0% "
        "(model=opt-2.7b system=serverless_vllm); "
        "calibration: MAPE 10.0% over 1 point, bias +10.0%, worst +10.0% (model=opt-2.7b system=hydraserve)"
    )


def test_history_and_absent_points_are_no_predictions():
    summary = SUMMARY.drop(index=2).assign(history=[True, False, False])
    prediction = report.prediction_error(FIGURE, summary, is_calibrated)
    assert prediction is not None and prediction.predicted is not None
    assert prediction.predicted.num_points == 1
    assert prediction.text.endswith("1 of 4 paper points absent here")
    kinds = [report.point_kind(cell) for cell in prediction.cells]
    assert kinds == ["history", "calibration", "prediction", "absent"]


def test_without_a_run_there_is_no_error_to_state():
    prediction = report.prediction_error(FIGURE, pd.DataFrame(), is_calibrated)
    assert prediction is not None and prediction.predicted is None
    assert prediction.text == "prediction: no point to compare; 4 of 4 paper points absent here"


def test_the_point_table_aligns_values():
    assert report.point_table(make_prediction().cells, FIGURE.plot).splitlines()[:3] == [
        "model     system           measured   paper   error",
        "opt-2.7b  serverless_vllm    20.0 s  16.0 s  +25.0%  prediction",
        "opt-2.7b  hydraserve         8.80 s  8.00 s  +10.0%  calibration",
    ]


MIXED = PlotSpec(
    kind="line_grid", x="model", y="prefill_p99", metrics=("prefill_p99", "avg_instances"), series="system"
)


def mixed() -> tuple[Figure, pd.DataFrame]:
    points = PAPER.rename(columns={"ttft_mean": "prefill_p99"}).assign(avg_instances=16.0)
    return replace(FIGURE, plot=MIXED, paper_points=points), points.assign(seed=0)


def test_a_point_is_in_the_unit_of_its_own_metric():
    figure, summary = mixed()
    lines = report.point_table(cells(figure, summary, is_calibrated), MIXED).splitlines()
    assert lines[1].split()[:7] == ["opt-2.7b", "serverless_vllm", "prefill_p99", "16.0", "s", "16.0", "s"]
    assert lines[5].split()[:6] == ["opt-2.7b", "serverless_vllm", "avg_instances", "16.0", "16.0", "+0.0%"]
    ratio = replace(MIXED, is_ratio=True)
    assert not re.search(r"\d s\b", report.point_table(cells(figure, summary, is_calibrated), ratio))


def test_json_carries_claims_and_errors():
    result = make_page().figures[0].result
    (figure,) = json.loads(to_json([result]))["figures"]
    assert figure["verdicts"] == {"pass": 1, "fail": 1}
    assert figure["claims"][0]["claim"] == "c1"
    assert figure["prediction"]["predicted"]["worst"]["keys"]["model"] == "opt-2.7b"
    assert [point["calibrated"] for point in figure["prediction"]["points"]].count(True) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (18.2, "18 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert report.duration_text(seconds) == text
