"""LiveError: what went wrong with a checkpoint, a device, a socket or a process, in one sentence for the user."""


class LiveError(ValueError):
    """Says what happened, to which thing, what was expected and what to do; no traceback is needed to act on it."""
