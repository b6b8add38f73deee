"""Listens: uvicorn on the main thread, a socket that is bound first, and an end that lets requests finish."""

import asyncio
import contextlib
import logging
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from aebench.errors import AebenchError
from aebench.service.app import application
from aebench.service.service import Service
from serving.units import Seconds

POLL: Seconds = 0.05
"""How often a server that starts asks whether it is ready."""
BACKLOG = 2048
KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than load balancers keep theirs, so that these close first."""
RESET = struct.pack("ii", 1, 0)
"""Linger for no time at all."""
DRAINED: Seconds = 2.0
"""For the last answers to leave after their requests have ended; then connections are cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """How to listen, and how long to go on after a signal to stop."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any that is free."""
    drain_timeout: Seconds = 30.0
    access_log: bool = False


def bind(listening: Listening) -> socket.socket:
    """The socket, so that a port in use is said before weights are loaded."""
    host, port = listening.host, listening.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise AebenchError(f"cannot listen on {host}: {error}; give an address of this machine: --host") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise AebenchError(f"cannot listen on {host}:{port}: {error.strerror}; choose another: --port") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Where clients reach it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(service: Service, bound: socket.socket, listening: Listening, ready: Callable[[], object]) -> int:
    """Serve until a signal, or until the engine fails; the exit code: 0 after a drain, 128 + the signal after two.

    ``ready`` is called once, when requests are taken.
    """
    return asyncio.run(Listener(service, listening).serve(bound, ready))


class _Connection(H11Protocol):
    """A connection that must begin its first request in time."""

    header_timeout: Seconds = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(self.header_timeout, self._cut_if_silent)

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection, and does not wait for ever until its reader has taken what it was sent."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(self.header_timeout, self.transport.abort)

    def cut(self) -> None:
        """Resets the connection: what its reader has not taken is thrown away, in the kernel too."""
        peer = self.transport.get_extra_info("socket")
        if peer is not None and not self.transport.is_closing():
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()

    def _cut_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.abort()


class _Server(uvicorn.Server):
    """uvicorn's, without its signals: the listener drains first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listener:
    """A service at a socket, until it is stopped."""

    def __init__(self, service: Service, listening: Listening) -> None:
        self._service = service
        self._listening = listening
        connection = type("Connection", (_Connection,), {"header_timeout": service.limits.header_timeout})
        _log_to_stderr(listening.access_log)
        self._server = _Server(
            uvicorn.Config(
                application(service),
                http=connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=listening.access_log,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                limit_concurrency=service.limits.connections,
                timeout_graceful_shutdown=max(1, int(DRAINED)),
            )
        )
        self._signals: asyncio.Queue[int] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        service.hang_up = self._hang_up

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """As a signal does; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._signals.put_nowait, signum)

    async def serve(self, bound: socket.socket, ready: Callable[[], object]) -> int:
        """Serve; the exit code, see ``listen``."""
        self._loop = loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError, RuntimeError):  # not the main thread: whoever started it stops it
                loop.add_signal_handler(number, self._signals.put_nowait, number)
        watch = asyncio.create_task(self._watch(ready))
        stop = asyncio.create_task(self._stop())
        try:
            await self._server.serve(sockets=[bound])
            return await stop
        finally:
            watch.cancel()
            stop.cancel()

    async def _watch(self, ready: Callable[[], object]) -> None:
        while (state := await self._service.state()) == "starting":
            await asyncio.sleep(POLL)
        if state == "ready":
            ready()
        while (await self._service.stats()).failure is None:
            await asyncio.sleep(1.0)
        self._signals.put_nowait(0)

    async def _stop(self) -> int:
        """Waits for the first reason to stop; lets requests finish, unless a second comes."""
        first = await self._signals.get()
        again = asyncio.create_task(self._signals.get())
        drain = asyncio.create_task(self._service.drain(self._listening.drain_timeout if first else 0.0))
        await asyncio.wait((drain, again), return_when=asyncio.FIRST_COMPLETED)
        code = 0 if first else 2
        if not drain.done():
            code = 128 + again.result()
            self._service.abort_all()
            self._server.force_exit = True
            drain.cancel()
        again.cancel()
        self._server.should_exit = True
        return code

    def _hang_up(self, client: object) -> None:
        for connection in list(self._server.server_state.connections):
            if isinstance(connection, _Connection) and connection.client == client:
                connection.cut()


def _log_to_stderr(access_log: bool) -> None:
    """Bugs are logged with their traceback; that a client sent no HTTP is not worth a line."""
    for name, level in (("uvicorn.error", logging.ERROR), ("uvicorn.access", logging.INFO)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        if not logger.handlers and (access_log or name != "uvicorn.access"):
            logger.addHandler(logging.StreamHandler(sys.stderr))
