"""Engine: the same tokens whatever the batch, chunks, preemptions, stages and losses; aborts, faults, and its end."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import pytest

from serving.core.request import Sampling
from serving.live.engine import Engine
from serving.live.errors import LiveError
from serving.live.fleet import WorkerOptions
from serving.live.output import Handle, ModelStats, Output
from serving.live.recording import Recording
from serving.live.replay import replay
from serving.live.setup import LiveSetup
from serving.records import DecisionRecord, Record
from serving.units import MB
from tests.live.served import fixed, left_over, live_setup, small_testbed

pytest.importorskip("torch", reason="needs the live extra: make test-live")

WAIT = 60.0
"""Seconds; generous, for machines that are busy."""
PROMPTS = [[Random(number).randrange(260) for _ in range(5 + 7 * number)] for number in range(8)]
LENGTH = 12


@dataclass
class Heard:
    """What one request's caller heard."""

    outputs: list[Output] = field(default_factory=list)
    ended: Event = field(default_factory=Event)
    started: Event = field(default_factory=Event)

    def __call__(self, output: Output) -> None:
        self.outputs.append(output)
        if output.token_ids:
            self.started.set()
        if output.finish_reason is not None:
            self.ended.set()

    @property
    def ids(self) -> list[int]:
        return [token_id for output in self.outputs for token_id in output.token_ids]

    @property
    def last(self) -> Output:
        assert self.ended.wait(WAIT), "no end was told"
        return self.outputs[-1]


def ask(engine: Engine, prompt: list[int], max_tokens: int = LENGTH, **fields: Any) -> tuple[Handle, Heard]:
    heard = Heard()
    wanted: dict[str, Any] = {"model": "tiny", "ignore_eos": True, **fields}
    return engine.submit(prompt, max_tokens=max_tokens, on_output=heard, **wanted), heard


def answers(engine: Engine, prompts: list[list[int]], **fields: Any) -> list[list[int]]:
    """Of all at once."""
    asked = [ask(engine, prompt, **fields)[1] for prompt in prompts]
    assert [heard.last.finish_reason for heard in asked] == ["length"] * len(prompts)
    return [heard.ids for heard in asked]


@contextmanager
def serving(
    setup: LiveSetup, recording: Recording | None = None, records: list[Record] | None = None
) -> Iterator[Engine]:
    """An engine that leaves nothing behind."""
    threads, others = set(threading.enumerate()), left_over()
    engine = Engine(setup, None if records is None else records.append, recording)
    try:
        engine.start()
        yield engine
    finally:
        engine.close()
    assert left_over() == others
    assert set(threading.enumerate()) <= threads


def one_instance(num_stages: int = 1, max_blocks: int = 64, **changes: Any) -> LiveSetup:
    testbed = small_testbed(num_stages, exclusive=True)
    return live_setup(fixed(1, num_stages, **changes), testbed, workers=WorkerOptions(max_blocks=max_blocks))


def until(engine: Engine, holds: Callable[[ModelStats], bool]) -> ModelStats:
    """The counts once they are as expected."""
    give_up = time.monotonic() + WAIT
    while not holds(stats := engine.stats().of("tiny")):
        assert time.monotonic() < give_up, f"still {stats}"
        time.sleep(0.01)
    return stats


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One instance of one stage with room for 64 blocks, for tests that leave it idle."""
    with serving(one_instance()) as started:
        yield started


@pytest.fixture(scope="module")
def alone(engine: Engine) -> list[list[int]]:
    """The greedy answer to each prompt, one after the other."""
    found = [answers(engine, [prompt])[0] for prompt in PROMPTS]
    assert all(len(ids) == LENGTH for ids in found)
    assert len({tuple(ids) for ids in found}) > 4  # prompts matter
    return found


def test_a_batch_gives_what_each_gives_alone(engine: Engine, alone: list[list[int]]) -> None:
    assert answers(engine, PROMPTS) == alone


def test_chunks_and_preemptions_change_no_token(alone: list[list[int]]) -> None:
    setup = one_instance(max_blocks=6, max_step_tokens=24)  # 96 tokens of KV for 232 of prompts
    with serving(setup) as engine:
        assert answers(engine, PROMPTS) == alone
        stats = until(engine, lambda stats: stats.kv_blocks_used == 0)
        assert stats.preemptions > 0
        too_long = ask(engine, PROMPTS[0], max_tokens=92)[1].last
        assert (too_long.finish_reason, too_long.token_ids) == ("error", ())
        assert "97 prompt and output tokens, instance 0 has KV memory for 96" in str(too_long.error)


def test_four_stages_give_what_one_gives(alone: list[list[int]]) -> None:
    with serving(one_instance(4)) as engine:
        assert answers(engine, PROMPTS) == alone


def test_a_lost_process_of_two_stages_changes_no_token_and_replays(alone: list[list[int]]) -> None:
    recording, records = Recording(), list[Record]()
    setup = one_instance(2)
    with serving(setup, recording, records) as engine:
        asked = [ask(engine, prompt)[1] for prompt in PROMPTS]
        assert asked[0].started.wait(WAIT)
        kill_worker(engine, rank=1)
        assert [heard.last.finish_reason for heard in asked] == ["length"] * len(PROMPTS)
        assert [heard.ids for heard in asked] == alone
        assert engine.stats().of("tiny").losses == 1
        assert engine.drain(WAIT)
    decisions = [record for record in records if isinstance(record, DecisionRecord)]
    assert "worker 0." in next(d.detail for d in decisions if d.action == "lose")
    assert replay(setup, recording) == decisions


def kill_worker(engine: Engine, rank: int) -> None:
    """As the system's memory killer would."""
    run = engine._run
    assert run is not None
    instance = run.control.cluster.instances[0]
    link = run.fleet.link(instance.workers[rank])
    assert link is not None
    os.kill(link.live.pid, signal.SIGKILL)


def test_an_aborted_request_ends_once_and_its_blocks_are_free_again(engine: Engine) -> None:
    handle, heard = ask(engine, PROMPTS[7], max_tokens=150)
    assert heard.started.wait(WAIT)
    engine.abort(handle)
    assert heard.last.finish_reason == "abort"
    stats = until(engine, lambda stats: stats.kv_blocks_used == stats.running == 0)
    assert stats.kv_blocks_total == 64
    assert len(heard.ids) < 150
    engine.abort(handle)
    assert answers(engine, PROMPTS[:1])[0] == answers(engine, PROMPTS[:1])[0]
    assert [output.finish_reason for output in heard.outputs].count(None) == len(heard.outputs) - 1


def test_a_held_request_gets_the_seat_of_one_that_is_aborted() -> None:
    with serving(one_instance(max_sequences=1)) as engine:
        handle, first = ask(engine, PROMPTS[7], max_tokens=400)
        assert first.started.wait(WAIT)
        held, second = ask(engine, PROMPTS[0]), ask(engine, PROMPTS[1])[1]
        engine.abort(held[0])
        engine.abort(handle)
        assert second.last.finish_reason == "length"
        assert (held[1].last.finish_reason, first.last.finish_reason) == ("abort", "abort")


def test_host_memory_keeps_nothing_that_was_loaded(engine: Engine) -> None:
    until(engine, lambda stats: stats.instances_ready == 1)
    run = engine._run
    assert run is not None
    assert run.transport.fetches == ()
    until(engine, lambda _: not list(Path("/dev/shm").glob(f"aebench-{os.getpid()}.*")))


def test_an_answer_ends_before_a_stop_string_and_at_an_end_token(engine: Engine, alone: list[list[int]]) -> None:
    tokenizer = engine.tokenizers["tiny"]
    assert tokenizer is not None
    whole = tokenizer.decode(alone[3])
    stop = whole[4:6]
    heard = ask(engine, PROMPTS[3], stop=(stop,))[1]
    assert heard.last.finish_reason == "stop"
    assert "".join(output.text for output in heard.outputs) == whole[: whole.index(stop)]
    assert heard.ids == alone[3][: len(heard.ids)] != alone[3]
    until(engine, lambda stats: stats.kv_blocks_used == 0)


def test_sampling_depends_on_the_seed_and_on_nothing_beside_it(engine: Engine) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=7)
    by_itself = answers(engine, PROMPTS[:1], sampling=sampling)[0]
    crowd = [ask(engine, prompt)[1] for prompt in PROMPTS]
    assert answers(engine, PROMPTS[:1], sampling=sampling)[0] == by_itself
    assert answers(engine, PROMPTS[:1], sampling=Sampling(temperature=1.0, top_p=0.9, seed=8))[0] != by_itself
    assert all(heard.last.finish_reason == "length" for heard in crowd)


def test_log_probabilities_come_with_each_token_for_whom_they_were_asked(engine: Engine) -> None:
    asked = ask(engine, PROMPTS[0], sampling=Sampling(logprobs=2))[1]
    other = ask(engine, PROMPTS[1])[1]
    assert asked.last.finish_reason == other.last.finish_reason == "length"
    found = [logprob for output in asked.outputs for logprob in output.logprobs]
    assert [logprob.token_id for logprob in found] == asked.ids
    assert all(found_one.top[0] == (found_one.token_id, found_one.logprob) for found_one in found)  # greedy
    assert all(len(logprob.top) == 2 and logprob.top[1][1] <= logprob.logprob < 0 for logprob in found)
    assert not any(output.logprobs for output in other.outputs)


@pytest.mark.parametrize(
    ("prompt", "changes", "message"),
    [
        ([], {}, "a prompt and an answer of at least one token"),
        ([1], {"max_tokens": 0}, "a prompt and an answer of at least one token"),
        ([512], {}, "token ids of tiny go from 0 to 511"),
        ([-1], {}, "token ids of tiny go from 0 to 511"),
        ([1] * 250, {"max_tokens": 9999}, "250 prompt tokens and up to 9999 output tokens are more than the"),
        ([1], {"model": "other"}, "no model 'other' here, only tiny"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(
    engine: Engine, prompt: list[int], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(LiveError, match=message):
        ask(engine, prompt, **changes)


def test_counts_add_up(engine: Engine) -> None:
    before = until(engine, lambda stats: stats.running == stats.waiting == stats.held == 0)
    answers(engine, PROMPTS[:3])
    after = until(engine, lambda stats: stats.running == 0)
    assert after.prompt_tokens - before.prompt_tokens == sum(map(len, PROMPTS[:3]))
    assert after.output_tokens - before.output_tokens == 3 * LENGTH
    assert dict(after.finished)["length"] == dict(before.finished)["length"] + 3
    assert (after.instances_ready, after.instances_starting) == (1, 0)


def test_a_start_that_always_fails_is_given_up_with_the_reason() -> None:
    testbed = small_testbed(1, exclusive=True)
    broken = live_setup(fixed(), testbed, workers=WorkerOptions(device="nonsense"))
    with serving(broken) as engine:
        last = ask(engine, PROMPTS[0])[1].last
        assert last.finish_reason == "error"
        assert "no device 'nonsense:0'; expected cpu or cuda:N" in str(last.error)
        assert engine.stats().of("tiny").losses >= 3


def test_a_draining_engine_finishes_what_it_has_and_a_closed_one_gives_up_the_rest() -> None:
    slow = live_setup(fixed(), small_testbed(1, exclusive=True, fetch_rate=0.05 * MB))  # 17 s to fetch
    with serving(slow) as engine:
        _, heard = ask(engine, PROMPTS[0])
        assert not engine.drain(0.05)
        with pytest.raises(LiveError, match="the engine is draining"):
            ask(engine, PROMPTS[1])
        engine.close()
        assert (heard.last.finish_reason, heard.last.error) == ("error", "the engine is closed")
        assert engine.stats().of("tiny").held == 1


def test_a_failure_of_the_engine_itself_ends_every_request_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def record(written: Record) -> None:
        raise ZeroDivisionError(f"no room for {type(written).__name__}")

    others = left_over()
    engine = Engine(one_instance(), record)
    engine.start()
    try:
        _, heard = ask(engine, PROMPTS[0])
        assert heard.last.error == "the engine failed: ZeroDivisionError: no room for DecisionRecord"
        assert engine.stats().failure == heard.last.error
        with pytest.raises(LiveError, match="no new requests: the engine failed"):
            ask(engine, PROMPTS[0])
    finally:
        engine.close()
        engine.close()
    assert "Traceback" in capsys.readouterr().err
    assert left_over() == others
