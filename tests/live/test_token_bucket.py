import pytest

from serving.live.token_bucket import BURST, MAX_CHUNK, MIN_CHUNK, TokenBucket, chunk_size
from serving.units import MB


class Hands:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def test_bytes_are_over_the_link_after_their_time_at_its_rate() -> None:
    clock = Hands()
    bucket = TokenBucket(1000.0, clock)
    assert bucket.reserve(500, opens=True) == pytest.approx(100.5)
    assert bucket.reserve(250) == pytest.approx(100.75)


def test_an_idle_link_has_no_credit_for_a_new_stream() -> None:
    clock = Hands()
    bucket = TokenBucket(1000.0, clock)
    clock.at = 200.0
    assert bucket.reserve(500, opens=True) == pytest.approx(200.5)


def test_a_stream_that_was_late_catches_up_by_no_more_than_the_burst() -> None:
    clock = Hands()
    bucket = TokenBucket(1000.0, clock)
    bucket.reserve(1000, opens=True)
    clock.at = 101.0 + BURST / 2
    assert bucket.reserve(1000) == pytest.approx(102.0)
    clock.at = 105.0
    assert bucket.reserve(1000) == pytest.approx(106.0 - BURST)


def test_a_late_sleeper_keeps_the_rate_within_two_percent() -> None:
    clock = Hands()
    bucket = TokenBucket(100 * MB, clock)
    chunk = chunk_size(100 * MB)
    sent = 0
    while clock.at < 100.2:
        clock.at = max(clock.at, bucket.reserve(chunk, opens=sent == 0)) + 0.001  # every sleep is 1 ms late
        sent += chunk
    assert sent / (clock.at - 100.0) == pytest.approx(100 * MB, rel=0.02)


def test_streams_that_ask_in_turn_share_a_link_and_a_slower_one_leaves_its_rest() -> None:
    clock = Hands()
    server = TokenBucket(2250.0, clock)
    links = {"a": TokenBucket(500.0, clock), "b": TokenBucket(2000.0, clock), "c": TokenBucket(2000.0, clock)}
    due = dict.fromkeys(links, clock.at)
    sent = dict.fromkeys(links, 0)
    while clock.at < 120.0:
        name = min(due, key=lambda link: due[link])
        clock.at = max(clock.at, due[name])
        due[name] = max(server.reserve(1), links[name].reserve(1))
        sent[name] += 1
    rates = {name: count / (clock.at - 100.0) for name, count in sent.items()}
    assert rates == pytest.approx({"a": 500.0, "b": 875.0, "c": 875.0}, rel=0.02)


def test_a_link_without_a_limit_never_waits() -> None:
    clock = Hands()
    assert TokenBucket(None, clock).reserve(10**12) == clock.at


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="expected more than 0"):
        TokenBucket(rate)


def test_a_chunk_grows_with_the_slowest_rate_within_bounds() -> None:
    assert chunk_size(1.0, None) == MIN_CHUNK
    assert chunk_size(None, 200 * MB, 900 * MB) == 400_000
    assert chunk_size(None) == chunk_size(1e12) == MAX_CHUNK
