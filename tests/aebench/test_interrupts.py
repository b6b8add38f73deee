"""Interrupts: signals and kills at bad moments of ``aebench run``, and what is left to go on with."""

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from aebench.cli import cli
from aebench.errors import Stopped
from tests.aebench.checkout import Checkout, make_checkout

SLOW = ("figure7", "--set", "grid.model=opt-2.7b", "--runs", "2", "--jobs", "1")
"""20 points, one after another."""


def num_sealed(checkout: Checkout) -> int:
    """Sealed points of all runs; a folder that is about to get its name is not looked into."""
    return len(list(checkout.logs.glob("hydraserve/*/[!.]*/points/[!.]*.parquet")))


def wait_for_sealed(checkout: Checkout, number: int) -> None:
    """Waits until that many points are sealed, and no longer than that."""
    deadline = time.monotonic() + 60
    while num_sealed(checkout) < number:
        assert time.monotonic() < deadline, "no point was sealed"
        time.sleep(0.002)


def children(pid: int) -> list[int]:
    """The worker processes of a process: those that were spawned by multiprocessing."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def results(checkout: Checkout) -> tuple[bytes, bytes]:
    folder = checkout.newest("cold_start")
    return (folder / "summary.csv").read_bytes(), (folder / "figure7.claim").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """What a run that nobody disturbs writes."""
    checkout = make_checkout(tmp_path_factory.mktemp("undisturbed"))
    assert checkout.run(*SLOW).exit_code == 0
    return results(checkout)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_finished_points_and_prints_the_command_that_finishes_the_run(
    tmp_path: Path, undisturbed: tuple[bytes, bytes], signum: signal.Signals, code: int
) -> None:
    checkout = make_checkout(tmp_path)
    process = checkout.start(*SLOW)
    wait_for_sealed(checkout, 3)
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    kept = num_sealed(checkout)
    assert 3 <= kept < 20
    words = [*SLOW, "--log-path", str(checkout.logs), "--resume"]
    assert said == (
        f"Stopped by {signum.name}: {kept} of 20 points are kept. To finish: {shlex.join(['aebench', 'run', *words])}\n"
    )
    assert json.loads((checkout.newest("cold_start") / "run.json").read_text())["status"] == "stopped"
    if signum == signal.SIGTERM:
        return  # that the command works is shown once
    finishing = shlex.split(said.rpartition("To finish: aebench ")[2])
    finished = checkout.aebench(*finishing)
    assert finished.exit_code == 0, finished.output
    assert f"\n{kept} of 20 points were there already\n" in finished.stdout
    assert results(checkout) == undisturbed


def test_a_stop_in_the_first_of_two_experiments_can_be_resumed_to_the_end_of_both(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    process = checkout.start("figure7", "figure8", "--scale", "smoke", "--jobs", "1")
    wait_for_sealed(checkout, 1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert not list(checkout.logs.glob("hydraserve/breakdown"))
    finished = checkout.aebench(*shlex.split(said.rpartition("To finish: aebench ")[2]))
    assert finished.exit_code == 0, finished.output
    assert [path.name for path in checkout.newest("breakdown").glob("*.claim")] == ["figure8.claim"]
    assert [path.name for path in checkout.newest("cold_start").glob("*.claim")] == ["figure7.claim"]


def test_a_killed_worker_is_reported_and_its_point_run_once_more_while_a_second_run_is_refused(
    tmp_path: Path, undisturbed: tuple[bytes, bytes]
) -> None:
    checkout = make_checkout(tmp_path)
    process = checkout.start(*SLOW)
    wait_for_sealed(checkout, 2)
    (worker,) = children(process.pid)
    os.kill(worker, signal.SIGKILL)
    refused = checkout.run(*SLOW, "--resume")
    folder = checkout.short(str(checkout.newest("cold_start")))
    assert checkout.refusal(refused) == (
        f"Error: {folder}: another run is writing here (process {process.pid}). Wait for it, or leave out --resume"
    )
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    reports = [line for line in said.splitlines() if "died" in line]
    assert len(reports) == 1
    assert reports[0].startswith("the worker of gpu=")
    assert reports[0].endswith(" died; the point was run again")
    assert results(checkout) == undisturbed


def test_a_killed_run_resumes_to_the_bytes_of_an_undisturbed_one(
    tmp_path: Path, undisturbed: tuple[bytes, bytes]
) -> None:
    checkout = make_checkout(tmp_path)
    process = checkout.start(*SLOW)
    wait_for_sealed(checkout, 5)
    process.kill()
    process.communicate(timeout=60)
    folder = checkout.newest("cold_start")
    assert not (folder / "summary.csv").exists()
    refused = checkout.aebench("diff", "figure7", "--log-path", str(checkout.logs))
    assert checkout.refusal(refused) == (
        f"Error: {checkout.short(str(folder))}/summary.csv: No such file or directory. Run again with --resume"
    )
    resumed = checkout.run(*SLOW, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert checkout.newest("cold_start") == folder
    assert results(checkout) == undisturbed
    assert {path.suffix for path in (folder / "points").iterdir()} == {".parquet"}


def test_a_reader_that_hangs_up_ends_the_listing_without_a_traceback(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    process = checkout.start("all", "--dry-run", "--runs", "30")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), said) == (0, "")


def test_a_stop_while_drawing_says_how_to_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("aebench.workflow.draw", stop)
    words = ["run", "figure8", "--scale", "smoke", "--log-path", str(tmp_path / "logs"), "--jobs", "1"]
    result = CliRunner().invoke(cli, words)
    (folder,) = (tmp_path / "logs" / "hydraserve" / "breakdown").iterdir()
    assert result.exit_code == 143
    assert result.stderr == (
        "Stopped by SIGTERM while drawing: 5 of 5 points are kept. "
        f"To draw: aebench plot hydraserve/figure8 --log-path {folder}\n"
    )
    monkeypatch.undo()
    assert CliRunner().invoke(cli, ["plot", "hydraserve/figure8", "--log-path", str(folder)]).exit_code == 0
