"""LocalHost: points in worker processes, and what happens when one dies, raises or finds the disk full."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aebench.errors import LogError
from aebench.hosts.local import LocalHost, PointEvent, Stage
from aebench.logs import RunLog
from aebench.point import Point
from tests.aebench.fake_execute import make_point
from tests.aebench.test_logs import make_log


def run(log: RunLog, points: list[Point], execute: str, jobs: int = 2) -> list[PointEvent]:
    """Runs points by a function of ``fake_execute`` and returns what the host said."""
    events: list[PointEvent] = []
    host = LocalHost(jobs=jobs, execute=f"tests.aebench.fake_execute:{execute}")
    host.run(points, log, events.append)
    return events


def ends(events: list[PointEvent]) -> dict[str, Stage]:
    return {event.point.name: event.stage for event in events if event.stage is not Stage.STARTED}


def names(log: RunLog) -> list[str]:
    return sorted(path.name for path in log.points_folder.iterdir())


def is_alive(pid: int) -> bool:
    """Whether the process runs; a dead one that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_results_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    points = [make_point(index, seed) for index in range(3) for seed in range(2)]
    logs = {jobs: make_log(tmp_path) for jobs in (1, 3)}
    for jobs, log in logs.items():
        events = run(log, points, "succeed", jobs)
        assert set(ends(events).values()) == {Stage.SEALED}
        assert log.missing(points) == []
    for point in points:
        assert logs[1].records(point) == logs[3].records(point) != []


def test_a_point_whose_worker_was_killed_is_run_again_by_another(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    points = [make_point(index, marks=str(tmp_path)) for index in range(3)]
    events = run(log, points, "die_once")
    assert log.missing(points) == []
    retried = [event for event in events if event.stage is Stage.RETRIED]
    assert [event.point.name for event in retried] == ["index=1"]
    assert retried[0].message == "the worker process ended by SIGKILL\nthe last line"
    assert names(log) == [f"index={index}.parquet" for index in range(3)]


def test_a_point_that_kills_its_worker_twice_is_an_error_and_the_rest_goes_on(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    points = [make_point(index) for index in range(4)]
    events = run(log, points, "exit_at_1")
    assert log.missing(points) == [points[1]]
    assert [event.stage for event in events if event.point == points[1]] == [
        Stage.STARTED,
        Stage.RETRIED,
        Stage.STARTED,
        Stage.FAILED,
    ]
    (failed,) = [event for event in events if event.stage is Stage.FAILED]
    assert failed.message == "the worker process ended with exit code 7\nabout to exit"


def test_a_point_that_raises_is_an_error_with_its_traceback_and_is_not_retried(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    points = [make_point(index, marks=str(tmp_path)) for index in range(3)]
    events = run(log, points, "raise_at_1", jobs=1)
    assert log.missing(points) == [points[1]]
    (failed,) = [event for event in events if event.stage is Stage.FAILED]
    assert failed.message.startswith("Traceback (most recent call last):")
    assert failed.message.endswith("ValueError: no such model: opt-9b\n")
    assert (tmp_path / "attempts").read_text() == "x"


def test_an_execute_that_does_not_exist_is_an_error_of_its_points(tmp_path: Path) -> None:
    events = run(make_log(tmp_path), [make_point()], "nothing")
    assert events[-1].stage is Stage.FAILED
    assert "has no attribute 'nothing'" in events[-1].message


@pytest.mark.parametrize(
    ("execute", "said"),
    [("fill_disk", r"index=1\.jsonl: File too large"), ("no_space", "No space left on device. Free some")],
)
def test_a_disk_that_takes_no_more_ends_the_run(tmp_path: Path, execute: str, said: str) -> None:
    log = make_log(tmp_path)
    with pytest.raises(LogError, match=said):
        run(log, [make_point(index) for index in range(1, 4)], execute, jobs=1)
    assert "index=1.parquet" not in names(log)
    assert "index=3.jsonl" not in names(log)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    program = (
        "import sys; from pathlib import Path\n"
        "from aebench.hosts.local import LocalHost; from aebench.logs import RunLog\n"
        "from tests.aebench.fake_execute import make_point\n"
        "host = LocalHost(jobs=1, execute='tests.aebench.fake_execute:report_process')\n"
        "host.run([make_point(marks=sys.argv[2])], RunLog.open(Path(sys.argv[1])), print)\n"
    )
    command = [sys.executable, "-c", program, str(log.folder), str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    worker = int((tmp_path / "pid").read_text())
    assert is_alive(worker)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(worker)


def test_a_host_without_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="jobs is 0, expected at least 1"):
        LocalHost(jobs=0)
