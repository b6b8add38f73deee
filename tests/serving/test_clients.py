"""Clients: when requests are sent, and what the cold-start script asks for."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.clock import Signal, SimClock, spawn
from serving.core.request import Request
from serving.workload.clients import Client, batches, closed_loop, cold_requests, open_loop
from tests.build import make_requests

Sent = list[tuple[float, int]]


def drive(client: Client, answer_after: float | None) -> Sent:
    """Run a client against a server that answers everything after a time, or nothing ever."""
    clock = SimClock()
    sent: Sent = []

    def send(request: Request) -> Signal:
        sent.append((clock.now, request.request_id))
        answered = Signal(clock)
        fire: Callable[[], None] = answered.fire
        if answer_after is not None:
            clock.call_later(answer_after, fire)
        return answered

    spawn(clock, client(send))
    clock.run()
    return sent


@given(st.lists(st.floats(0, 1e5), max_size=30))
@settings(max_examples=60)
def test_an_open_loop_sends_by_the_clock_whatever_becomes_of_the_answers(times: list[float]) -> None:
    timed = list(zip(sorted(times), make_requests(len(times)), strict=True))
    sent = drive(open_loop(timed), answer_after=None)
    assert [request_id for _, request_id in sent] == list(range(len(times)))
    assert [at for at, _ in sent] == pytest.approx(sorted(times), rel=1e-9)


def test_an_open_loop_sends_requests_of_one_instant_in_order() -> None:
    sent = drive(open_loop([(1.0, request) for request in make_requests(3)]), answer_after=None)
    assert sent == [(1.0, 0), (1.0, 1), (1.0, 2)]


def test_a_closed_loop_waits_for_the_answer_and_the_gap() -> None:
    # sent at 0; answered at 2; then 35 s of silence, and so on
    assert drive(closed_loop(make_requests(3), gap=35.0, phase=0.0, seed=0), 2.0) == [(0, 0), (37, 1), (74, 2)]


def test_a_closed_loop_without_an_answer_sends_nothing_more() -> None:
    assert drive(closed_loop(make_requests(3), gap=1.0, phase=0.0, seed=0), None) == [(0.0, 0)]


def test_a_batch_comes_at_once_and_the_next_a_gap_after_its_last_answer() -> None:
    # sent at 0, answered at 2; half a second of silence
    first, second = make_requests(5)[:3], make_requests(5)[3:]
    sent = drive(batches([first, second], gap=0.5), 2.0)
    assert sent == [(0.0, 0), (0.0, 1), (0.0, 2), (2.5, 3), (2.5, 4)]


def test_without_all_answers_there_is_no_next_batch() -> None:
    assert drive(batches([make_requests(2), make_requests(1)], gap=0.5), None) == [(0.0, 0), (0.0, 1)]


@given(st.integers(0, 50))
@settings(max_examples=30)
def test_the_random_wait_of_a_closed_loop_is_within_its_phase_and_follows_the_seed(seed: int) -> None:
    sent = drive(closed_loop(make_requests(4), gap=10.0, phase=1.0, seed=seed), 2.0)
    starts = [0.0, *(at + 12.0 for at, _ in sent[:-1])]
    waits = [at - start for (at, _), start in zip(sent, starts, strict=True)]
    assert all(-1e-9 <= wait <= 1.0 + 1e-9 for wait in waits)
    assert len(dict.fromkeys(waits)) == 4
    assert sent == drive(closed_loop(make_requests(4), gap=10.0, phase=1.0, seed=seed), 2.0)


def test_cold_requests_prepare_once_before_all_and_again_before_each_and_count_ids_up() -> None:
    measured = make_requests(1, 32, 650, ttft_slo=9.0, tpot_slo=0.2)[0]
    evict = make_requests(2, 8, 1, model="opt-2.7b", label="prepare")
    first = make_requests(1, 8, 1, model="opt-6.7b", label="prepare")
    script = list(cold_requests(measured, evict, first, repeats=2))
    assert [request.model for request in script] == ["opt-6.7b", *["opt-2.7b", "opt-2.7b", "llama2-7b"] * 2]
    assert [request.request_id for request in script] == list(range(7))
    last = script[-1]
    assert (last.num_prompt_tokens, last.num_output_tokens, last.label) == (32, 650, "measured")
    assert (last.ttft_slo, last.tpot_slo) == (9.0, 0.2)
