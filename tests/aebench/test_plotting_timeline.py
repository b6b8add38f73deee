"""The timeline drawn, and the command that draws it: its rows, its window, and what it says to wrong names."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas

from aebench.catalog import ROOT
from aebench.errors import LogError
from aebench.plotting import style
from aebench.plotting.draw import write_canvas
from aebench.plotting.timeline import LOOKS, draw
from aebench.timeline import Phase, Timeline, timeline
from aebench.timeline_point import chosen_window, one_point, timeline_of
from tests.aebench.checkout import Checkout, make_checkout
from tests.aebench.fake_execute import make_point
from tests.aebench.test_logs import make_log, seal
from tests.aebench.test_timeline import WORKER, request, stage

(HELLO,) = sorted((ROOT / "history_logs" / "hydraserve" / "hello").glob("*-sim-*"))[-1:]
POINTS = "cv=1,system=hydraserve"


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which nothing may run."""
    return make_checkout(tmp_path_factory.mktemp("idle"))


def small() -> Timeline:
    return timeline(
        [
            WORKER,
            stage("fetch", 10.0, 15.0),
            stage("kv migration", 33.0, 34.0),
            stage("consolidation", 21.0, 34.0),
            request(1, 9.0, 20.0, 30.0),
            request(2, 12.0, None, None),
        ]
    )


def drawn(shown: Timeline, window: tuple[float, float]) -> Canvas:
    with mpl.rc_context(style.RC):
        canvas = draw(shown, window, "caption")
        canvas.draw_without_rendering()
    return canvas


def spans(canvas: Canvas, phase: Phase) -> list[tuple[float, float]]:
    """From when to when a phase is drawn."""
    color = LOOKS[phase][0].lower()
    found = [each for each in canvas.axes[1].collections if isinstance(each, PolyCollection)]
    same = [each for each in found if len(each.get_facecolor()) and to_hex(each.get_facecolor()[0]) == color]
    return [tuple(path.vertices[:, 0][[0, 2]]) for each in same for path in each.get_paths()]


def test_phases_are_drawn_where_they_are() -> None:
    canvas = drawn(small(), (0.0, 70.0))
    assert spans(canvas, Phase.STARTING) == [(10.0, 20.0)]
    assert spans(canvas, Phase.FETCHING) == [(10.0, 15.0)]
    assert spans(canvas, Phase.BUSY) == [(20.0, 30.0)]
    assert spans(canvas, Phase.IDLE) == [(20.0, 70.0)]
    assert spans(canvas, Phase.MIGRATING) == [(33.0, 34.0)]


def test_phases_that_overlap_are_told_apart_by_their_place_in_the_lane() -> None:
    fetching, loading, moving = (LOOKS[phase] for phase in (Phase.FETCHING, Phase.LOADING, Phase.MIGRATING))
    assert fetching[1] + fetching[2] <= moving[1]
    assert moving[1] + moving[2] <= loading[1]
    assert LOOKS[Phase.IDLE][2] < LOOKS[Phase.BUSY][2]


def test_the_legend_names_what_occurs_and_nothing_else() -> None:
    texts = [text.get_text() for text in drawn(small(), (0.0, 70.0)).legends[0].get_texts() if text.get_text()]
    assert sorted(texts) == sorted(
        ["starting", "ready, idle", "serving", "fetching", "moving KV", "consolidating", "requests waiting"]
    )


def test_waiting_requests_stand_above_served_ones() -> None:
    above = drawn(small(), (0.0, 70.0)).axes[0]
    served, waiting = above.collections[:2]
    assert max(served.get_paths()[0].vertices[:, 1]) == 1
    # from 12 to 20 both wait; then one is served until 30, and the other waits on
    assert max(waiting.get_paths()[0].vertices[:, 1]) == 2
    assert above.get_ylim()[1] == pytest.approx(2.1)


def test_the_window_is_what_is_shown() -> None:
    canvas = drawn(small(), (15.0, 25.0))
    assert canvas.axes[1].get_xlim() == (15.0, 25.0)


def test_everything_is_inside_the_page() -> None:
    canvas = drawn(small(), (0.0, 70.0))
    legend = canvas.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= canvas.bbox.width
    assert canvas.axes[1].get_tightbbox().x0 >= 0


def test_it_is_the_same_every_time(tmp_path: Path) -> None:
    first = write_canvas(lambda: draw(small(), (0.0, 70.0), "c"), tmp_path / "one")
    second = write_canvas(lambda: draw(small(), (0.0, 70.0), "c"), tmp_path / "two")
    assert [path.suffix for path in first] == [".pdf", ".png", ".svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_command_draws_one_point_of_a_run(idle: Checkout, tmp_path: Path) -> None:
    words = ["--log-path", str(HELLO), "--point", POINTS, "--from", "100", "--to", "160", "--out", str(tmp_path)]
    result = idle.aebench("plot", "timeline", *words)
    assert result.exit_code == 0, result.output
    stem = tmp_path / "hydraserve" / "hello" / f"timeline-{POINTS}-100-160s"
    files = [f"{stem}.{suffix}" for suffix in ("pdf", "png", "svg")]
    assert result.stdout == f"hydraserve/hello  {POINTS}  {' '.join(files)}\n"
    assert all(Path(file).stat().st_size > 5000 for file in files)


def test_any_other_word_behind_plot_is_still_a_figure(idle: Checkout, tmp_path: Path) -> None:
    result = idle.aebench("plot", "timelines", "--log-path", str(HELLO), "--out", str(tmp_path))
    assert (result.exit_code, result.stderr) == (2, "Error: no figure, paper or topic 'timelines'.\n")
    assert idle.aebench("plot", "hello", "--log-path", str(HELLO), "--out", str(tmp_path)).exit_code == 0
    assert idle.aebench("plot", "--help").stdout.startswith("Usage: aebench plot [OPTIONS] [WHAT]...")
    assert idle.aebench("plot", "timeline", "-h").stdout.startswith("Usage: aebench plot timeline [OPTIONS] [WHAT]")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--point", "sistem=hydraserve"), "--point sistem=hydraserve: unknown key 'sistem'. Did you mean system? "
         "Known: cv, system, seed"),
        (("--point", "cv=1.0,system=hydraserv"), "--point system=hydraserv: no point of LOG has that system. "
         "Did you mean hydraserve? Known: hydraserve, hydraserve_with_single_worker, serverless_vllm, "
         "serverlessllm"),
        (("--point", "hydraserve"), "--point hydraserve: expected KEY=VALUE,..., got 'hydraserve'"),
        (("--point", "cv=1"), "a timeline shows one point, and --point cv=1: 4 points of LOG could be meant. "
         "Say which, for example: aebench plot timeline --log-path LOG --point cv=1,system=hydraserve"),
        ((), "a timeline shows one point, and 8 points of LOG could be meant. "
         "Say which, for example: aebench plot timeline --log-path LOG --point cv=1,system=hydraserve"),
        (("--point", "cv=1,system=hydraserve,seed=4"), "--point seed=4: no point of LOG has that seed. Known: 0"),
        (("--point", POINTS, "--from", "9000"), "--from 9000: expected less than END, when the run ended"),
        (("--point", POINTS, "--from", "90", "--to", "80"), "--to 80: expected more than 90, where the window begins"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_message(idle: Checkout, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    result = idle.aebench("plot", "timeline", "--log-path", str(HELLO), "--out", str(tmp_path), *words)
    assert result.exit_code == 2
    short = re.sub(r"[0-9]+, when", "END, when", result.stderr.replace(str(HELLO), "LOG"))
    assert short == f"Error: {said}\n"


def test_the_example_runs_as_it_stands(idle: Checkout, tmp_path: Path) -> None:
    said = idle.aebench("plot", "timeline", "hydraserve/hello", "--log-path", str(ROOT / "history_logs")).stderr
    words = shlex.split(said.partition("for example: aebench ")[2])
    result = idle.aebench(*words, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"hydraserve/hello  {POINTS}  ")


def test_of_several_seeds_the_first_is_shown_unless_one_is_named(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    for seed in (1, 2):
        seal(log, replace(make_point(), seed=seed), [WORKER])
    assert one_point(log, "").name == "index=0,seed=1"
    assert one_point(log, "index=0,seed=2").seed == 2


def test_a_point_without_workers_says_so(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    path = seal(log, make_point(), [request(1, 0.0, None, None)])
    with pytest.raises(LogError) as refusal:
        timeline_of(one_point(log, ""))
    assert str(refusal.value) == f"{path}: no worker is recorded in it, so there is nothing to show over time"


def test_a_run_without_finished_points_says_how_to_finish_it(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    with pytest.raises(LogError) as refusal:
        one_point(log, "")
    assert str(refusal.value) == f"{log.folder}: none of its points is finished. Run again with --resume"


@pytest.mark.parametrize(
    ("start", "end", "window"),
    [(None, None, (0.0, 300.0)), (100.0, None, (100.0, 400.0)), (None, 700.0, (400.0, 700.0)),
     (None, 50.0, (0.0, 50.0)), (900.0, None, (900.0, 1000.0)), (10.0, 20.0, (10.0, 20.0)),
     (10.0, 9000.0, (10.0, 1000.0))],
)  # fmt: skip
def test_one_end_of_the_window_gives_the_other(
    start: float | None, end: float | None, window: tuple[float, float]
) -> None:
    assert chosen_window(start, end, Timeline(bars=(), requests=(), end=1000.0)) == window


def test_a_folder_with_several_experiments_or_none_asks_which(idle: Checkout, tmp_path: Path) -> None:
    shipped = str(ROOT / "history_logs")
    several = idle.aebench("plot", "timeline", "--log-path", shipped).stderr
    assert "has runs of " in several and several.endswith(
        f"for example: aebench plot timeline hydraserve/breakdown --log-path {shipped}\n"
    )
    paper = idle.aebench("plot", "timeline", "hydraserve", "--log-path", shipped).stderr
    assert paper.startswith("Error: a timeline shows one run, and hydraserve is several experiments: ")
    worlds = idle.aebench("plot", "timeline", "figure7", "--log-path", shipped).stderr
    assert worlds.startswith("Error: a timeline shows one run, and there are ")
    assert worlds.endswith(". Give one of them as --log-path\n")
    none = idle.aebench("plot", "timeline", "--log-path", str(tmp_path)).stderr
    assert none == f"Error: {tmp_path} has no run. Run, for example: aebench run figure7 --log-path {tmp_path}\n"
    absent = idle.aebench("plot", "timeline", "figure8", "--log-path", str(tmp_path)).stderr
    assert absent == (
        f"Error: {tmp_path} has no run of hydraserve/breakdown. "
        f"Run: aebench run hydraserve/breakdown --log-path {tmp_path}\n"
    )
    nowhere = idle.aebench("plot", "timeline", "--log-path", "/nowhere").stderr
    assert nowhere == "Error: /nowhere: no such folder. Give --log-path the folder that runs were written to\n"
