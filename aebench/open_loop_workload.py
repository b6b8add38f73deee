"""open_loop_requests(): the requests that an open loop sends to a point's deployed models."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

from aebench.serverless_workload import length_distribution
from serving.core.cluster import Deployment
from serving.core.request import Request
from serving.units import Seconds, Tokens
from serving.workload import arrivals, lengths

Spec = Mapping[str, Any]
Pair = tuple[Tokens, Tokens]
"""Prompt and output tokens."""


def open_loop_requests(
    spec: Spec, seed: int, by_model: Mapping[str, Deployment], recorded: Sequence[Pair] | None = None
) -> Iterator[tuple[Seconds, Request]]:
    """Arrival times and requests, in order; models are drawn uniformly. Lengths are those recorded, or of the trace
    that the workload names, or drawn from its distributions; none of it derives from the system that serves them."""
    workload = spec["workload"]
    choice = Random(f"{seed}/models")
    models = [spec["model"]] if spec["model"] else list(by_model)
    priorities = _priorities(workload.get("high_priority_share", 0.0), seed)
    first_after = workload.get("first_after", 0.0)
    timed = _timed_lengths(workload, seed, recorded)
    for request_id, (arrived_at, (num_prompt_tokens, num_output_tokens)) in enumerate(timed):
        deployment = by_model[choice.choice(models)]
        yield (
            first_after + arrived_at,
            Request(
                request_id=request_id,
                model=deployment.model,
                num_prompt_tokens=num_prompt_tokens,
                num_output_tokens=num_output_tokens,
                ttft_slo=deployment.ttft_slo,
                tpot_slo=deployment.tpot_slo,
                priority=next(priorities),
            ),
        )


def _timed_lengths(workload: Spec, seed: int, recorded: Sequence[Pair] | None) -> Iterable[tuple[Seconds, Pair]]:
    """Arrival times from 0 on, and lengths. Requests of a trace come a gap after the one before, so the first at 0;
    those whose lengths are drawn come with the process, whose first gap begins at 0."""
    process = _arrivals(workload["arrivals"])
    if recorded is None and workload.get("lengths") is None:
        sizes = lengths.LengthPair(
            prompt=length_distribution(workload["prompt"]), output=length_distribution(workload["output"])
        )
        timed = zip(process.times(seed), sizes.pairs(seed), strict=False)
        return itertools.islice(timed, workload["num_requests"])
    from serving.workload.length_traces import LENGTH_TRACES, gap_stream, one_after_another

    if recorded is not None:
        return one_after_another(recorded, gap_stream(seed), process)
    pairs, stream = LENGTH_TRACES[workload["lengths"]].draw(workload["num_requests"], seed)
    return one_after_another(pairs, stream, process)


def _priorities(high_share: float, seed: int) -> Iterator[int]:
    """1 with that probability, else 0, without end."""
    if not high_share:
        return itertools.repeat(0)
    rng = Random(f"{seed}/priorities")
    return (int(rng.random() < high_share) for _ in itertools.count())


def _arrivals(table: Spec) -> arrivals.Drawn:
    match table["kind"]:
        case "poisson":
            return arrivals.Poisson(rate=table["rate"])
        case "gamma":
            return arrivals.Gamma(rate=table["rate"], cv=table["cv"])
        case _:
            return arrivals.Fixed(gap=table["gap"])
