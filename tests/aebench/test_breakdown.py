"""Tables of an experiment with a breakdown: every column worked out by hand, and what is said of a damaged table."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from aebench import metrics
from aebench.errors import LogError
from aebench.resources import RESOURCE_METRICS, billed, grace_period
from aebench.stages import stage_rows
from aebench.tables import observed, table_frames
from tests.aebench.end_to_end import CHAT0, CHAT1, CODE0, Logged, make_logged, make_toy, worker
from tests.aebench.fake_execute import make_request


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """A log that nobody spoils."""
    return make_logged(make_toy(tmp_path_factory.mktemp("toy")))


def rows(frame: pd.DataFrame, **keys: object) -> list[dict[str, object]]:
    """Rows with these values, as dicts."""
    for key, value in keys.items():
        frame = frame[frame[key] == value]
    return frame.to_dict("records")


def test_the_summary_has_the_columns_about_instances_behind_its_own(logged: Logged) -> None:
    frame = logged.log.summary()
    assert list(frame.columns) == ["system", "cv", "seed", *metrics.METRICS, *RESOURCE_METRICS]
    (row,) = rows(frame, system="serverless_vllm", cv=4.0)
    assert {name: row[name] for name in RESOURCE_METRICS} == pytest.approx(
        {
            "ttft_slo_attainment": 0.75,  # 9 s is more than 7.5 s
            "tpot_slo_attainment": 1.0,
            "num_cold_starts": 2,
            "num_cache_hits": 1,
            "queue_mean": 2.375,  # 2, 1, 2 and 4.5 s
            "gpu_memory_time": 26.0,  # 104 GB s for 4 requests
            "num_consolidations": 1,
            "consolidation_time": 3.0,
            "pause_mean": 0.5,
            "pause_max": 0.75,
            "num_refused": 1,
        }
    )
    assert row["slo_attainment"] == 0.75
    assert math.isnan(row["itl_p99"])


def test_only_the_slo_that_counts_is_in_the_attainment(logged: Logged) -> None:
    (row,) = rows(logged.log.summary(), system="hydraserve", cv=8.0)
    # TTFT 6, 3, 6 and 9 s of 7.5; TPOT 0.15, 0.3, 0.15 and 0.15 s of 0.25
    assert (row["slo_attainment"], row["ttft_slo_attainment"], row["tpot_slo_attainment"]) == (0.75, 0.75, 0.75)
    (chat, code) = rows(logged.log.table("by_application"), system="hydraserve", cv=8.0)
    assert (chat["slo_attainment"], chat["ttft_slo_attainment"]) == (1.0, 1.0)
    assert chat["tpot_slo_attainment"] == pytest.approx(2 / 3)
    assert (code["slo_attainment"], code["tpot_slo_attainment"]) == (0.0, 1.0)


def test_a_row_for_each_application_that_was_asked_in_the_order_of_the_deployments(logged: Logged) -> None:
    frame = logged.log.table("by_application")
    assert list(frame.columns[:5]) == ["system", "cv", "seed", "application", "num_requests"]
    assert len(frame) == 4 * 2
    (chat, code) = rows(frame, system="serverless_vllm", cv=8.0)
    assert (chat["application"], code["application"]) == ("chatbot", "code")
    numbers = ("num_requests", "ttft_mean", "ttft_p50", "tpot_mean", "gpu_memory_time")
    assert [chat[name] for name in numbers] == pytest.approx([3, 10 / 3, 4.0, 0.4 / 3, 100 / 3])
    assert [code[name] for name in numbers] == pytest.approx([1, 9.0, 9.0, 0.1, 4.0])


def test_a_row_for_each_deployed_model_that_was_asked(logged: Logged) -> None:
    frame = logged.log.table("by_model")
    assert len(frame) == 4 * 3
    found = rows(frame, system="serverless_vllm", cv=8.0)
    assert [(row["application"], row["model"]) for row in found] == [
        ("chatbot", CHAT0),
        ("chatbot", CHAT1),
        ("code", CODE0),
    ]
    # (10 * 0.1 + 30 * 0.2) / 40 = 0.175, which the mean of the two, 0.15, is not
    assert [row["tpot"] for row in found] == pytest.approx([0.175, 0.1, 0.1])
    assert [row["gpu_memory_time"] for row in found] == pytest.approx([40.0, 20.0, 4.0])


def test_the_models_requests_and_memory_add_up_to_their_application_s(logged: Logged) -> None:
    models, applications = logged.log.table("by_model"), logged.log.table("by_application")
    for frame in (models, applications):
        frame["memory"] = frame["gpu_memory_time"] * frame["num_requests"]
    keys = ["system", "cv", "seed", "application"]
    both = [frame.groupby(keys)[["num_requests", "memory"]].sum() for frame in (models, applications)]
    pd.testing.assert_frame_equal(*both)


@pytest.mark.parametrize(
    ("end", "changes", "expected"),
    [
        (7.0, {"last_busy_at": 3.0}, 5 * 6.0),  # it ended: that is that
        (None, {"ready_at": 4.0, "last_busy_at": 9.0}, 5 * (9.0 + 30 - 1)),
        (None, {"ready_at": 4.0}, 5 * (4.0 + 30 - 1)),
        (None, {}, 5 * 30.0),
    ],
)
def test_a_worker_is_billed_to_its_end_or_to_the_grace_period_after_what_was_last_known(
    end: float | None, changes: dict[str, float], expected: float
) -> None:
    assert billed(worker(CHAT0, 5, 1.0, end, **changes), grace=30.0) == pytest.approx(expected)


def test_the_grace_period_is_the_system_s_and_the_point_s() -> None:
    assert grace_period({"system": "hydraserve", "policy": {}}) == 30.0
    assert grace_period({"system": "serverlessllm", "policy": {"grace_period": 5.0}}) == 5.0


def test_of_a_point_where_nothing_happened_sums_are_0_and_means_are_empty(logged: Logged) -> None:
    nothing = observed(logged.log, logged.points[0])
    nothing = type(nothing)(
        requests=(), workers=(), launches=(), refusals=(), consolidations=(), pauses=(), grace=nothing.grace
    )
    found = {name: metric(nothing) for name, metric in RESOURCE_METRICS.items()}
    empty = {name for name, value in found.items() if math.isnan(value)}
    assert empty == {
        "ttft_slo_attainment",
        "tpot_slo_attainment",
        "queue_mean",
        "gpu_memory_time",
        "pause_mean",
        "pause_max",
    }
    assert {value for name, value in found.items() if name not in empty} == {0.0}


@pytest.mark.parametrize(
    ("counted", "changes", "met"),
    [
        (("ttft",), {"finished_at": None}, True),  # its first token came in time
        (("tpot",), {"finished_at": None}, False),
        (("ttft", "tpot"), {"finished_at": None}, False),
        (("ttft",), {"first_token_at": None, "finished_at": None}, False),
        (("ttft",), {"tpot_slo": 0.1}, True),
        (("tpot",), {"ttft_slo": 0.1}, True),
        (("tpot",), {"tpot_slo": 0.1}, False),
        (("tpot",), {"tpot_slo": 0.1, "num_output_tokens": 1}, True),
    ],
)
def test_an_slo_that_does_not_count_cannot_be_missed(
    counted: tuple[str, ...], changes: dict[str, object], met: bool
) -> None:
    request = make_request(**{"ttft_slo": 1.0, "tpot_slo": 0.5, **changes})
    assert metrics.met_slo(request, counted) is met


def frames_with(logged: Logged, **measure: object) -> dict[str, pd.DataFrame]:
    """The tables of the log's records, measured in another way."""
    points = [replace(point, spec={**point.spec, "measure": measure}) for point in logged.points]

    class Sealed:
        """The log, whatever spec its points were sealed with."""

        records = staticmethod(lambda point, *rest: logged.log.records(point, *rest))
        is_sealed = staticmethod(lambda _: True)

    return table_frames(Sealed(), points)  # type: ignore[arg-type]  # static methods


def test_without_a_breakdown_there_is_the_summary_alone(logged: Logged) -> None:
    frames = frames_with(logged)
    assert {name: list(frame.columns) for name, frame in frames.items()} == {
        "summary": ["system", "cv", "seed", *metrics.METRICS]
    }


@pytest.mark.parametrize("breakdown", [(), ("application",)])
def test_requests_that_do_not_count_are_in_no_table(logged: Logged, breakdown: tuple[str, ...]) -> None:
    frames = frames_with(logged, labels=["chatbot"], drop_largest=1, breakdown=breakdown)
    assert frames["summary"]["num_requests"].tolist() == [2] * 4  # of four: not the code one, nor the slowest other
    for frame in (frames[name] for name in frames if name != "summary"):
        assert frame["application"].tolist() == ["chatbot"] * 4
        assert frame["num_requests"].tolist() == [2] * 4


DAMAGES = {
    "a row is missing": (lambda text: text[: text.rindex("\n", 0, -1) + 1], "cut off, it has 15 requests of 16"),
    "half a row": (lambda text: text[:-20], "cut off, it has 12 rows"),
    "a column is missing": (lambda text: text.replace("num_requests", "n"), "cut off, it has not all of its columns"),
    "no file": (None, "No such file or directory"),
    "another point's": (
        lambda text: text.replace("hydraserve,8.0", "hydraserve,4.0"),
        "cut off, it has 16 requests of 16",
    ),
}


@pytest.mark.parametrize(("spoil", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_table_is_named_and_made_anew_by_resuming(tmp_path: Path, spoil, said: str) -> None:
    logged = make_logged(make_toy(tmp_path))
    path = logged.log.folder / "by_model.csv"
    whole = path.read_text()
    path.unlink() if spoil is None else path.write_text(spoil(whole))
    with pytest.raises(LogError) as damaged:
        logged.log.table("by_model")
    assert str(damaged.value) == f"{path}: {said}. Run again with --resume"
    found = logged.checkout.aebench("plot", "penalty", "--log-path", str(logged.checkout.logs))
    assert (found.exit_code, str(path) in found.stderr) == (2, True)
    for name, frame in table_frames(logged.log, logged.points).items():
        logged.log.write_table(name, frame)
    assert path.read_text() == whole


def test_consolidations_are_no_stage_of_a_cold_start(logged: Logged) -> None:
    assert {row.stage for row in stage_rows(logged.log, None)} == {"fetch", "first token"}
