"""The exception tree; each error knows its exit code and what to say.

    AebenchError            exit 2: the user can mend it; printed as ``Error: ...``, never a traceback
    ├── SpecError           a file (TOML, CSV, .claim) says something it may not: file, key, expectation
    ├── NotFoundError       a name that nothing answers to, with near misses
    ├── LogError            a log that cannot be read or written
    └── UsageError          flags that contradict each other

Exit codes: 0 ok, 1 a claim failed, 2 usage or environment, 130/143 stopped by SIGINT/SIGTERM.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path


class AebenchError(Exception):
    """What happened, to which thing, what was expected, what to type next."""

    exit_code = 2


class SpecError(AebenchError):
    """A file of the user's says something it may not."""

    def __init__(self, path: Path | str, key: str, message: str) -> None:
        where = f"{path}, {key}" if key else f"{path}"
        super().__init__(f"{where}: {message}")
        self._parts = (path, key, message)

    def __reduce__(self) -> tuple[type["SpecError"], tuple[Path | str, str, str]]:
        return type(self), self._parts


class NotFoundError(AebenchError):
    """A name that nothing answers to."""


class LogError(AebenchError):
    """A log that cannot be read or written."""


class UsageError(AebenchError):
    """Flags that contradict each other."""


class Stopped(BaseException):
    """A signal to stop, between the runs that take it themselves; what was stopped says what is kept."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def near_misses(name: str, known: Iterable[str]) -> str:
    """`` Did you mean a or b?``, or nothing when no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""
