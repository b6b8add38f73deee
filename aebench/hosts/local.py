"""LocalHost: runs points in worker processes on this machine, one point at a time each.

A worker writes and seals its point's file itself and reports one line over a pipe, so results do not depend
on how many workers there are. A worker that dies is replaced and its point is run once more; a point that
raises is an error at once, since it would raise again.
"""

import errno
import faulthandler
import importlib
import itertools
import multiprocessing as mp
import os
import queue
import signal
import sys
import tempfile
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from aebench.errors import LogError
from aebench.point import Point
from aebench.point_log import PointWriter, disk_error
from serving.records import Record
from serving.units import Seconds

if TYPE_CHECKING:  # a worker needs the files of points only
    from aebench.logs import RunLog

Execute = Callable[[Point, Callable[[Record], None]], Seconds | None]
"""Runs one point, handing each record to a function as it is made; says how late a real clock's timers ran."""

_MAX_ATTEMPTS = 2
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 2.0
_LAST_LINES = 20


class Stage(Enum):
    """What happened to a point."""

    STARTED = "started"
    SEALED = "sealed"
    RETRIED = "retried"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PointEvent:
    """One step of a point's way through a host."""

    point: Point
    stage: Stage
    message: str = ""
    """Why it was retried or failed."""
    clock_lag: Seconds | None = None
    """Of a sealed point that ran on a real clock."""


Listener = Callable[[PointEvent], None]


class _Report(NamedTuple):
    """What a worker says of the point it was given."""

    error: str | None = None
    is_disk_error: bool = False
    """No point can be written any more: the whole run has to stop."""
    clock_lag: Seconds | None = None


# The worker's side


def _work(pipe: Connection, output: str, execute_path: str, folder: Path) -> None:
    """Runs points from the pipe until None comes, or until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    _redirect_output(output)
    orders: queue.SimpleQueue[Point | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, orders), daemon=True).start()
    while (point := orders.get()) is not None:
        pipe.send(_run_point(point, execute_path, folder))


def _redirect_output(output: str) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.enable()


def _listen(pipe: Connection, orders: "queue.SimpleQueue[Point | None]") -> None:
    """Takes orders while the main thread computes; a worker without a parent ends at once."""
    try:
        while True:
            orders.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(1)


def _run_point(point: Point, execute_path: str, folder: Path) -> _Report:
    try:
        module, _, name = execute_path.partition(":")
        execute: Execute = getattr(importlib.import_module(module), name)
        with PointWriter(folder, point) as writer:
            clock_lag = execute(point, writer.write)
            writer.seal()
    except LogError as error:
        return _Report(str(error), is_disk_error=True)
    except Exception as error:  # whatever a point does, the report names it and the other points go on
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return _Report(str(disk_error(folder, error)), is_disk_error=True)
        return _Report(traceback.format_exc())
    return _Report(clock_lag=clock_lag)


# The parent's side


class _Worker:
    """A worker process as its parent sees it, and the point it was given last."""

    def __init__(self, execute: str, folder: Path) -> None:
        self.point: Point | None = None
        self._output: IO[bytes] = tempfile.NamedTemporaryFile()  # noqa: SIM115 - lives as long as the worker
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, self._output.name, execute, folder)
        self.process: SpawnProcess = context.Process(target=_work, args=arguments)
        resource_tracker.ensure_running()  # here, because its own start would unblock SIGINT again
        with _sigint_blocked():
            self.process.start()
        theirs.close()

    def give(self, point: Point) -> None:
        """Hands over the next point; a worker that is dead already shows by its sentinel."""
        self.point = point
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(point)

    def report(self) -> _Report | None:
        """What the worker says; None: it died."""
        with suppress(EOFError, OSError):
            if self.pipe.poll():
                report: _Report = self.pipe.recv()
                return report
        return None

    def last_words(self) -> str:
        """How the process ended, and the last lines it wrote."""
        self.process.join(_GRACE_SECONDS)
        code = self.process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join([f"the worker process ended {how}", *lines])

    def dismiss(self) -> None:
        """Lets an idle worker end by itself; any other is terminated."""
        if self.point is None:
            with suppress(OSError):
                self.pipe.send(None)
        else:
            self.process.terminate()

    def close(self) -> None:
        """Waits for the end of a dismissed worker, and kills one that does not come to it."""
        self.process.join(_GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()
        self.process.close()
        self._output.close()


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """A child inherits the mask, so that Ctrl-C cannot hit it before it is able to ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(slots=True, eq=False)
class LocalHost:
    """Runs points in at most ``jobs`` processes, each point by the function at a dotted path.

    ``stop`` and ``kill`` may be called from a signal handler.
    """

    jobs: int
    execute: str = "aebench.execute:execute"
    _workers: list[_Worker] = field(default_factory=list, init=False)
    _queue: deque[Point] = field(default_factory=deque, init=False)
    _deaths: Counter[str] = field(default_factory=Counter, init=False)
    _stopping: bool = field(default=False, init=False)

    def run(self, points: Sequence[Point], run_log: "RunLog", on_event: Listener) -> None:
        """Runs the points into the log; returns when all have ended or after ``stop``."""
        folder = run_log.points_folder
        self._queue.extend(points)
        try:
            for _ in range(min(self.jobs, len(points))):
                self._employ(folder, on_event)
            while not self._stopping and any(worker.point for worker in self._workers):
                self._wait(folder, on_event)
        finally:
            self._dismiss_all()

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"LocalHost: jobs is {self.jobs}, expected at least 1")

    def stop(self) -> None:
        """Ends the run soon: no new points, running ones are given up."""
        self._stopping = True

    def kill(self) -> None:
        """Kills all workers now."""
        for worker in list(self._workers):
            worker.process.kill()

    def _employ(self, folder: Path, on_event: Listener) -> None:
        worker = _Worker(self.execute, folder)
        self._workers.append(worker)
        self._give_next(worker, on_event)

    def _give_next(self, worker: _Worker, on_event: Listener) -> None:
        worker.point = None
        if self._queue and not self._stopping:
            point = self._queue.popleft()
            worker.give(point)
            on_event(PointEvent(point=point, stage=Stage.STARTED))

    def _wait(self, folder: Path, on_event: Listener) -> None:
        """Waits until a worker reports or dies, for a moment at most, and deals with it."""
        signs = {worker: (worker.pipe, worker.process.sentinel) for worker in self._workers}
        ready = connection.wait(itertools.chain(*signs.values()), _POLL_SECONDS)
        for worker in [worker for worker, (pipe, death) in signs.items() if pipe in ready or death in ready]:
            report = worker.report()
            if report is None:
                self._bury(worker, folder, on_event)
            else:
                self._note(worker, report, on_event)

    def _note(self, worker: _Worker, report: _Report, on_event: Listener) -> None:
        if report.is_disk_error:
            worker.point = None
            raise LogError(report.error)
        if worker.point is not None:
            stage = Stage.SEALED if report.error is None else Stage.FAILED
            message, lag = report.error or "", report.clock_lag
            on_event(PointEvent(point=worker.point, stage=stage, message=message, clock_lag=lag))
        self._give_next(worker, on_event)

    def _bury(self, worker: _Worker, folder: Path, on_event: Listener) -> None:
        """Reports a dead worker, puts its point back once, and hires another where there is work."""
        self._workers.remove(worker)
        message = worker.last_words()
        worker.close()
        point = worker.point
        if point is not None:
            self._deaths[point.name] += 1
            again = self._deaths[point.name] < _MAX_ATTEMPTS
            if again:
                self._queue.append(point)
            stage = Stage.RETRIED if again else Stage.FAILED
            on_event(PointEvent(point=point, stage=stage, message=message))
        if self._queue and not self._stopping:
            self._employ(folder, on_event)

    def _dismiss_all(self) -> None:
        for worker in self._workers:
            worker.dismiss()
        for worker in self._workers:
            worker.close()
        self._workers.clear()
        self._queue.clear()
