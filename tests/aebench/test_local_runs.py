"""Runs on this machine's hardware: kept, drawn, judged and reported apart from simulations of the paper's machines."""

import json
from pathlib import Path

import pytest

from aebench import commands, workflow
from aebench.catalog import Catalog
from aebench.errors import UsageError
from aebench.figure import Cell, cells
from aebench.figure_files import read_claims
from aebench.hosts.local import LocalHost
from aebench.logs import RunLog
from aebench.plotting import style
from aebench.plotting.bars import draw
from aebench.run_options import RunOptions
from aebench.runner import run_experiment
from aebench.shown_runs import measured_on, shown_runs, spec_differences
from aebench.stages import stage_rows
from aebench.workflow import Planned
from aebench.world import World
from tests.aebench.checkout import Checkout, make_checkout

SETTINGS = ("grid.system=serverless_vllm,serverlessllm,hydraserve_with_single_worker,hydraserve",)

PROFILE = {
    "schema": 1, "hardware": "a toy", "device": "cpu", "model": "smollm2-135m", "measured_at": "", "versions": {},
    "startup": {"container": 0.5, "libraries": 2.0, "context": 0.0, "engine": 1.0, "first_step": 0.0,
                "engine_load_rate": 1e9, "jitter": 0.0},
    "fetch_rate": 1e9, "load_rate": 2e9,
    "steps": {"prefill": [[1, 0.005], [128, 0.64]], "decode": [[1, 0.005]], "context": 0.0, "pairs": 0.0, "hop": 0.001,
              "slowdown": [1.0]},
}  # fmt: skip


def live_run(log_path: Path, hardware: str, device: str = "cpu", runs: int = 1) -> RunLog:
    """A run of Figure 7 on hardware of that name, its cold starts made up."""
    catalog, world = Catalog(), World("live", device)
    experiment = catalog.experiment("hydraserve/cold_start", settings=SETTINGS, world=world)
    points = tuple(experiment.points(range(runs)))
    planned = Planned(experiment=experiment, declared=(), points=points)
    manifest = workflow.RunManifest(
        experiment="hydraserve/cold_start",
        spec=planned.spec,
        seeds=tuple(range(runs)),
        backend="live",
        device=device,
        grid_keys=experiment.grid_keys,
        host={"hardware": hardware},
    )
    log = RunLog.create(log_path, manifest)
    outcome = run_experiment(points, log, LocalHost(1, "tests.aebench.fake_execute:cold_starts"), progress=False)
    assert outcome.status == "success", outcome.errors
    return RunLog.open(log.folder)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A simulated run of Figure 7, and live ones of made-up times on three machines."""
    checkout = make_checkout(tmp_path_factory.mktemp("local"))
    assert checkout.run("figure7", "--scale", "smoke").exit_code in (0, 1)
    live_run(checkout.logs, "2-core CPU x86_64 (Toy)", runs=3)
    live_run(checkout.logs, "8-core CPU x86_64 (Toy)")
    live_run(checkout.logs, "NVIDIA H200, 16 cores", device="cuda")
    return checkout


def test_the_newest_run_of_each_hardware_is_shown_simulations_first(ran: Checkout) -> None:
    live_run(ran.logs, "8-core CPU x86_64 (Toy)")
    assert [measured_on(log) for log in shown_runs(ran.logs, "hydraserve/cold_start")] == [
        ("sim", "", ""),
        ("live", "cpu", "2-core CPU x86_64 (Toy)"),
        ("live", "cpu", "8-core CPU x86_64 (Toy)"),
        ("live", "cuda", "NVIDIA H200, 16 cores"),
    ]


def test_a_run_keeps_its_hardware_and_the_worst_lag_of_its_clock(ran: Checkout) -> None:
    log = shown_runs(ran.logs, "hydraserve/cold_start")[1]
    manifest = json.loads((log.folder / "run.json").read_text())
    assert (manifest["host"]["hardware"], manifest["host"]["clock_lag"]) == ("2-core CPU x86_64 (Toy)", 0.002)
    assert (manifest["backend"], manifest["device"]) == ("live", "cpu")
    assert "Timers ran up to 2.0 ms late" in str(log.manifest.late_clock)


def test_plots_of_other_hardware_have_its_name(ran: Checkout, tmp_path: Path) -> None:
    plotted = ran.aebench("plot", "figure7", "--log-path", str(ran.logs), "--out", str(tmp_path))
    assert plotted.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "hydraserve").glob("*.pdf")) == [
        "figure7-live-2-core-cpu-x86-64-toy.pdf",
        "figure7-live-8-core-cpu-x86-64-toy.pdf",
        "figure7-live-nvidia-h200-16-cores.pdf",
        "figure7.pdf",
    ]


def test_live_claims_are_ratios_with_intervals_and_no_prediction(ran: Checkout) -> None:
    result = ran.aebench("diff", "figure7", "--log-path", str(ran.logs), "--json")
    simulated, live = json.loads(result.stdout)["figures"][:2]
    assert (simulated["hardware"], live["hardware"]) == (None, "2-core CPU x86_64 (Toy)")
    assert (simulated["prediction"] is None, live["prediction"]) == (False, None)
    verdicts = {claim["claim"]: claim["verdict"] for claim in live["claims"]}
    assert (verdicts["c1"], verdicts["o3"], verdicts["o2"], verdicts["c4"]) == ("pass", "pass", "fail", "absent")


def test_the_caption_names_the_hardware_and_the_late_clock(ran: Checkout) -> None:
    live = workflow.judged(Catalog(), ["figure7"], ran.logs)[1]
    assert "Measured on the live backend: 2-core CPU x86_64 (Toy); seeds 0–2;" in live.caption
    assert "Timers ran up to 2.0 ms late" in live.caption


def test_the_papers_bars_stand_beside_those_of_an_h200_and_nowhere_else(ran: Checkout) -> None:
    drawn = workflow.judged(Catalog(), ["figure7"], ran.logs)
    (h200,) = (each for each in drawn if each.log.manifest.device == "cuda")
    found = shown_cells(h200)
    assert [cell.paper is not None for cell in found] == [True] * 5
    assert all(cell.error is None for cell in found)
    canvas = draw(h200.figure, found, "")
    hollow = [patch for patch in canvas.axes[0].patches if patch.get_linestyle() == style.ORIENTATION_BAR["linestyle"]]
    assert len(hollow) == 5
    assert "paper: A10, 16 Gb/s, for orientation" in [text.get_text() for text in canvas.legends[0].get_texts()]
    assert [cell.paper for cell in shown_cells(drawn[1])] == [None] * 5


def shown_cells(drawn: workflow.Drawn) -> list[Cell]:
    return cells(drawn.figure, drawn.summary, drawn.calibrated)


def test_stages_are_told_since_the_arrival_of_the_request(ran: Checkout) -> None:
    rows = stage_rows(shown_runs(ran.logs, "hydraserve/cold_start")[1], ["measured"])
    first = [(row.cell[2], row.stage, round(row.start, 6), round(row.duration, 6), row.num_samples) for row in rows[:3]]
    assert first == [  # a TTFT of 3.0, 3.1 and 3.2 s with seeds 0 to 2, two starts each
        ("serverless_vllm", "container", 0.0, 0.25, 6),
        ("serverless_vllm", "engine", 0.25, 2.6, 6),
        ("serverless_vllm", "first token", 2.85, 0.25, 6),
    ]
    assert (round(rows[1].shortest, 6), round(rows[1].longest, 6)) == (2.5, 2.7)


def test_the_stages_of_a_run_are_a_table_behind_its_claims(ran: Checkout) -> None:
    log = shown_runs(ran.logs, "hydraserve/cold_start")[1]
    flags = {"against": None, "fill": False, "as_json": False, "stages": True}
    text, _ = commands.diff(["figure7"], log.folder, **flags)  # type: ignore[arg-type]  # as the command line has them
    table = text[text.index("gpu  model") :].splitlines()
    assert table[0].split() == ["gpu", "model", "system", "stage", "start", "mean", "shortest", "longest", "workers"]
    vllm = "cpu smollm2-135m serverless_vllm container 0.00 s 0.25 s 0.25 s 0.25 s 6"
    assert (" ".join(table[1].split()), len(table)) == (vllm, 13)


def test_the_report_has_a_section_for_each_hardware(ran: Checkout, tmp_path: Path) -> None:
    reported = ran.aebench("report", "figure7", "--log-path", str(ran.logs), "--out", str(tmp_path / "page.html"))
    assert reported.exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert "<h2>hydraserve/figure7</h2>" in page
    assert "<h2>hydraserve/figure7, live, NVIDIA H200, 16 cores</h2>" in page
    assert page.count("Stages of the cold starts") == 4


def test_shipped_runs_and_present_ones_differ_only_in_what_they_use() -> None:
    catalog = Catalog()
    (shipped,) = shown_runs(catalog.root / "history_logs", "hydraserve/breakdown")
    experiment = catalog.experiment("hydraserve/breakdown")
    planned = Planned(experiment=experiment, declared=(), points=())
    assert spec_differences(shipped.manifest.spec, planned.spec) == []


def test_live_points_run_one_at_a_time_and_say_so() -> None:
    options = commands.run_options(runs=1, settings=(), jobs=4, backend="live")
    assert (options.jobs, options.notes) == (1, ("live points run one at a time, --jobs 4 or not",))
    assert commands.run_options(runs=1, settings=(), jobs=None, backend="live").notes == ()


def test_a_device_is_for_live_runs_and_a_profile_for_simulations() -> None:
    with pytest.raises(UsageError, match="--device cuda: only --backend live"):
        commands.run_options(runs=1, settings=(), jobs=None, backend="sim", device="cuda")
    with pytest.raises(UsageError, match="--profile is for simulations"):
        commands.run_options(runs=1, settings=(), jobs=None, backend="live", profile=Path("p"))


def test_a_profile_simulates_the_machine_that_it_is_of(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(PROFILE))
    options = RunOptions(profile=path, log_path=tmp_path / "logs")
    (planned,) = workflow.plan(Catalog(), ["figure7"], options)
    log, outcome = workflow.run(planned, options)
    assert outcome.status == "success", outcome.errors
    assert measured_on(log) == ("sim", "cpu", "a toy")
    ttft = log.summary().set_index("system")["ttft_mean"]
    serial = 0.5 + 2.0 + 0.0 + 538.0e6 / 125e6 + 0.538 / 1.0 + 0.64 + 1.0
    assert ttft["serverless_vllm"] == pytest.approx(serial, rel=0.05)
    assert workflow.judge(Catalog(), planned.declared[0], log).caption.count("Simulated from a profile of a toy") == 1


def profile_file(folder: Path, **changes: object) -> str:
    path = folder / "changed.json"
    path.write_text(json.dumps({**PROFILE, **changes}))
    return str(path)


def test_a_profile_is_refused_where_nothing_of_its_machine_is_declared(ran: Checkout, tmp_path: Path) -> None:
    said = ran.refusal(ran.run("hello", "--profile", profile_file(tmp_path), "--dry-run"))
    assert said.startswith("Error: hydraserve/hello declares no machine of ours ([live]), so --profile has nothing")
    said = ran.refusal(ran.run("figure7", "--profile", profile_file(tmp_path, device="tpu"), "--dry-run"))
    assert "key 'device': expected one of cpu, cuda, got 'tpu'" in said


def test_a_profile_of_another_model_is_refused(ran: Checkout, tmp_path: Path) -> None:
    said = ran.refusal(ran.run("figure7", "--profile", profile_file(tmp_path, model="tiny"), "--dry-run"))
    assert said.startswith(
        "Error: --profile: measured with checkpoint tiny, but hydraserve/cold_start deploys smollm2-135m."
    )


def test_a_group_leaves_out_what_cannot_run_and_says_so(ran: Checkout, tmp_path: Path) -> None:
    shown = ran.run("hydraserve", "--profile", profile_file(tmp_path), "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "left out: hydraserve/hello declares no machine of ours" in shown.stdout
    assert "hydraserve/cold_start: 5 points on sim, about 1." in shown.stdout
    assert ran.run("hydraserve", "hydraserve/hello", "--profile", profile_file(tmp_path), "--dry-run").exit_code == 2


def test_a_dry_run_prints_the_notes(tmp_path: Path) -> None:
    path = Path(profile_file(tmp_path))
    options = RunOptions(profile=path, notes=("a note",), log_path=tmp_path / "logs")
    assert commands.dry_run(["figure7"], options, as_json=False).splitlines()[0] == "a note"
    assert json.loads(commands.dry_run(["figure7"], options, as_json=True))["notes"] == ["a note"]


def test_captions_of_a_rough_profile_name_its_model_and_the_checkpoint_of_the_user(tmp_path: Path) -> None:
    path = Path(profile_file(tmp_path, quick=True, threads=2, model="mine"))
    names = ("smollm2-135m", "smollm2-135m-twin")
    settings = ("grid.system=hydraserve", *(f"deployments.{name}.checkpoint=mine" for name in names))
    options = RunOptions(profile=path, settings=settings, log_path=tmp_path / "logs")
    (planned,) = workflow.plan(Catalog(), ["figure7"], options)
    log, _ = workflow.run(planned, options)
    caption = workflow.judge(Catalog(), planned.declared[0], log).caption
    assert "a profile of a toy with mine, 2 threads a worker, measured with --quick" in caption
    assert "smollm2-135m is checkpoint mine." in caption


def test_runs_of_different_machines_are_not_compared(ran: Checkout, tmp_path: Path) -> None:
    other = tmp_path / "other"
    live_run(other, "NVIDIA B200, 16 cores", device="cuda")
    words = ("diff", "figure7", "--log-path", str(other), "--against", str(ran.logs))
    assert "no run of the same machine there. Expected live on NVIDIA B200" in ran.refusal(ran.aebench(*words))


def test_a_prediction_is_compared_with_what_it_predicts_by_the_name_of_the_run(ran: Checkout, tmp_path: Path) -> None:
    live = live_run(tmp_path / "live", "a toy")
    path = Path(profile_file(tmp_path))
    options = RunOptions(profile=path, settings=SETTINGS, log_path=tmp_path / "sim")
    (planned,) = workflow.plan(Catalog(), ["figure7"], options)
    workflow.run(planned, options)
    words = ("diff", "figure7", "--log-path", str(tmp_path / "sim"), "--against")
    assert "no run of the same machine there" in ran.refusal(ran.aebench(*words, str(tmp_path / "live")))
    first = ran.aebench(*words, str(live.folder)).stdout.rpartition("\n\n")[2].splitlines()[0]
    assert "ttft_mean (sim on a toy with smollm2-135m) against" in first and "(live on a toy)" in first


def test_laws_of_the_live_folder_are_claims_of_local_runs_only() -> None:
    catalog = Catalog()
    declared = catalog.figures["live/ttft"]
    assert read_claims(declared).claims == ()
    assert len(read_claims(catalog.figure_in(declared, World("live", "cpu"))).claims) == 3
    assert catalog.papers["live"].own == ["ttft", "tpot"]
