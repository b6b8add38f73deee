"""StoreLink: control's side of a storage server: its process, started again when it dies."""

import contextlib
import subprocess
from collections.abc import Callable
from threading import Event, Thread

from serving.live.errors import LiveError
from serving.live.processes import LiveProcess, StorageProcess
from serving.units import Seconds

OnSpawn = Callable[[LiveProcess], None]

RETRY: Seconds = 1.0
"""Before each attempt to start it again: it may die at once, or its checkpoints may have been damaged since."""


class StoreLink:
    """One storage server. A thread of its own waits for its process to end."""

    def __init__(self, start: Callable[[OnSpawn], StorageProcess]) -> None:
        """Starts it, which takes as long as reading its checkpoints; LiveError when it cannot. ``start`` tells of the
        process as soon as there is one."""
        self._start = start
        self._closing = Event()
        self._starting: LiveProcess | None = None
        self._latest = start(self._spawned)
        self._trouble: str | None = None
        self._watcher = Thread(target=self._watch, name="storage server", daemon=True)
        self._watcher.start()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that serves, or served last."""
        return self._latest.process

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, elsewhere after each start; LiveError with the reason while it does not."""
        trouble, (host, port) = self._trouble, self._latest.address
        if trouble is not None:
            raise LiveError(f"storage server {host}:{port} is gone ({trouble})")
        return host, port

    def close(self) -> None:
        """End the process and wait for it, but not for one that is still reading its checkpoints."""
        self._closing.set()
        if self._starting is not None:
            self._starting.process.kill()
        self._latest.stop()
        self._watcher.join()

    def _watch(self) -> None:
        while True:
            sock = self._latest.live.socket
            with contextlib.suppress(OSError):
                sock.settimeout(None)
                sock.recv(1)  # it says nothing: this returns when it has ended
            if self._closing.is_set():
                return
            self._latest.stop()
            self._trouble = self._latest.live.obituary()
            while not self._closing.wait(RETRY) and not self._started_again():
                pass

    def _started_again(self) -> bool:
        try:
            self._latest = self._start(self._spawned)
        except LiveError as error:
            self._trouble = str(error)
            return False
        self._trouble = None
        if self._closing.is_set():  # ``close`` may have ended the one before
            self._latest.stop()
        return True

    def _spawned(self, live: LiveProcess) -> None:
        self._starting = live
        if self._closing.is_set():  # ``close`` may have looked before
            live.process.kill()
