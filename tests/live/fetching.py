"""What tests of the transport share: a small checkpoint, fetches with their events, storage servers that misbehave."""

import contextlib
import itertools
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from serving.live.checkpoint import Checkpoint
from serving.live.fetch import FetchOrder
from serving.live.frames import recv_frame, send_frame
from serving.live.make import make_checkpoint
from serving.live.part_stream import PartStream, checksums
from serving.live.shapes import Changes, config_table
from serving.live.shared_region import region_name, regions_folder
from serving.live.storage import little_endian

MODEL = "small"
LAYERS = range(4)
Address = tuple[str, int]
_serials = itertools.count()


def make_small(folder: Path) -> Path:
    """A random checkpoint of 4 layers, about 11 MB: tensors longer and shorter than a unit, gaps after some."""
    changes = Changes(layers=len(LAYERS), hidden=232, heads=4, kv_heads=2, ffn=700, vocab=513)
    path = folder / MODEL
    make_checkpoint(path, config_table("llama2-7b", changes, "float32"), 0)
    return path


def stream_of(folder: Path, layers: range = LAYERS) -> PartStream:
    """A part of a checkpoint, as the storage server has it."""
    checkpoint = Checkpoint.open(folder)
    part = checkpoint.part(layers, MODEL)
    tensors = checkpoint.buffers(part)
    return PartStream(part, tensors, [checksums(tensor) for tensor in tensors])


def bytes_of(stream: PartStream) -> bytes:
    """All bytes of a part."""
    return b"".join(stream.cut(0, stream.part.size))


def fresh_run_id() -> str:
    """A run id that no other test has."""
    return f"test{os.getpid()}x{next(_serials)}"


def regions(run_id: str) -> list[str]:
    """Names of the regions of a run that are there."""
    return sorted(path.name for path in regions_folder().glob(f"*{run_id}*"))


def order(store: Address, run_id: str, layers: range = LAYERS) -> FetchOrder:
    """A fetch of the small checkpoint into the run's region 0."""
    return FetchOrder(store=store, link="server0", model=MODEL, layers=layers, region=region_name(run_id, 0))


def command(store: Address, region: str, fetch_id: int = 0, layers: range = LAYERS) -> dict[str, Any]:
    """The same as a command to a prefetcher."""
    what = {"op": "fetch", "id": fetch_id, "store": list(store), "link": "server0", "model": MODEL}
    return {**what, "layers": [layers.start, layers.stop], "region": region}


def events_until(control: socket.socket, fetch_id: int, *last: str) -> list[dict[str, Any]]:
    """A prefetcher's events of one fetch up to the first of these kinds."""
    control.settimeout(20)
    events = []
    while not events or events[-1]["event"] not in last:
        event, _ = recv_frame(control)
        if event["id"] == fetch_id:
            events.append(event)
    return events


@contextlib.contextmanager
def storage_script(*scripts: Callable[[socket.socket], None]) -> Iterator[Address]:
    """A storage server that serves its first connections by these functions, closes each after it, then is gone."""
    listener = socket.create_server(("127.0.0.1", 0))
    problems: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def serve() -> None:
        for index, script in enumerate(scripts, 1):
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if index == len(scripts):
                listener.close()  # before the client can come again and be let in by the kernel
            with connection:
                try:
                    script(connection)
                except (EOFError, OSError):
                    pass  # the client ended it
                except BaseException as error:
                    problems.put(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[:2]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(20)
        assert not thread.is_alive()
        assert problems.empty(), problems.get()


def describe(connection: socket.socket, stream: PartStream) -> None:
    """Answer a request for the description."""
    request, _ = recv_frame(connection)
    assert request["op"] == "describe"
    send_frame(connection, {"ok": True, "part": stream.part.to_json()}, little_endian(stream.checksums))


def promise(connection: socket.socket) -> tuple[int, int]:
    """Answer a request for bytes but for the bytes: offset and length."""
    request, _ = recv_frame(connection)
    assert request["op"] == "read"
    send_frame(connection, {"ok": True, "length": request["length"]})
    return request["offset"], request["length"]
