"""serverless_requests(): the requests of serverless traffic to a point's deployed models."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any

from aebench.deployed_models import tables_by_model
from serving.core.cluster import Deployment
from serving.core.request import Request
from serving.units import Seconds
from serving.workload import lengths

if TYPE_CHECKING:
    from serving.workload.functions import Invocations, SyntheticFunctions
    from serving.workload.serverless import WindowFits

Spec = Mapping[str, Any]


def serverless_requests(
    spec: Spec, seed: int, by_model: Mapping[str, Deployment], recorded: "Invocations | None" = None
) -> Iterator[tuple[Seconds, Request]]:
    """Arrival times and requests, in order; each is labelled with its model's application, whose distributions give its
    lengths. They derive from a recorded trace of functions, or from a synthetic one, never from the system that serves
    them."""
    applications = {model: table["application"] for model, table in tables_by_model(spec["deployments"]).items()}
    models = list(applications)
    tables = spec["workload"]["applications"]
    draws = {name: _sizes(table, f"{seed}/serverless/{name}") for name, table in tables.items()}
    for request_id, (arrived_at, index) in enumerate(
        _arrivals(spec["workload"], seed, list(applications.values()), recorded)
    ):
        model = models[index]
        num_prompt_tokens, num_output_tokens = next(draws[applications[model]])
        yield (
            arrived_at,
            Request(
                request_id=request_id,
                model=model,
                num_prompt_tokens=num_prompt_tokens,
                num_output_tokens=num_output_tokens,
                label=applications[model],
                ttft_slo=by_model[model].ttft_slo,
                tpot_slo=by_model[model].tpot_slo,
            ),
        )


def _arrivals(
    workload: Spec, seed: int, applications: list[str], recorded: "Invocations | None"
) -> list[tuple[Seconds, int]]:
    """Instants, and indices of models; ``applications`` has an entry a model."""
    from serving.workload.serverless import Replay, fitted

    trace = workload["trace"]
    how = (len(applications), trace["window"], trace["rate_cap"])
    fits = _synthetic_fits(trace, seed, how) if recorded is None else fitted(recorded, *how)
    replay = Replay(
        rate=trace["rate"],
        cv=trace["cv"],
        duration=workload["duration"],
        compression=trace["compression"],
        stationary=trace["stationary"],
        shares=_shares(workload["applications"], applications),
    )
    found = replay.arrivals(fits, seed)
    return list(zip(found.arrived_at.tolist(), found.model.tolist(), strict=True))


def _synthetic_fits(trace: Spec, seed: int, how: tuple[int, Seconds, float]) -> "WindowFits":
    from serving.workload.functions import SyntheticFunctions

    functions = SyntheticFunctions(**{name: trace[name] for name in SYNTHETIC})
    return _fits(functions, seed if trace["seed"] is None else trace["seed"], how)


SYNTHETIC = (
    "num_functions",
    "num_invocations",
    "days",
    "rate_sigma",
    "diurnal",
    "peak_hour",
    "spike_factor",
    "spike_length",
    "active_share",
    "timer_share",
    "timer_cv",
    "gap_cv_median",
    "gap_cv_sigma",
)
"""Keys of ``workload.trace`` that are fields of SyntheticFunctions."""


@lru_cache(maxsize=2)
def _fits(functions: "SyntheticFunctions", seed: int, how: tuple[int, Seconds, float]) -> "WindowFits":
    """What points of all systems, rates and CVs share; ``how`` is what ``fitted`` takes beside the invocations."""
    from serving.workload.serverless import fitted

    return fitted(functions.invocations(seed), *how)


def _shares(tables: Mapping[str, Spec], applications: list[str]) -> tuple[tuple[tuple[int, ...], float], ...]:
    """Groups of models, and the fraction of requests that each is to get; none: whatever the trace gives."""
    return tuple(
        (tuple(index for index, each in enumerate(applications) if each == name), table["share"])
        for name, table in tables.items()
        if "share" in table
    )


def _sizes(table: Spec, stream: str) -> Iterator[tuple[int, int]]:
    """Prompt and output tokens of one request of an application after another."""
    prompt, output = length_distribution(table["prompt"]), length_distribution(table["output"])
    prompts, outputs = Random(f"{stream}/prompt-lengths"), Random(f"{stream}/output-lengths")
    while True:
        yield prompt.sample(prompts), output.sample(outputs)


def length_distribution(table: Spec) -> lengths.Lengths:
    """The distribution of token counts that a table describes."""
    match table["kind"]:
        case "fixed":
            return lengths.Fixed(num_tokens=table["tokens"])
        case "lognormal":
            return _lognormal(table)
        case _:
            return lengths.Empirical(values=tuple(table["values"]))


def _lognormal(table: Spec) -> lengths.LogNormal:
    if table.get("mean") is not None:
        limits = {"min_tokens": table["min"], "max_tokens": table["max"]}
        return lengths.LogNormal.from_mean(table["mean"], table["sigma"], **limits)
    return lengths.LogNormal(
        median=table["median"], sigma=table["sigma"], min_tokens=table["min"], max_tokens=table["max"]
    )
