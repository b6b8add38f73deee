"""StepBatch and StepSample over the wire."""

import numpy as np
import pytest

from serving.core.request import Sampling
from serving.live.batch import StepBatch, StepSample, TokenLogprobs
from serving.live.errors import LiveError


def a_batch(sampling: list[Sampling | None] | None = None) -> StepBatch:
    """A chunk of three, a decode, and the end of a prompt of two."""
    return StepBatch.of(
        ids=[[5, 6, 7], [9], (1, 2)],
        num_computed=[0, 33, 16],
        block_tables=[[4], [0, 2, 9], [7, 1]],
        wants=[False, True, True],
        sampling=sampling or [None, None, None],
    )


def over_the_wire(batch: StepBatch) -> StepBatch:
    """What the other end reads."""
    header, buffers = batch.encode()
    return StepBatch.decode(header, b"".join(buffers))


def test_batch_comes_back_as_it_was_sent() -> None:
    back = over_the_wire(a_batch())
    assert back.ids.tolist() == [5, 6, 7, 9, 1, 2]
    assert back.num_tokens.tolist() == [3, 1, 2]
    assert back.num_computed.tolist() == [0, 33, 16]
    assert back.tables() == [[4], [0, 2, 9], [7, 1]]
    assert back.wants.tolist() == [0, 1, 1]
    assert back.sampled is None
    assert back.logprobs is None


def test_sampling_travels_only_when_a_sequence_is_not_greedy() -> None:
    assert over_the_wire(a_batch([Sampling(), None, Sampling(seed=3)])).sampled is None
    back = over_the_wire(a_batch([None, Sampling(temperature=0.5, top_p=0.9, seed=-7), Sampling(seed=2**63 + 1)]))
    assert back.sampled is not None
    assert back.sampled.temperature.tolist() == [0.0, 0.5, 0.0]
    assert back.sampled.top_p.tolist() == pytest.approx([1.0, 0.9, 1.0])
    assert back.sampled.seeds.tolist() == [0, -7, -(2**63) + 1]


def test_logprobs_travel_without_sampling() -> None:
    back = over_the_wire(a_batch([Sampling(logprobs=0), None, Sampling(logprobs=5)]))
    assert back.sampled is None
    assert back.logprobs is not None
    assert back.logprobs.tolist() == [0, -1, 5]


def test_a_decode_is_one_token_for_each() -> None:
    assert not a_batch().is_decode
    one = StepBatch.of(ids=[[1]], num_computed=[4], block_tables=[[0]], wants=[True], sampling=[None])
    assert one.is_decode


@pytest.mark.parametrize("cut", [1, 8, 40])
def test_a_payload_of_another_size_is_refused(cut: int) -> None:
    header, buffers = a_batch().encode()
    payload = b"".join(buffers)
    with pytest.raises(LiveError, match="payload has"):
        StepBatch.decode(header, payload[:-cut])
    with pytest.raises(LiveError, match="payload has"):
        StepBatch.decode(header, payload + bytes(cut))


@pytest.mark.parametrize("value", [-1, "3", None, True, 10**12])
def test_a_header_of_garbage_is_refused(value: object) -> None:
    header, buffers = a_batch().encode()
    with pytest.raises(LiveError, match="step frame"):
        StepBatch.decode({**header, "sequences": value}, b"".join(buffers))


def test_counts_that_do_not_fit_are_refused() -> None:
    batch = a_batch()
    header, buffers = batch.encode()
    payload = bytearray(b"".join(buffers))
    payload[batch.ids.nbytes] += 1  # the first row count
    with pytest.raises(LiveError, match="do not fit the row counts"):
        StepBatch.decode(header, payload)


@pytest.mark.parametrize("choice", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}])
def test_sampling_that_cannot_be_drawn_is_refused(choice: dict[str, float]) -> None:
    with pytest.raises(LiveError, match="temperature must be"):
        a_batch([Sampling(**{"temperature": 1.0, **choice}), None, None])


def test_sample_comes_back_as_it_was_sent() -> None:
    header, buffers = StepSample(ids=np.array([3, 4], np.int64)).encode()
    back = StepSample.decode(header, b"".join(buffers))
    assert back.ids.tolist() == [3, 4]
    assert back.logprobs is None


@pytest.mark.parametrize("top", [0, 2])
def test_logprobs_come_back_as_they_were_sent(top: int) -> None:
    logprobs = TokenLogprobs(
        chosen=np.array([-0.5, -1.5], np.float32),
        top_ids=np.arange(2 * top, dtype=np.int64).reshape(2, top),
        top=-np.arange(2 * top, dtype=np.float32).reshape(2, top),
    )
    header, buffers = StepSample(ids=np.array([3, 4], np.int64), logprobs=logprobs).encode()
    back = StepSample.decode(header, b"".join(buffers)).logprobs
    assert back is not None
    assert back.chosen.tolist() == [-0.5, -1.5]
    assert back.top_ids.tolist() == logprobs.top_ids.tolist()
    assert back.top.tolist() == logprobs.top.tolist()
