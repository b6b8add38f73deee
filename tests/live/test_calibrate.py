"""Calibration: of a simulated machine it gives back the profile; of this one, a profile that the simulator reads."""

import os
import signal
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from aebench.cli import cli
from aebench.machine_profile import read_profile
from serving.cost.profile import Profile, StepTable
from serving.cost.startup import StartupCosts
from serving.live.calibrate import measure
from serving.live.calibrate.bench import KV_TOKENS, simulated_bench
from serving.live.calibrate.fit import Measurements, pooled_variation, predicted, rate, startup_costs, step_table
from serving.live.calibrate.measure import QUICK, Effort, Measuring, Options
from serving.live.calibrate.shapes import Shape, Shapes
from serving.live.checkpoint import Checkpoint
from serving.live.errors import LiveError
from serving.units import GB, MB, ms, us
from tests.live.served import left_over, tiny_model

STEPS = StepTable(
    prefill=((1, 20 * ms), (64, 80 * ms), (256, 300 * ms), (1024, 1.7)),
    decode=((1, 20 * ms), (8, 30 * ms), (64, 100 * ms)),
    context=5 * us,
    pairs=0.5 * us,
    hop=2 * ms,
    slowdown=(((1, 1.0),), ((1, 1.4), (4, 1.3), (128, 1.05))),
    beside=(
        (1, ((1, 1.4), (4, 1.35), (128, 1.2))),
        (4, ((1, 1.35), (4, 1.3), (128, 1.25))),
        (128, ((1, 1.1), (128, 1.05))),
    ),
)
PROFILE = Profile(
    hardware="a simulated machine",
    device="cpu",
    model="tiny",
    measured_at="2026-11-21T00:00:00+00:00",
    versions={},
    startup=StartupCosts(
        container=0.05,
        libraries=0.8,
        context=0.2,
        engine=0.4,
        first_step=0.03,
        engine_load_rate=0.5 * GB,
        jitter=0.0,
        host_cores=2.0,
        build_rate=1 * MB,
    ),
    fetch_rate=1.5 * GB,
    load_rate=0.8 * GB,
    steps=STEPS,
)


def measured_in_virtual_time(num_instances: int = 2) -> Measurements:
    checkpoint = Checkpoint.open(tiny_model(2))
    found = Measurements(Shapes.of(2048, KV_TOKENS, quick=False))
    bench = simulated_bench(checkpoint, 4, PROFILE)
    options = Options(hardware="", num_cores=2, num_instances=num_instances, effort=Effort(repeats=2, busy_time=20.0))
    bench.run(Measuring(bench, options, found, lambda _: None).everything(two_stages=True))
    return found


@pytest.fixture(scope="module")
def found() -> Measurements:
    return measured_in_virtual_time()


def test_the_steps_of_a_simulated_machine_come_out_as_they_went_in(found: Measurements) -> None:
    table = step_table(found)
    assert table.context == pytest.approx(STEPS.context, rel=0.05)
    assert table.pairs == pytest.approx(STEPS.pairs, rel=0.05)
    assert table.hop == pytest.approx(STEPS.hop, rel=1e-6)
    for rows, others in ((1, []), (1, [1]), (4, [4]), (16, [16]), (500, [500]), (128, [1]), (1, [128]), (60, [2])):
        assert table.factor(rows, others) == pytest.approx(STEPS.factor(rows, others), rel=0.01)
    for shape in (*found.shapes.unseen, Shape.prompt(700), Shape.decode(40, 100)):
        assert predicted(table, shape) == pytest.approx(predicted(STEPS, shape), rel=0.02)


def test_the_starts_of_a_simulated_machine_come_out_as_they_went_in(found: Measurements) -> None:
    costs = startup_costs(found, 2)
    for name in (
        "container",
        "libraries",
        "context",
        "engine",
        "first_step",
        "engine_load_rate",
        "host_cores",
        "build_rate",
    ):
        assert getattr(costs, name) == pytest.approx(getattr(PROFILE.startup, name), rel=1e-6), name
    assert costs.jitter == pytest.approx(0.0, abs=1e-9)
    assert rate(found.direct_loads) == pytest.approx(PROFILE.load_rate, rel=1e-6)
    assert rate(start["fetch"] for start in found.starts) == pytest.approx(PROFILE.fetch_rate, rel=1e-6)


def test_starts_at_once_share_the_cores_in_the_prediction_as_they_did(found: Measurements) -> None:
    (check,) = measure._start_checks(Checkpoint.open(tiny_model(2)), 4, PROFILE, found)
    assert check.error == pytest.approx(0.0, abs=1e-6)
    names = ("container", "libraries", "context", "engine")
    alone = sum(PROFILE.startup.timed(name, found.weights) for name in names)
    assert check.predicted == pytest.approx(alone, rel=0.01)  # two on two cores
    for stages in found.starts_at_once:
        took = stages["engine"].ended_at - stages["container"].started_at
        assert took == pytest.approx(2 * alone, rel=0.01)  # four on two cores


def test_starts_that_wait_for_each_other_have_fewer_cores_than_the_machine(found: Measurements) -> None:
    def as_if_in(times_alone: float) -> float:
        """The cores, when each of four starts at once took so many times as long as alone."""
        crowded = {
            name: replace(stage, ended_at=stage.started_at + times_alone * (stage.ended_at - stage.started_at))
            for name, stage in found.starts[0].items()
        }
        return startup_costs(replace(found, starts_at_once=[crowded] * 4), 16).host_cores or 0.0

    assert as_if_in(1.6) == pytest.approx(2.5)
    assert as_if_in(1.04) == 16  # none waits
    assert as_if_in(9.0) == 1


def test_prompts_are_measured_up_to_the_first_that_is_long(found: Measurements) -> None:
    assert [shape.rows for shape in found.shapes.prompts][-2:] == [512, 1024]  # 1.7 s; there is room for 2048
    assert set(found.alone) >= {*found.shapes.prompts, *found.shapes.batches, *found.shapes.in_context}


def test_a_burst_of_noise_moves_no_median(found: Measurements) -> None:
    def noisy(times: dict[Shape, list[float]]) -> dict[Shape, list[float]]:
        return {shape: [*each, *each, each[0] * 30] for shape, each in times.items()}

    disturbed = Measurements(
        found.shapes,
        alone=noisy(found.alone),
        one_stage=noisy(found.one_stage),
        two_stages=noisy(found.two_stages),
        ratios=found.ratios,
    )
    for shape in found.shapes.unseen:
        assert predicted(step_table(disturbed), shape, 2) == pytest.approx(predicted(step_table(found), shape, 2))


def test_attention_costs_are_never_negative(found: Measurements) -> None:
    shapes = found.shapes.in_context
    faster = {shape: [time * (0.5 if shape in shapes else 1.0) for time in found.alone[shape]] for shape in found.alone}
    table = step_table(Measurements(found.shapes, alone=faster))
    assert (table.context, table.pairs, table.hop, table.slowdown) == (0.0, 0.0, 0.0, (((1, 1.0),),))


def test_jitter_gives_the_sum_of_stages_its_variance() -> None:
    assert pooled_variation([[3.0, 3.0], [3.8, 4.2]]) == pytest.approx(0.2 * 2**0.5 / 5)  # of a sum of squares of 25
    assert pooled_variation([[2.0, 2.2], [1e-3, 9e-3]]) < 0.07  # a stage of no length hardly matters
    assert pooled_variation([[5.0]]) == pooled_variation([]) == 0.0


def test_an_engine_that_takes_as_long_for_a_stage_has_no_rate(found: Measurements) -> None:
    costs = startup_costs(replace(found, stage_engine=(0.5 * found.weights, 9.0)), 2)
    assert costs.build_rate is None and costs.engine == pytest.approx(statistics.median(engine_times(found)))


def test_an_engine_takes_no_negative_time_beside_its_weights(found: Measurements) -> None:
    costs = startup_costs(replace(found, stage_engine=(0.5 * found.weights, 1e-6)), 2)
    assert costs.engine == pytest.approx(0.0, abs=1e-12)
    assert costs.timed("engine", found.weights) == pytest.approx(statistics.median(engine_times(found)))


def engine_times(found: Measurements) -> list[float]:
    return [start["engine"].ended_at - start["engine"].started_at for start in found.starts]


def test_a_model_with_few_positions_gets_shapes_that_fit() -> None:
    shapes = Shapes.of(128, 512, quick=False)
    every = [*shapes.prompts, *shapes.batches, *shapes.in_context, *shapes.unseen]
    assert max(shape.longest for shape in every) <= 128
    assert max(shape.total for shape in every) <= 512
    assert [shape.rows for shape in shapes.batches][-1] == 32


@contextmanager
def nothing_left() -> Iterator[None]:
    before = left_over()
    yield
    assert left_over() == before


def test_the_command_writes_a_profile_that_a_run_takes(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the live extra: make test-live")
    out = tmp_path / "here.json"
    with nothing_left():
        result = CliRunner().invoke(cli, ["calibrate", "--model", str(tiny_model(2)), "--quick", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "not part of the fit" in result.output and f"aebench run figure7 --profile {out}" in result.output
    profile = read_profile(out)
    assert (profile.device, profile.model) == ("cpu", "tiny-2")
    assert [count for count, _ in profile.steps.prefill] == [1, 4, 16, 64, 256]
    assert len(profile.steps.slowdown) == 2
    assert 0 < profile.startup.container < profile.startup.libraries
    assert 1 <= (profile.startup.host_cores or 0) <= len(os.sched_getaffinity(0))
    assert list(tmp_path.iterdir()) == [out]
    assert (profile.threads, profile.quick) == (1, True)


def test_a_worker_that_dies_ends_the_calibration_with_its_name() -> None:
    pytest.importorskip("torch", reason="needs the live extra: make test-live")

    def kill(text: str) -> None:
        if text == "steps":
            children = [int(name.removeprefix("process ")) for name in left_over() if name.startswith("process ")]
            for pid in children:
                if b"serving.live.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    options = Options(hardware="", num_cores=2, effort=replace(QUICK, num_starts=0, num_at_once=1), num_instances=1)
    with nothing_left(), pytest.raises(LiveError, match=r"calibration of tiny-2: worker 0\.0 .* was killed by SIGKILL"):
        measure.calibrate(tiny_model(2), options, kill)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "nowhere: no checkpoint there"),
        (["--out", "there.json"], "there.json: there is a profile already. Expected another --out, or --force"),
        (["--out", "no/such/folder.json"], "no/such/folder.json: cannot be written. Expected --out in a folder"),
        (["--device", "cuda"], "--device cuda: nvidia-smi shows no CUDA device"),
    ],
)
def test_a_mistake_is_told_in_one_message_before_anything_is_measured(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="needs the live extra: make test-live")
    monkeypatch.setattr("aebench.machine.accelerators", list)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("kept")
    given = arguments if "--model" in arguments else ["--model", str(tiny_model(2)), *arguments]
    result = CliRunner().invoke(cli, ["calibrate", *given])
    assert (result.exit_code, (tmp_path / "there.json").read_text()) == (2, "kept")
    assert f"Error: {message}" in " ".join(result.output.split())
    assert "Traceback" not in result.output
