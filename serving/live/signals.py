"""Signals in the child processes of a live run."""

import signal


def leave_signals_to_control() -> None:
    """Ignore SIGINT and SIGTERM, which terminals and supervisors send to whole groups: the control process ends its
    children in order, and a child whose control process died sees its socket close."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
