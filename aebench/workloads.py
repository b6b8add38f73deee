"""client(): a resolved point's workload as the client that sends it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aebench.batch_workload import batch_requests
from aebench.host_cache import largest_cache
from aebench.open_loop_workload import open_loop_requests
from aebench.serverless_workload import serverless_requests
from aebench.trace_files import file_table
from serving.core.cluster import Deployment
from serving.core.request import Request
from serving.units import Seconds
from serving.workload import traces
from serving.workload.clients import Client, batches, closed_loop, cold_requests, open_loop

Spec = Mapping[str, Any]


def client(spec: Spec, seed: int, deployed: Sequence[Deployment]) -> Client:
    """The client of the point's workload, which may ask for the models that are deployed."""
    if spec["workload"]["kind"] == "cold_requests":
        return _cold_client(spec, seed, deployed)
    if spec["workload"]["kind"] == "batches":
        return batches(batch_requests(spec, seed, deployed), spec["workload"]["gap"])
    return open_loop(timed_requests(spec, seed, deployed))


def _cold_client(spec: Spec, seed: int, deployed: Sequence[Deployment]) -> Client:
    """Requests to one model, each of which finds it cold; see ``workload.prepare``."""
    workload = spec["workload"]

    def request(model: str, output_tokens: int, label: str) -> Request:
        return Request(
            request_id=0,
            model=model,
            num_prompt_tokens=workload["prompt_tokens"],
            num_output_tokens=output_tokens,
            label=label,
        )

    def preparing(models: list[str]) -> list[Request]:
        return [request(model, workload["prepare_output_tokens"], "prepare") for model in models]

    model = spec["model"]
    before_each = evicting(spec, deployed) if workload["prepare"] == "evict" else []
    before_all = [model] if workload["prepare"] == "load" else []
    script = cold_requests(
        request(model, workload["output_tokens"], "measured"),
        preparing(before_each),
        preparing(before_all),
        workload["repeats"],
    )
    return closed_loop(script, workload["gap"], workload["phase"], seed)


def evicting(spec: Spec, deployed: Sequence[Deployment]) -> list[str]:
    """Other deployed models, in table order, that together push the point's model out of a host cache."""
    capacity = largest_cache(spec)
    weights = {deployment.model: deployment.spec.weight_bytes for deployment in deployed}
    models: list[str] = []
    for model in weights:
        held = sum(weights[other] for other in models)
        if model != spec["model"] and held + weights[spec["model"]] <= capacity:
            models.append(model)
    return models


def timed_requests(spec: Spec, seed: int, deployed: Sequence[Deployment]) -> Iterator[tuple[Seconds, Request]]:
    """Arrival times and requests of a workload that goes by the clock, in order."""
    by_model = {deployment.model: deployment for deployment in deployed}
    if (named := file_table(spec["workload"])) is not None:
        return _replayed(Path(named[1]["file"]), by_model)
    if spec["workload"]["kind"] == "serverless":
        return serverless_requests(spec, seed, by_model)
    return open_loop_requests(spec, seed, by_model)


def _replayed(file: Path, by_model: Mapping[str, Deployment]) -> Iterator[tuple[Seconds, Request]]:
    """The requests of a workload trace file."""
    for request_id, row in enumerate(traces.read_trace(file)):
        deployment = by_model[row.model]
        yield (
            row.arrived_at,
            Request(
                request_id=request_id,
                model=row.model,
                num_prompt_tokens=row.num_prompt_tokens,
                num_output_tokens=row.num_output_tokens,
                label=row.label or "measured",
                ttft_slo=row.ttft_slo or deployment.ttft_slo,
                tpot_slo=row.tpot_slo or deployment.tpot_slo,
                priority=row.priority,
            ),
        )
