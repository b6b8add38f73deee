"""Running sequences that move between real processes: the same tokens, whatever happens on the way."""

from collections.abc import Iterator
from itertools import accumulate, pairwise
from random import Random
from time import sleep
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the live extra: make test-live")

from serving.core.actions import Method
from serving.core.instance import Instance
from serving.core.kv import Reservation
from serving.core.request import Sampling
from serving.live.arrival import Arrival
from serving.live.output import Handle, Output
from serving.records import DecisionRecord, PauseRecord, RequestRecord
from serving.units import MB, Seconds, ms
from tests.live.migrations import BLOCK, NUM_BLOCKS, Sky, Weather, fast, stormy
from tests.live.test_engine import Heard, answers, ask, serving, until

pytestmark = pytest.mark.faults

PROMPTS = [[Random(number).randrange(320) for _ in range(6 + 9 * number)] for number in range(10)]
LENGTH = 60
LONG = [Random("long").randrange(320) for _ in range(200)]
"""12 blocks and a half."""
LONG_LENGTH = 200
TOKEN: Seconds = 4 * ms
"""What a long answer takes per token at least, however fast the machine is."""
SLOW = 0.1 * MB
"""Per second: a block takes 80 ms."""


@pytest.fixture(scope="module")
def weather() -> Weather:
    return Weather()


@pytest.fixture(scope="module")
def running(weather: Weather) -> Iterator[Sky]:
    """Six instances: four tests kill one each."""
    records: list[Any] = []
    with serving(stormy(6, 1, weather), records=records) as engine:
        until(engine, lambda stats: stats.instances_ready == 6)
        yield Sky(engine, weather, records)


@pytest.fixture
def sky(running: Sky) -> Iterator[Sky]:
    """In fine weather, before and after."""
    running.records.clear()
    yield running
    running.weather.methods = ()
    running.assert_is_clear()
    fast(running)


@pytest.fixture(scope="module")
def alone(running: Sky) -> list[list[int]]:
    """The greedy answer to each prompt, undisturbed."""
    found = answers(running.engine, PROMPTS, max_tokens=LENGTH)
    assert all(len(set(output)) > 8 for output in found)
    return found


@pytest.fixture(scope="module")
def long_alone(running: Sky) -> list[int]:
    return answers(running.engine, [LONG], max_tokens=LONG_LENGTH)[0]


class Slow(Heard):
    """Who hears a long answer; nothing else happens meanwhile on the clock's thread."""

    def __call__(self, output: Output) -> None:
        super().__call__(output)
        sleep(TOKEN)


def ask_long(sky: Sky, num_tokens: int = LONG_LENGTH, prompt: list[int] = LONG) -> tuple[Handle, Heard]:
    """It has begun to be answered."""
    heard = Slow()
    handle = sky.engine.submit(prompt, model="tiny", max_tokens=num_tokens, ignore_eos=True, on_output=heard)
    assert heard.started.wait(60)
    return handle, heard


STORMS = [(Method.LIVE,), (Method.BLOCKING,), (Method.RECOMPUTE,), tuple(Method)]


@pytest.mark.parametrize("methods", STORMS, ids=lambda methods: "+".join(method.value for method in methods))
def test_storms_change_no_token(sky: Sky, alone: list[list[int]], methods: tuple[Method, ...]) -> None:
    sky.weather.methods = methods
    assert answers(sky.engine, PROMPTS * 6, max_tokens=LENGTH) == alone * 6
    sky.weather.methods = ()
    moved = [record for record in sky.migrations() if record.outcome == "migrated"]
    assert len(moved) > 20
    assert {record.method for record in moved} == {method.value for method in methods}
    requests = [record for record in sky.records if isinstance(record, RequestRecord)]
    assert sum(record.num_preemptions for record in requests) > 0
    assert len({record.instance for record in requests}) > 1


def test_storms_change_no_token_on_a_gpu(weather: Weather) -> None:
    if not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    records: list[Any] = []
    with serving(stormy(4, 1, weather, device="cuda"), records=records) as engine:
        until(engine, lambda stats: stats.instances_ready == 4)
        sky = Sky(engine, weather, records)
        alone = answers(engine, PROMPTS, max_tokens=LENGTH)
        weather.methods = tuple(Method)
        stormy_answers = answers(engine, PROMPTS * 6, max_tokens=LENGTH)
        weather.methods = ()
        assert stormy_answers == alone * 6
        assert sum(record.outcome == "migrated" for record in sky.migrations()) > 20
        sky.assert_is_clear()


def test_draws_log_probabilities_and_stops_are_the_same_in_a_storm(sky: Sky, alone: list[list[int]]) -> None:
    tokenizer = sky.engine.tokenizers["tiny"]
    assert tokenizer is not None
    whole = tokenizer.decode(alone[3])
    asked: list[dict[str, Any]] = [
        {"sampling": Sampling(temperature=1.3, top_p=0.95, seed=7)},
        {"sampling": Sampling(temperature=1.3, top_p=0.95, seed=8)},
        {"sampling": Sampling(logprobs=2)},
        {"stop": (whole[20:23],)},
    ]

    def all_of(times: int) -> list[list[Heard]]:
        rounds = [[ask(sky.engine, PROMPTS[3], LENGTH, **fields)[1] for fields in asked] for _ in range(times)]
        for heard in rounds:
            assert [one.last.finish_reason for one in heard] == ["length"] * 3 + ["stop"]
        return rounds

    (calm,) = all_of(1)
    assert calm[0].ids != calm[1].ids
    sky.weather.methods = tuple(Method)
    for heard in all_of(6):
        assert [one.ids for one in heard] == [one.ids for one in calm]
        assert [text_of(one) for one in heard] == [text_of(one) for one in calm]
        logprobs = [[lp for output in one[2].outputs for lp in output.logprobs] for one in (calm, heard)]
        assert [[lp.token_id for lp in found] for found in logprobs] == [calm[2].ids] * 2
        assert [lp.logprob for lp in logprobs[0]] == pytest.approx([lp.logprob for lp in logprobs[1]], abs=1e-4)
    assert sum(record.outcome == "migrated" for record in sky.migrations()) > 4


def text_of(heard: Heard) -> str:
    return "".join(output.text for output in heard.outputs)


@pytest.mark.parametrize("method", list(Method), ids=lambda method: method.value)
def test_the_pause_is_the_gap_between_two_tokens(sky: Sky, long_alone: list[int], method: Method) -> None:
    sky.limit(2 * MB)
    handle, heard = ask_long(sky)
    sky.move(handle.request_id, method=method)
    assert heard.last.finish_reason == "length"
    assert heard.ids == long_alone
    record = sky.ended(handle.request_id)
    assert (record.outcome, record.method) == ("migrated", method.value)
    (request,) = [record for record in sky.records if isinstance(record, RequestRecord)]
    (pause,) = [record for record in sky.records if isinstance(record, PauseRecord)]
    assert (request.instance, request.num_preemptions) == (record.target, 0)
    assert pause.resumed_at - pause.paused_at == pytest.approx(record.downtime)
    assert request.first_token_at is not None
    times = list(accumulate([request.first_token_at, *request.token_gaps]))
    (after,) = [after for before, after in pairwise(times) if abs(before - pause.paused_at) < 1e-6]
    if method is Method.RECOMPUTE:
        assert after == pytest.approx(pause.resumed_at)
        assert record.num_blocks == 0
    else:  # what is left of the gap is a step at the target
        assert pause.num_bytes == record.num_blocks * BLOCK
        assert record.num_blocks >= 13
        paused_blocks = record.num_blocks if method is Method.BLOCKING else 1
        assert record.downtime >= paused_blocks * BLOCK / (2 * MB) - 0.006
        assert after > pause.resumed_at


def begin(
    sky: Sky, phase: str, num_tokens: int = LONG_LENGTH, rate: float = SLOW
) -> tuple[int, Heard, Instance, Instance]:
    """A long sequence on its way over a slow link: while it is computed (``copying``), or paused."""
    sky.limit(rate)
    handle, heard = ask_long(sky, num_tokens)
    method = Method.BLOCKING if phase == "paused" else Method.LIVE
    source, target = sky.move(handle.request_id, method=method)
    move = source.move
    assert move is not None
    sky.until(lambda: bool(move.reservation.blocks) and (move.paused_at is not None) == (phase == "paused"))
    return handle.request_id, heard, source, target


def test_a_stage_with_nothing_left_to_copy_arrives(sky: Sky) -> None:
    """As when a sequence gains no token while its last block is copied."""

    def begin() -> Arrival:
        source, target, *_ = [worker for instance in sky.instances for worker in instance.workers]
        return sky.run.transport.move_kv(source, target, [], [], 0)

    arrival = sky.on_clock(begin)
    sky.until(lambda: not arrival.under_way)


@pytest.mark.parametrize("method", [Method.LIVE, Method.BLOCKING], ids=lambda method: method.value)
def test_without_space_it_stays(sky: Sky, long_alone: list[int], method: Method) -> None:
    handle, heard = ask_long(sky)
    sky.move(handle.request_id, method=method, keep_free=NUM_BLOCKS - 5)
    assert heard.last.finish_reason == "length"
    assert heard.ids == long_alone
    assert sky.ended(handle.request_id).outcome == "no space"


def test_without_space_in_the_last_stage_it_stays(sky: Sky, long_alone: list[int]) -> None:
    request_id, heard, _, target = begin(sky, "copying", rate=3 * SLOW)
    pool, others = target.pool, Reservation(-1)
    assert pool is not None
    sky.on_clock(lambda: pool.reserve(others, pool.num_free))
    sky.limit(200 * MB)
    assert sky.ended(request_id).outcome in ("no space in the last stage", "no space")
    sky.on_clock(lambda: pool.release(others))
    assert heard.last.finish_reason == "length"
    assert heard.ids == long_alone


def test_one_that_finishes_on_the_way_has_ended(sky: Sky, long_alone: list[int]) -> None:
    request_id, heard, source, _ = begin(sky, "copying", num_tokens=30, rate=SLOW / 2)
    assert heard.last.finish_reason == "length"
    assert heard.ids == long_alone[:30]
    assert source.move is not None
    assert answers(sky.engine, [LONG], max_tokens=100) == [long_alone[:100]]  # in blocks that are being given
    assert sky.ended(request_id).outcome == "finished"


def test_one_that_is_preempted_on_the_way_stays_and_is_computed_again(sky: Sky, long_alone: list[int]) -> None:
    num_tokens = LONG_LENGTH + 60  # so that the copy is over long before the answer is
    request_id, heard, source, _ = begin(sky, "copying", num_tokens, 2 * SLOW)
    pool, others = source.pool, Reservation(-1)
    assert pool is not None
    sky.on_clock(lambda: pool.reserve(others, pool.num_free))
    sky.until(lambda: sky.sequence(request_id).num_preemptions == 1)
    sky.on_clock(lambda: pool.release(others))
    assert heard.last.finish_reason == "length"
    assert heard.ids[:LONG_LENGTH] == long_alone and len(heard.ids) == num_tokens
    assert sky.ended(request_id).outcome == "preempted"


@pytest.mark.parametrize("phase", ["copying", "paused"])
def test_an_aborted_one_is_gone_and_what_takes_its_blocks_is_not_written_to(
    sky: Sky, alone: list[list[int]], phase: str
) -> None:
    """The first instance gets the next request, and the blocks that were reserved there are used first."""
    first = ask_long(sky, prompt=PROMPTS[0])
    handle, heard = ask_long(sky)
    sky.engine.abort(first[0])
    assert first[1].last.finish_reason == "abort"
    target = sky.instances[0]
    sky.limit(3 * SLOW)
    source, _ = sky.move(handle.request_id, to=target, method=Method.BLOCKING if phase == "paused" else Method.LIVE)
    move = source.move
    assert move is not None
    sky.until(lambda: len(move.reservation.blocks) >= 12 and (move.paused_at is not None) == (phase == "paused"))
    reserved = list(move.reservation.blocks)
    sky.engine.abort(handle)
    again, next_heard = ask_long(sky, LENGTH, PROMPTS[9])  # which takes as long as the rest would
    sky.until(lambda: bool(sky.sequence(again.request_id).block_table))
    taken = sky.on_clock(lambda: list(sky.sequence(again.request_id).block_table))
    assert sky.on_clock(lambda: sky.sequence(again.request_id).instance) is target
    assert set(taken) <= set(reserved)
    assert heard.last.finish_reason == "abort"
    assert next_heard.last.finish_reason == "length"
    assert next_heard.ids == alone[9]
    assert sky.ended(handle.request_id).outcome == "aborted"


@pytest.mark.parametrize("phase", ["copying", "paused"])
@pytest.mark.parametrize("who", ["source", "target"])
def test_a_process_that_is_killed_on_the_way_changes_no_token(
    sky: Sky, alone: list[list[int]], long_alone: list[int], who: str, phase: str
) -> None:
    request_id, heard, source, target = begin(sky, phase)
    victim = source if who == "source" else target
    sky.kill(victim)
    assert heard.last.finish_reason == "length"
    assert heard.ids == long_alone
    record = sky.ended(request_id)
    assert record.outcome == f"{who} lost"
    assert (record.downtime > 0) == (phase == "paused")
    (lost,) = [d for d in sky.records if isinstance(d, DecisionRecord) and d.action == "lose"]
    assert lost.instance == victim.instance_id
    fast(sky)
    survivor = target if who == "source" else source
    handle, next_heard = ask(sky.engine, PROMPTS[9], LENGTH)  # which can migrate again
    assert next_heard.started.wait(60)
    where = sky.on_clock(lambda: sky.sequence(handle.request_id).instance)
    sky.move(handle.request_id, to=None if where is survivor else survivor)
    assert next_heard.last.finish_reason == "length"
    assert next_heard.ids == alone[9]
    assert sky.ended(handle.request_id).outcome == "migrated"
