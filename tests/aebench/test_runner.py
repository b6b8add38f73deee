"""Runner: an experiment from missing points to summary, stopped and killed at bad moments."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from aebench.errors import LogError
from aebench.hosts.local import Listener, LocalHost
from aebench.logs import RunLog
from aebench.metrics import METRICS
from aebench.point import Point
from aebench.runner import RunOutcome, run_experiment
from tests.aebench.fake_execute import make_point
from tests.aebench.test_logs import make_log

POINTS = [make_point(index) for index in range(12)]
PROGRAM = """
import sys
from pathlib import Path
from aebench.hosts.local import LocalHost
from aebench.logs import RunLog
from aebench.runner import run_experiment
from tests.aebench.fake_execute import make_point

host = LocalHost(jobs=2, execute=f"tests.aebench.fake_execute:{sys.argv[2]}")
points = [make_point(index) for index in range(12)]
outcome = run_experiment(points, RunLog.open(Path(sys.argv[1])), host, progress=True)
print(outcome.status, outcome.num_done, outcome.signum)
"""
STUBBORN_PROGRAM = PROGRAM.replace("host = ", "LocalHost.stop = lambda host: None\nhost = ")


def run(log: RunLog, execute: str = "succeed", points: Sequence[Point] = POINTS) -> RunOutcome:
    """Runs points in two workers by a function of ``fake_execute``."""
    host = LocalHost(jobs=2, execute=f"tests.aebench.fake_execute:{execute}")
    return run_experiment(points, log, host, progress=False)


def start(log: RunLog, execute: str, program: str = PROGRAM) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", program, str(log.folder), execute]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_sealed(log: RunLog, number: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(log.points_folder.glob("*.parquet"))) < number:
        assert time.monotonic() < deadline, "no point was sealed"
        time.sleep(0.002)


def test_a_run_seals_all_points_and_summarises_them_in_grid_order(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    outcome = run(log, points=POINTS[::-1])
    assert (outcome.status, outcome.num_done, outcome.num_reused) == ("success", 12, 0)
    manifest = RunLog.open(log.folder).manifest
    assert (manifest.status, manifest.num_points, manifest.errors) == ("success", 12, {})
    assert manifest.wall_seconds > 0
    frame = log.summary()
    assert list(frame.columns) == ["index", "seed", *METRICS]
    assert list(frame["index"]) == list(range(11, -1, -1))
    assert log.read("summary.csv").splitlines()[1].startswith("11,0,10,10,0.")


def test_a_second_run_of_a_complete_log_runs_nothing(tmp_path: Path) -> None:
    class NoHost:
        """Fails the test when it is asked to run."""

        def run(self, points: Sequence[Point], run_log: RunLog, on_event: Listener) -> None:
            raise AssertionError(points, run_log, on_event)

        def stop(self) -> None:
            raise AssertionError

        kill = stop

    log = make_log(tmp_path)
    run(log)
    summary = log.read("summary.csv")
    outcome = run_experiment(POINTS, log, NoHost(), progress=False)
    assert (outcome.status, outcome.num_reused) == ("success", 12)
    assert log.read("summary.csv") == summary


def test_a_failed_point_leaves_the_others_and_its_reason_in_run_json(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    points = [make_point(index, marks=str(tmp_path)) for index in range(3)]
    outcome = run(log, "raise_at_1", points)
    assert (outcome.status, outcome.num_done) == ("partial", 2)
    manifest = RunLog.open(log.folder).manifest
    assert manifest.status == "partial"
    assert "ValueError: no such model: opt-9b" in manifest.errors["index=1"]
    assert list(log.summary()["index"]) == [0, 2]


def test_a_run_without_a_single_point_is_an_error_and_has_no_summary(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    assert run(log, "nothing", POINTS[:1]).status == "error"
    assert not (log.folder / "summary.csv").exists()


def test_a_full_disk_ends_the_run_as_an_error(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    with pytest.raises(LogError, match="No space left on device"):
        run(log, "no_space")
    manifest = RunLog.open(log.folder).manifest
    assert manifest.status == "error"
    assert "No space left on device" in manifest.errors["run"]


def test_a_stale_point_does_not_reach_the_summary(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    points = [make_point(index, marks=str(tmp_path)) for index in range(2)]
    run(log, "succeed", [make_point(index) for index in range(2)])
    assert run(log, "raise_at_1", points).num_done == 1
    assert list(log.summary()["index"]) == [0]


def test_two_points_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="two points are named 'index=0'; give each value of a grid axis once"):
        run(make_log(tmp_path), points=[make_point(), make_point(rate=2)])


def test_a_log_in_use_is_refused(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    with log.locked(), pytest.raises(LogError, match="another run is writing here"):
        run(RunLog.open(log.folder))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_the_run_and_keeps_what_is_sealed(tmp_path: Path, signum: signal.Signals) -> None:
    log = make_log(tmp_path)
    process = start(log, "wait_long")
    wait_for_sealed(log, 1)
    process.send_signal(signum)
    assert process.communicate(timeout=60)[0] == f"stopped 1 {int(signum)}\n"
    assert RunLog.open(log.folder).manifest.status == "stopped"
    assert list(log.summary()["index"]) == [0]
    assert run(log).num_reused == 1


def test_the_second_signal_kills_a_run_that_does_not_stop(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    process = start(log, "wait_long", STUBBORN_PROGRAM)
    wait_for_sealed(log, 1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == -signal.SIGINT
    with log.locked():
        pass


@pytest.mark.parametrize("num_sealed", [0, 5])
def test_a_run_killed_at_any_moment_resumes_to_the_same_summary(tmp_path: Path, num_sealed: int) -> None:
    undisturbed, log = make_log(tmp_path), make_log(tmp_path)
    run(undisturbed)
    process = start(log, "succeed_after_20_ms")
    wait_for_sealed(log, num_sealed)
    process.kill()
    process.wait()
    assert log.manifest.status == "started"
    outcome = run(log, "succeed_after_20_ms")
    assert outcome.status == "success"
    assert outcome.num_reused >= num_sealed
    assert log.read("summary.csv") == undisturbed.read("summary.csv")
    assert [path.suffix for path in log.points_folder.iterdir()] == [".parquet"] * 12


def test_the_recorded_command_has_no_place_of_this_machine() -> None:
    from aebench.workflow import _shareable

    assert _shareable(("run", "figure7", "--log-path", "elsewhere", "--runs", "5")) == ("run", "figure7", "--runs", "5")
    assert _shareable(("run", "--log-path=elsewhere", "figure7")) == ("run", "figure7")
