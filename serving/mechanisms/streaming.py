"""Streaming: weights are copied to the GPU while they still arrive in host memory."""

from collections import deque

from serving.core.clock import FlowBody
from serving.core.ports import Transfer, Transport
from serving.core.stages import Loader
from serving.core.worker import Worker
from serving.units import Bytes


def stream(transport: Transport, worker: Worker, fetch: Transfer | None, loader: Loader) -> FlowBody:
    """Copy a worker's weights behind the fetch that brings them (None: all are there), each time all whole pieces that
    have arrived by then."""
    pieces = deque(transport.pieces(worker))
    arrived: Bytes = 0.0
    ahead = None if fetch is None else fetch.reached(pieces[0])
    while pieces:
        if ahead is not None:
            yield ahead
        size = pieces.popleft()
        while pieces:
            ahead = None if fetch is None else fetch.reached(arrived + size + pieces[0])
            if ahead is not None and not ahead.fired:
                break
            size += pieces.popleft()
        arrived += size
        load = transport.load(worker, size, loader)
        try:
            yield load.done
        finally:
            load.cancel()
