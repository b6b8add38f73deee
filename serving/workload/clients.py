"""Clients: flows that send requests; open loop by the clock, closed loop and batches by the answers."""

from collections.abc import Callable, Iterable
from random import Random

from serving.core.clock import FlowBody, Signal
from serving.core.request import Request
from serving.units import Seconds

Send = Callable[[Request], Signal]
Client = Callable[[Send], FlowBody]
"""Given a way to send, the flow of a client; ``send`` returns what fires when the request has its last token."""


def open_loop(timed: Iterable[tuple[Seconds, Request]]) -> Client:
    """Send each request at its instant (seconds since run start, not decreasing), whatever became of the others."""

    def flow(send: Send) -> FlowBody:
        now: Seconds = 0.0
        for arrived_at, request in timed:
            if arrived_at > now:
                yield arrived_at - now
                now = arrived_at
            send(request)

    return flow


def closed_loop(requests: Iterable[Request], gap: Seconds, phase: Seconds, seed: int) -> Client:
    """Wait up to ``phase``, send a request, wait for its last token, wait ``gap``, and again with the next.

    The random wait keeps a client from marching in step with the ticks of the system that it measures.
    """

    def flow(send: Send) -> FlowBody:
        waits = Random(f"{seed}/client/phase")
        for request in requests:
            yield waits.uniform(0.0, phase)
            yield send(request)
            yield gap

    return flow


def batches(groups: Iterable[Iterable[Request]], gap: Seconds) -> Client:
    """Send the requests of a group all at once, wait for all their answers, wait ``gap``, and again with the next."""

    def flow(send: Send) -> FlowBody:
        for group in groups:
            answers = [send(request) for request in group]
            for answer in answers:  # noqa: UP028 - an iterator of a list takes no values
                yield answer
            yield gap

    return flow


def cold_requests(
    measured: Request, before_each: Iterable[Request], before_all: Iterable[Request], repeats: int
) -> Iterable[Request]:
    """HydraServe's cold-start measurement: requests that prepare the host memory, once and before each measured
    one; meant for ``closed_loop`` with a gap beyond the grace period. Ids count up from 0."""
    preparing = list(before_each)
    script = [*before_all, *[request for _ in range(repeats) for request in (*preparing, measured)]]
    for request_id, request in enumerate(script):
        yield Request(
            request_id=request_id,
            model=request.model,
            num_prompt_tokens=request.num_prompt_tokens,
            num_output_tokens=request.num_output_tokens,
            label=request.label,
            ttft_slo=request.ttft_slo,
            tpot_slo=request.tpot_slo,
        )
