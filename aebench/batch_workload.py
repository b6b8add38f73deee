"""batch_requests(): the requests that a client sends in batches to a point's deployed model."""

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from aebench.serverless_workload import length_distribution
from serving.core.cluster import Deployment
from serving.core.request import Request
from serving.units import Tokens
from serving.workload import lengths

Spec = Mapping[str, Any]

WARMUP = "warmup"
MEASURED = "measured"


def longest(workload: Spec) -> Tokens | None:
    """The most tokens that a sequence of a workload of batches may have; None: there is no limit, or it is another."""
    if workload["kind"] != "batches":
        return None
    ends = [_longest(workload[name]) for name in ("prompt", "output")]
    return None if None in ends else sum(end for end in ends if end is not None)


def _longest(table: Spec) -> Tokens | None:
    match table["kind"]:
        case "fixed":
            return int(table["tokens"])
        case "empirical":
            return int(max(table["values"]))
        case _:
            return None if table["max"] is None else int(table["max"])


def batch_requests(spec: Spec, seed: int, deployed: Sequence[Deployment]) -> Iterator[list[Request]]:
    """Batch after batch, those that warm the instances up first, which their labels say; models are drawn uniformly."""
    workload, by_model = spec["workload"], {deployment.model: deployment for deployment in deployed}
    models = [spec["model"]] if spec["model"] else list(by_model)
    choice = Random(f"{seed}/models")
    sizes = lengths.LengthPair(
        prompt=length_distribution(workload["prompt"]), output=length_distribution(workload["output"])
    ).pairs(seed)
    per_batch, warmups = workload["num_requests"], workload.get("warmups", 0)
    for batch in range(warmups + workload["repeats"]):
        requests = []
        for place in range(per_batch):
            deployment = by_model[choice.choice(models)]
            num_prompt_tokens, num_output_tokens = next(sizes)
            requests.append(
                Request(
                    request_id=batch * per_batch + place,
                    model=deployment.model,
                    num_prompt_tokens=num_prompt_tokens,
                    num_output_tokens=num_output_tokens,
                    label=WARMUP if batch < warmups else MEASURED,
                    ttft_slo=deployment.ttft_slo,
                    tpot_slo=deployment.tpot_slo,
                )
            )
        yield requests
