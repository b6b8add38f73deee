"""The prefetcher of a server: receives parts of checkpoints into shared memory, several at once.

``python -m serving.live.prefetcher --fd N`` runs one. Frames from the control process, on socket N:

    {"op": "fetch", "id", "store": [host, port], "link", "model", "layers": [start, stop], "region"}
    {"op": "cancel", "id"}         ends a fetch, its region goes, no event follows
    {"op": "free", "region"}       unlinks a region, after ending the fetch that fills it
    {"op": "exit"}

and events to it:

    {"event": "described", "id", "part"}      the region is there
    {"event": "progress", "id", "received"}   so many bytes of it, from the start, are verified
    {"event": "done", "id"}
    {"event": "failed", "id", "error"}        the region is gone

When control closes the socket or says exit, every fetch ends and every region is unlinked.
"""

import argparse
import contextlib
import socket
import threading
from dataclasses import dataclass
from typing import Any

from serving.live.errors import LiveError
from serving.live.fetch import STALL_TIMEOUT, Cancelled, Fetch, FetchEvents, FetchOrder
from serving.live.frames import recv_frame, send_frame
from serving.live.part import Part
from serving.live.shared_region import check_name, unlink
from serving.live.signals import leave_signals_to_control
from serving.units import Seconds


@dataclass(frozen=True, slots=True)
class _Running:
    """A fetch, finished or not, and its thread."""

    fetch: Fetch
    thread: threading.Thread


class Prefetcher:
    """Carries out control's commands."""

    def __init__(self, control: socket.socket, stall_timeout: Seconds = STALL_TIMEOUT) -> None:
        self._control = control
        self._stall_timeout = stall_timeout
        self._sending = threading.Lock()
        self._fetches: dict[int, _Running] = {}

    def run(self) -> None:
        """Obey until control says exit or closes; then no region is left."""
        try:
            while True:
                command, _ = recv_frame(self._control)
                if command.get("op") == "exit":
                    return
                self._obey(command)
        except (EOFError, OSError):
            return
        finally:
            self.close()

    def close(self) -> None:
        """End every fetch and unlink every region."""
        for running in self._fetches.values():
            running.fetch.cancel()
        while self._fetches:
            self._end(next(iter(self._fetches)))

    def _obey(self, command: dict[str, Any]) -> None:
        op, fetch_id = command.get("op"), command.get("id")
        if op == "fetch" and isinstance(fetch_id, int):
            try:
                order = _order(command)
            except (KeyError, TypeError, ValueError) as error:
                self._say({"event": "failed", "id": fetch_id, "error": f"fetch {fetch_id} has no usable {error}"})
                return
            self._start(fetch_id, order)
        elif op == "cancel":
            if fetch_id in self._fetches:
                self._end(fetch_id)
        elif op == "free":
            self._free(str(command.get("region")))
        else:
            raise LiveError(f"the prefetcher knows no command {command}")

    def _start(self, fetch_id: int, order: FetchOrder) -> None:
        def described(part: Part) -> None:
            self._say({"event": "described", "id": fetch_id, "part": part.to_json()})

        def progress(received: int) -> None:
            self._say({"event": "progress", "id": fetch_id, "received": received})

        if fetch_id in self._fetches:
            self._end(fetch_id)
        fetch = Fetch(order, FetchEvents(described=described, progress=progress), self._stall_timeout)
        thread = threading.Thread(target=self._run_fetch, args=(fetch_id, fetch), name=f"fetch {fetch_id}", daemon=True)
        self._fetches[fetch_id] = _Running(fetch, thread)
        thread.start()

    def _run_fetch(self, fetch_id: int, fetch: Fetch) -> None:
        try:
            fetch.run()
        except Cancelled:
            pass
        except LiveError as error:
            self._say({"event": "failed", "id": fetch_id, "error": str(error)})
        except Exception as error:  # a bug here must not leave control waiting
            self._say(
                {"event": "failed", "id": fetch_id, "error": f"{type(error).__name__} in the prefetcher: {error}"}
            )
            raise
        else:
            self._say({"event": "done", "id": fetch_id})

    def _end(self, fetch_id: int) -> None:
        running = self._fetches.pop(fetch_id)
        running.fetch.cancel()
        running.thread.join()
        unlink(running.fetch.order.region)

    def _free(self, region: str) -> None:
        for fetch_id in [key for key, running in self._fetches.items() if running.fetch.order.region == region]:
            self._end(fetch_id)

    def _say(self, event: dict[str, Any]) -> None:
        with self._sending, contextlib.suppress(OSError):  # control is gone: the reading thread sees it too
            send_frame(self._control, event)


def _order(command: dict[str, Any]) -> FetchOrder:
    host, port = command["store"]
    start, stop = command["layers"]
    return FetchOrder(
        store=(str(host), int(port)),
        link=str(command["link"]),
        model=str(command["model"]),
        layers=range(int(start), int(stop)),
        region=check_name(str(command["region"])),
    )


def main() -> None:
    """The process: see the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--stall-timeout", type=float, default=STALL_TIMEOUT)
    options = parser.parse_args()
    leave_signals_to_control()
    Prefetcher(socket.socket(fileno=options.fd), options.stall_timeout).run()


if __name__ == "__main__":
    main()
