"""The processes of a live run, as the control process sees them: how each is started, watched and ended.

Every child holds one end of a socket pair. It ends when the other end closes, so no child outlives the control process,
however that ends. Each has a process group of its own, which the signals of a terminal do not reach.
"""

import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from serving.live.errors import LiveError
from serving.live.frames import recv_frame, send_frame
from serving.live.shared_region import sweep
from serving.units import BytesPerSecond, KiB, MiB, Seconds

LOG_FILE_LIMIT = int(1 * MiB)
"""Bytes of a child's output that its log file keeps, from the start."""
TAIL_LIMIT = int(8 * KiB)
"""Bytes of its latest output that are kept for messages."""
GRACE: Seconds = 3.0
"""How long a child has for an orderly end before it is killed."""
STORAGE_START: Seconds = 600.0
"""Limit for a storage server to read its checkpoints into memory; one that dies is noticed at once."""


class ProcessLog:
    """What a child wrote to its standard output and error: the start in a file, if wanted, and the last lines here."""

    def __init__(self, output: IO[bytes], path: Path | None) -> None:
        self.path = path
        self._tail: collections.deque[bytes] = collections.deque()
        self._tail_bytes = 0
        self._reader = threading.Thread(target=self._drain, args=(output,), name="process log", daemon=True)
        self._reader.start()

    def tail(self) -> str:
        """The last output, at most ``TAIL_LIMIT`` bytes."""
        return b"".join(list(self._tail))[-TAIL_LIMIT:].decode(errors="replace").strip()

    def join(self, timeout: Seconds) -> None:
        """Wait until the child and all who inherited its output have closed it."""
        self._reader.join(timeout)

    def _drain(self, output: IO[bytes]) -> None:
        room = LOG_FILE_LIMIT
        with contextlib.ExitStack() as stack:
            stack.enter_context(output)
            file = stack.enter_context(self.path.open("ab", buffering=0)) if self.path else None
            while text := os.read(output.fileno(), 1 << 16):
                self._keep(text)
                if file is not None and room > 0:
                    file.write(text[:room])
                    room -= len(text)

    def _keep(self, text: bytes) -> None:
        self._tail.append(text)
        self._tail_bytes += len(text)
        while self._tail_bytes - len(self._tail[0]) >= TAIL_LIMIT:
            self._tail_bytes -= len(self._tail.popleft())


@dataclass(slots=True, eq=False)
class LiveProcess:
    """A child and control's end of its socket."""

    name: str
    """For messages: ``worker 3.0``, ``storage server``."""
    process: subprocess.Popen[bytes]
    socket: socket.socket
    log: ProcessLog
    _stopping: threading.Lock = field(default_factory=threading.Lock)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def obituary(self) -> str:
        """How it ended, with its last output; for the message of who misses it."""
        code = self.process.poll()
        if code is None:
            how = "closed its socket"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        last = self.log.tail().splitlines()[-1:]
        return f"{self.name} (process {self.pid}) {how}" + (f": {last[0].strip()}" if last else "")

    def stop(self, grace: Seconds = GRACE) -> None:
        """Close its socket, at which it ends, wait, kill it. Returns when it is gone; may be called again."""
        with self._stopping:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()
            try:
                self.process.wait(grace)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.log.join(grace)


def spawn_module(
    module: str,
    name: str,
    *,
    env: Mapping[str, str] | None = None,
    args: Sequence[str] = (),
    log_path: Path | None = None,
) -> LiveProcess:
    """Start ``python -m module --fd N ARGS``, N being its end of a socket pair; LiveError when the system has no room.

    ``env`` is added to this process's environment. Its output goes to ``log_path``, capped, and to ``log.tail()``.
    The working directory is not among the places that it imports from.
    """
    with contextlib.ExitStack() as undo:
        try:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, "--fd", str(theirs.fileno()), *args],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    bufsize=0,
                    env={**os.environ, **_import_path(), **(env or {})},
                    process_group=0,
                )
            undo.callback(process.wait)
            undo.callback(process.kill)
            assert process.stdout is not None
            undo.callback(process.stdout.close)
            live = LiveProcess(name, process, ours, ProcessLog(process.stdout, log_path))
        except (OSError, RuntimeError) as error:  # no more files, processes, memory; no more threads
            raise LiveError(f"{name}: cannot start {sys.executable} -m {module}: {error}") from error
        undo.pop_all()
    return live


def _import_path() -> dict[str, str]:
    """What a child needs in its environment to import the package that this process runs, installed or not."""
    root = str(Path(__file__).resolve().parents[2])
    if root in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return {}
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": root if not others else root + os.pathsep + others}


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageProcess:
    """A storage server and where it listens."""

    live: LiveProcess
    address: tuple[str, int]

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process."""
        return self.live.process

    def stop(self) -> None:
        """End it."""
        self.live.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefetcherProcess:
    """The prefetcher of one server."""

    live: LiveProcess
    run_id: str

    @property
    def socket(self) -> socket.socket:
        """Control's end: frames of commands out, frames of events in (``prefetcher.py``)."""
        return self.live.socket

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process."""
        return self.live.process

    def stop(self) -> None:
        """End it. Its regions go with it, or, if it was killed, by us."""
        self.live.stop()
        sweep(self.run_id)


def start_storage(
    checkpoints: Mapping[str, Path],
    server_rate: BytesPerSecond | None = None,
    link_rate: BytesPerSecond | None = None,
    *,
    link_rates: Mapping[str, BytesPerSecond] | None = None,
    log_path: Path | None = None,
    on_spawn: Callable[[LiveProcess], None] | None = None,
) -> StorageProcess:
    """A storage server of these checkpoint folders, by model name, on a free port of the loopback; None: no limit.

    ``link_rates`` are of single links where they differ from ``link_rate``. Returns once they are in memory, which can
    take minutes; ``on_spawn`` is told of the process before, so that it can be killed.
    """
    live = spawn_module("serving.live.storage", "storage server", log_path=log_path)
    options = {
        "checkpoints": {name: str(path) for name, path in checkpoints.items()},
        "server_rate": server_rate,
        "link_rate": link_rate,
        "link_rates": dict(link_rates or {}),
    }
    try:
        if on_spawn is not None:
            on_spawn(live)
        live.socket.settimeout(STORAGE_START)
        send_frame(live.socket, options)
        answer, _ = recv_frame(live.socket)
        if not answer["ok"]:
            raise LiveError(answer["error"])
    except BaseException as error:
        live.stop()
        if isinstance(error, (EOFError, OSError)):
            raise LiveError(f"the storage server did not start: {live.obituary()}") from error
        raise
    host, port = answer["address"]
    return StorageProcess(live=live, address=(host, port))


def start_prefetcher(
    name: str, run_id: str, *, stall_timeout: Seconds = 10.0, log_path: Path | None = None
) -> PrefetcherProcess:
    """The prefetcher of the server called ``name``; its regions must be named by ``region_name(run_id, ...)``.

    Returns at once; commands may be sent before it listens.
    """
    args = ("--stall-timeout", str(stall_timeout))
    live = spawn_module("serving.live.prefetcher", f"prefetcher of {name}", args=args, log_path=log_path)
    return PrefetcherProcess(live=live, run_id=run_id)
