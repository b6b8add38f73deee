"""Contender: a system under measurement in a process session of its own, and what that uses of the machine's cores."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

TICKS = os.sysconf("SC_CLK_TCK")
END = 20.0
"""Seconds that a contender has to end by itself."""
LAST_LINES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One batch, answered."""

    seconds: float
    outputs: list[list[int]]


@dataclass(slots=True, eq=False)
class Contender:
    """A loaded system, which sleeps until it is asked."""

    name: str
    version: str
    process: subprocess.Popen[str]
    log: Path

    def generate(self, prompts: list[list[int]]) -> Turn:
        """Have it answer a batch; the time is its own, without the pipe."""
        commands = _stream(self.process.stdin)
        commands.write(json.dumps({"prompts": prompts}) + "\n")
        commands.flush()
        return Turn(**_reply(self.name, self.process, self.log))

    def cpu_seconds(self) -> float:
        """What its processes that are alive have used so far."""
        return session_cpu_seconds(self.process.pid)


@contextmanager
def contender(name: str, command: Sequence[str], logs: Path, env: dict[str, str] | None = None) -> Iterator[Contender]:
    """Start a system and wait until it is loaded; afterwards none of its processes is left."""
    log = logs / f"{name.replace(' ', '-')}.log"
    with ExitStack() as stack:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stack.enter_context(log.open("w")),
            text=True,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
        stack.callback(_end, process)
        version = _reply(name, process, log)["version"]
        yield Contender(name=name, version=version, process=process, log=log)


def session_cpu_seconds(session: int) -> float:
    """CPU time of all living processes of a session."""
    return sum(used for _, used in _members(session))


def machine_cpu_seconds() -> float:
    """CPU time that the machine's cores were not idle for, since it booted."""
    user, nice, system, _idle, _wait, interrupt, soft, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, interrupt, soft))) / TICKS


def _members(session: int) -> Iterator[tuple[int, float]]:
    """Living processes of a session with their CPU seconds."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                yield int(path.parent.name), (int(fields[11]) + int(fields[12])) / TICKS


def _reply(name: str, process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    line = _stream(process.stdout).readline()
    if not line:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        raise SystemExit(f"{name} ended without an answer; the end of its log:\n{last}")
    reply: dict[str, Any] = json.loads(line)
    return reply


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None, "both are pipes"
    return stream


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(OSError):
        _stream(process.stdin).close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END)
    for pid, _ in list(_members(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
