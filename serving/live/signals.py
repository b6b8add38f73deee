"""Signals in the child processes of a live run."""

import signal
from types import FrameType


def leave_interrupts_to_control() -> None:
    """Ignore SIGINT, which a terminal sends to the whole group; end on SIGTERM with the clean-up of ``finally``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
