import socket
import struct
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.live.frames import (
    MAX_BUFFERS,
    MAX_HEADER,
    MAX_PAYLOAD,
    PREFIX,
    FrameError,
    recv_frame,
    recv_into,
    send_frame,
)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair()
    with left, right:
        left.settimeout(10)
        right.settimeout(10)
        yield left, right


def test_a_frame_arrives_as_it_was_sent(pair: Pair) -> None:
    send_frame(pair[0], {"op": "x", "n": [1, 2]}, b"ab", bytearray(b"c"), memoryview(b"de"))
    send_frame(pair[0], {})
    assert recv_frame(pair[1]) == ({"op": "x", "n": [1, 2]}, b"abcde")
    assert recv_frame(pair[1]) == ({}, b"")


def test_more_buffers_and_bytes_than_the_kernel_takes_at_once_arrive_in_order(pair: Pair) -> None:
    buffers = [bytes([index % 251]) * (1 + index % 7_000) for index in range(3 * MAX_BUFFERS)]
    sender = threading.Thread(target=send_frame, args=(pair[0], {"a": 1}, *buffers))
    sender.start()
    assert recv_frame(pair[1]) == ({"a": 1}, b"".join(buffers))
    sender.join()


def test_a_view_of_other_numbers_is_sent_as_its_bytes(pair: Pair) -> None:
    send_frame(pair[0], {}, memoryview(struct.pack("<2I", 1, 2)).cast("I"))
    assert recv_frame(pair[1])[1] == struct.pack("<2I", 1, 2)


def test_a_close_between_frames_is_the_end_and_inside_one_a_reset(pair: Pair) -> None:
    pair[0].sendall(PREFIX.pack(2, 5) + b"{}abc")
    pair[0].close()
    with pytest.raises(ConnectionResetError):
        recv_frame(pair[1])
    with pytest.raises(EOFError):
        recv_frame(pair[1])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "claims a header of"),
        (PREFIX.pack(MAX_HEADER + 1, 0), "claims a header of"),
        (PREFIX.pack(2, MAX_PAYLOAD + 1), "claims a header of"),
        (PREFIX.pack(2, 0) + b"[]", "no JSON object"),
        (PREFIX.pack(3, 0) + b"\xff\xfe\x00", "no JSON object"),
        (PREFIX.pack(0, 0), "no JSON object"),
    ],
)
def test_what_is_no_frame_is_refused(pair: Pair, raw: bytes, message: str) -> None:
    pair[0].sendall(raw)
    with pytest.raises(FrameError, match=message):
        recv_frame(pair[1])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_never_end_in_anything_but_the_stated_errors(raw: bytes) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(raw)
        left.shutdown(socket.SHUT_WR)
        with pytest.raises((FrameError, EOFError, ConnectionResetError)):
            while True:
                recv_frame(right)


def test_a_silent_peer_is_a_timeout(pair: Pair) -> None:
    pair[1].settimeout(0.05)
    with pytest.raises(TimeoutError):
        recv_frame(pair[1])


def test_a_view_that_is_not_filled_says_how_far_it_came(pair: Pair) -> None:
    pair[0].sendall(b"abc")
    pair[0].close()
    with pytest.raises(ConnectionResetError, match="3 of 5 bytes"):
        recv_into(pair[1], memoryview(bytearray(5)))


@pytest.mark.parametrize(("header", "payload"), [(b'{"a":1}', b""), (b"{}", b"abcde")])
def test_each_use_has_limits_of_its_own(pair: Pair, header: bytes, payload: bytes) -> None:
    pair[0].sendall(PREFIX.pack(len(header), len(payload)) + header + payload)
    with pytest.raises(FrameError, match="claims a header of"):
        recv_frame(pair[1], max_header=6, max_payload=4)


def test_what_a_prefix_claims_takes_no_memory_before_it_arrives(pair: Pair) -> None:
    pair[0].sendall(PREFIX.pack(2, MAX_PAYLOAD) + b"{}abc")
    pair[0].close()
    tracemalloc.start()
    with pytest.raises(ConnectionResetError):
        recv_frame(pair[1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
