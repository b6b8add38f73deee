"""Frames: how the processes of a live run talk over stream sockets.

    4 bytes  length of the header, big-endian
    8 bytes  length of the payload, big-endian
    header   one JSON object, UTF-8
    payload  raw bytes

A socket that several threads write to needs a lock around ``send_frame``; reading is for one thread.
"""

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any

from serving.live.errors import LiveError

Buffer = bytes | bytearray | memoryview

PREFIX = struct.Struct(">IQ")
MAX_HEADER = 16 << 20
"""Bytes; the largest headers describe the tensors of a part, about 100 bytes each."""
MAX_PAYLOAD = 4 << 30
"""Bytes; more is taken for garbage."""
GROWTH = 1 << 20
"""Bytes that are made room for at once: a peer that claims more than it sends costs no more."""
MAX_BUFFERS = 512
"""Handed to the kernel in one call; Linux takes 1024."""


class FrameError(LiveError):
    """What came over a socket is not a frame."""


def send_frame(sock: socket.socket, header: dict[str, Any], *buffers: Buffer) -> None:
    """Send one frame; the payload is the buffers in order, not copied. OSError when the peer is gone."""
    text = json.dumps(header, separators=(",", ":")).encode()
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    length = sum(view.nbytes for view in views)
    if len(text) > MAX_HEADER or length > MAX_PAYLOAD:
        raise FrameError(
            f"a frame with a header of {len(text):,} bytes and {length:,} bytes behind it is over the limit"
        )
    send_all(sock, [memoryview(PREFIX.pack(len(text), length) + text), *views])


def send_all(sock: socket.socket, views: Sequence[memoryview]) -> None:
    """Send all bytes of the views (of format ``B``), in order, without joining them first."""
    left = [view for view in views if view.nbytes]
    left.reverse()
    while left:
        sent = sock.sendmsg(left[: -MAX_BUFFERS - 1 : -1])
        while left and sent >= left[-1].nbytes:
            sent -= left.pop().nbytes
        if sent:
            left[-1] = left[-1][sent:]


def recv_frame(
    sock: socket.socket, *, max_header: int = MAX_HEADER, max_payload: int = MAX_PAYLOAD
) -> tuple[dict[str, Any], bytes]:
    """The next frame: header and payload, of so many bytes at most.

    EOFError when the peer closed between frames, ConnectionResetError when it did inside one, TimeoutError after the
    socket's timeout, FrameError when the bytes are no frame.
    """
    prefix = sock.recv(PREFIX.size)
    if not prefix:
        raise EOFError("closed by the peer")
    if len(prefix) < PREFIX.size:
        prefix += _recv_exactly(sock, PREFIX.size - len(prefix))
    header_length, payload_length = PREFIX.unpack(prefix)
    if header_length > max_header or payload_length > max_payload:
        raise FrameError(f"not a frame: it claims a header of {header_length:,} bytes and {payload_length:,} behind it")
    return _parse(_recv_exactly(sock, header_length)), _recv_exactly(sock, payload_length)


def recv_into(sock: socket.socket, view: memoryview) -> None:
    """Fill a view from the socket; ConnectionResetError when the peer closes before it is full."""
    filled = 0
    while filled < view.nbytes:
        received = sock.recv_into(view[filled:])
        if not received:
            raise ConnectionResetError(f"closed by the peer after {filled:,} of {view.nbytes:,} bytes")
        filled += received


def recv_into_all(sock: socket.socket, views: Sequence[memoryview]) -> None:
    """Fill all views (of format ``B``), in order; ConnectionResetError when the peer closes before they are full."""
    left = [view for view in views if view.nbytes]
    left.reverse()
    while left:
        received = sock.recvmsg_into(left[: -MAX_BUFFERS - 1 : -1])[0]
        if not received:
            raise ConnectionResetError(f"closed by the peer with {sum(view.nbytes for view in left):,} bytes missing")
        while left and received >= left[-1].nbytes:
            received -= left.pop().nbytes
        if received:
            left[-1] = left[-1][received:]


def _recv_exactly(sock: socket.socket, length: int) -> bytes:
    first = sock.recv(min(length, GROWTH)) if length else b""
    if len(first) == length:
        return first
    if not first:
        raise ConnectionResetError("closed by the peer inside a frame")
    whole = bytearray(first)
    while (filled := len(whole)) < length:
        whole += bytes(min(length - filled, max(GROWTH, filled)))
        with memoryview(whole) as view:
            recv_into(sock, view[filled:])
    return bytes(whole)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise FrameError(f"not a frame: its header is no JSON object but {text[:40]!r}")
    return header
