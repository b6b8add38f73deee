"""Limits: how much a client may ask for, and how long it may take."""

from dataclasses import dataclass

from serving.units import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what clients hold of the service."""

    queue: int = 256
    """Sequences without a first token yet; more are answered 429."""
    body_bytes: int = 4 * 2**20
    body_timeout: Seconds = 30.0
    """For a body to arrive."""
    header_timeout: Seconds = 30.0
    """For the first request of a connection to begin."""
    stall_timeout: Seconds = 60.0
    """For a reader to take what a stream has for it; then its sequences are aborted and it is hung up on."""
    pending_outputs: int = 20_000
    """Outputs that a stream keeps for a slow reader; beyond it is as one that stalled."""
    connections: int = 1000
