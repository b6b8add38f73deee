"""What the messages of a scheduler in another process cost it: pickled, over a local socket, this end's CPU time only.

A centralized scheduler sends each instance its step and receives the tokens; a llumlet sends its report, which the
global scheduler receives. Over a network it is more.
"""

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from socket import AF_UNIX, SOCK_SEQPACKET, socketpair
from typing import Any

from serving.units import Seconds

NUM_BLOCKS = 12
"""KV blocks of a sequence, in the mean."""
REPEATS = 2000
LARGEST = 1 << 14  # bytes
REPORT = (17, 1.0, 168, 30, 11, 0, 0, 0.0, False, 0)
"""An instance, and the fields of its ``Report``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """CPU seconds."""

    exchange: Seconds
    """Send a step with its block tables, receive its tokens."""
    send_report: Seconds
    receive_report: Seconds


def messages(num_sequences: int) -> Messages:
    """With so many sequences in a step."""
    step = [(number, 1, list(range(NUM_BLOCKS))) for number in range(num_sequences)]
    tokens = [(number, 32_000) for number in range(num_sequences)]
    sent, _ = _times(step)
    _, received = _times(tokens)
    send_report, receive_report = _times(REPORT)
    return Messages(exchange=sent + received, send_report=send_report, receive_report=receive_report)


def _times(content: Any) -> tuple[Seconds, Seconds]:
    """Of sending and of receiving it, the medians."""
    near, far = socketpair(AF_UNIX, SOCK_SEQPACKET)
    with near, far:
        spent = [
            (_time(lambda: near.send(pickle.dumps(content))), _time(lambda: pickle.loads(far.recv(LARGEST))))
            for _ in range(REPEATS)
        ]
    sending, receiving = (sorted(each)[REPEATS // 2] for each in zip(*spent, strict=True))
    return sending, receiving


def _time(work: Callable[[], object]) -> Seconds:
    began = time.process_time()
    work()
    return time.process_time() - began
