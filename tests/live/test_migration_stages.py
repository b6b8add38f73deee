"""Pipelines of two stages: a sequence moves worker by worker, each stage's KV to the same stage of the other."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the live extra: make test-live")

from serving.core.actions import Method
from tests.live.migrations import Sky, Weather, fast, stormy
from tests.live.test_engine import answers, serving, until
from tests.live.test_migration_live import LENGTH, LONG, PROMPTS, SLOW, ask_long


@pytest.fixture(scope="module")
def sky() -> Iterator[Sky]:
    """Two pipelines of two processes each."""
    records: list[Any] = []
    weather = Weather()
    with serving(stormy(2, 2, weather), records=records) as engine:
        until(engine, lambda stats: stats.instances_ready == 2)
        yield Sky(engine, weather, records)


@pytest.fixture(scope="module")
def alone(sky: Sky) -> list[list[int]]:
    """The greedy answer to each prompt, undisturbed."""
    return answers(sky.engine, PROMPTS, max_tokens=LENGTH)


def test_storms_between_pipelines_change_no_token(sky: Sky, alone: list[list[int]]) -> None:
    sky.weather.methods = tuple(Method)
    assert answers(sky.engine, PROMPTS * 3, max_tokens=LENGTH) == alone * 3
    sky.weather.methods = ()
    moved = [record for record in sky.migrations() if record.outcome == "migrated"]
    assert len(moved) > 8
    assert {record.method for record in moved} == {method.value for method in Method}
    sky.assert_is_clear()


def test_a_stage_that_is_killed_while_the_others_copy_takes_the_move_with_it(sky: Sky) -> None:
    expected = answers(sky.engine, [LONG], max_tokens=200)[0]
    sky.records.clear()
    sky.limit(SLOW)
    handle, heard = ask_long(sky)
    source, target = sky.move(handle.request_id)
    move = source.move
    assert move is not None
    sky.until(lambda: len(move.reservation.blocks) >= 12)
    sky.kill(target, rank=1)
    assert heard.last.finish_reason == "length"
    assert heard.ids == expected
    assert sky.ended(handle.request_id).outcome == "target lost"
    fast(sky)
    sky.assert_is_clear()
