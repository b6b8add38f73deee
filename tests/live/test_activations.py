"""Activations between two stages, without either."""

import threading
from pathlib import Path

import pytest

from serving.live import activations
from serving.live.activations import Downstream, NeighbourError, Upstream


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the second stage listens."""
    return tmp_path / "1"


def received(upstream: Upstream, step: int, length: int) -> bytes:
    """What arrives for a step."""
    view = memoryview(bytearray(length))
    upstream.receive(step, view)
    return bytes(view)


def test_activations_arrive_by_step_and_the_socket_file_goes(path: Path) -> None:
    upstream, downstream = Upstream(str(path)), Downstream(str(path))
    downstream.send(1, memoryview(b"first"))
    downstream.send(2, memoryview(b"second"))
    assert received(upstream, 1, 5) == b"first"
    assert not path.exists()
    assert received(upstream, 2, 6) == b"second"
    downstream.close()
    upstream.close()


def test_activations_larger_than_the_socket_holds_arrive_whole(path: Path) -> None:
    large = bytes(range(256)) * 40_000
    upstream, downstream = Upstream(str(path)), Downstream(str(path))
    sender = threading.Thread(target=downstream.send, args=(1, memoryview(large)))
    sender.start()
    assert received(upstream, 1, len(large)) == large
    sender.join()
    downstream.close()
    upstream.close()


def test_activations_of_a_step_that_failed_here_are_dropped(path: Path) -> None:
    upstream, downstream = Upstream(str(path)), Downstream(str(path))
    downstream.send(1, memoryview(b"one"))
    downstream.send(2, memoryview(b"second"))
    assert received(upstream, 2, 6) == b"second"
    downstream.close()
    upstream.close()


def test_a_failed_step_is_reported_with_its_reason_and_the_next_one_arrives(path: Path) -> None:
    upstream, downstream = Upstream(str(path)), Downstream(str(path))
    downstream.fail(1, "out of memory")
    downstream.send(2, memoryview(b"ok"))
    with pytest.raises(NeighbourError, match="step 1 failed in the stage before: out of memory"):
        received(upstream, 1, 2)
    assert received(upstream, 2, 2) == b"ok"
    downstream.close()
    upstream.close()


@pytest.mark.parametrize("sent", [(1, b"four"), (2, b"ok")])
def test_activations_of_another_size_or_a_later_step_are_refused(path: Path, sent: tuple[int, bytes]) -> None:
    upstream, downstream = Upstream(str(path)), Downstream(str(path))
    downstream.send(sent[0], memoryview(sent[1]))
    with pytest.raises(NeighbourError, match=f"expected 2 bytes .* sent {len(sent[1])} of step {sent[0]}"):
        received(upstream, 1, 2)
    downstream.close()
    upstream.close()


def test_a_neighbour_that_hangs_up_is_missed_on_both_sides(path: Path) -> None:
    upstream, downstream = Upstream(str(path)), Downstream(str(path))
    downstream.send(1, memoryview(b"x"))
    received(upstream, 1, 1)
    downstream.close()
    with pytest.raises(NeighbourError, match="the stage before this one is gone"):
        received(upstream, 2, 1)
    upstream.close()
    with pytest.raises(NeighbourError, match="the stage behind this one is gone"):
        Downstream(str(path)).send(1, memoryview(b"x"))
    other = Upstream(str(path))
    downstream = Downstream(str(path))
    downstream.send(1, memoryview(b"x"))
    received(other, 1, 1)
    other.close()
    with pytest.raises(NeighbourError, match="the stage behind this one is gone"):
        downstream.send(2, memoryview(bytes(1 << 20)))
    downstream.fail(2, "nobody hears it")
    downstream.close()


def test_a_neighbour_that_never_calls_is_missed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "CONNECT_LIMIT", 0.05)
    upstream = Upstream(str(path))
    with pytest.raises(NeighbourError, match="the stage before this one is gone"):
        received(upstream, 1, 1)
    upstream.close()
    assert not path.exists()


def test_a_path_that_cannot_be_listened_at_is_named(tmp_path: Path) -> None:
    for path in (str(tmp_path / "none" / "1"), str(tmp_path / ("x" * 120))):
        with pytest.raises(NeighbourError, match="cannot listen at"):
            Upstream(path)
