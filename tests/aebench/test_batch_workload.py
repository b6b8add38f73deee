"""Batches of requests: how many, how long, what counts, and what is refused."""

from itertools import pairwise
from typing import Any

import pytest

from aebench.batch_workload import MEASURED, WARMUP, batch_requests, longest
from aebench.catalog import Catalog
from aebench.errors import SpecError, UsageError
from aebench.execute import execute
from aebench.trace_commands import only_workload
from aebench.world import World
from serving.core.cluster import Deployment
from serving.cost.models import MODELS
from serving.records import MigrationRecord, Record, RequestRecord

TINY = Deployment(model="tiny", spec=MODELS["opt-2.7b"], size=1e9, ttft_slo=2.0, tpot_slo=0.5)


def spec(**changes: Any) -> dict[str, Any]:
    """A workload of a warm-up and two batches of three."""
    workload = {
        "kind": "batches",
        "num_requests": 3,
        "warmups": 1,
        "repeats": 2,
        "prompt": {"kind": "fixed", "tokens": 248},
        "output": {"kind": "fixed", "tokens": 64},
    }
    return {"model": None, "workload": workload | changes}


def test_there_are_as_many_batches_as_asked_and_the_first_do_not_count() -> None:
    made = list(batch_requests(spec(), 0, [TINY]))
    assert [[request.request_id for request in batch] for batch in made] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert [{request.label for request in batch} for batch in made] == [{WARMUP}, {MEASURED}, {MEASURED}]
    assert {(one.num_prompt_tokens, one.num_output_tokens, one.ttft_slo) for one in made[1]} == {(248, 64, 2.0)}


def test_lengths_are_drawn_anew_for_each_batch_and_follow_the_seed() -> None:
    drawn = {"kind": "lognormal", "median": 100.0, "mean": None, "sigma": 1.0, "min": 1, "max": 500}
    first, again, other = (
        [one.num_prompt_tokens for batch in batch_requests(spec(prompt=drawn), seed, [TINY]) for one in batch]
        for seed in (0, 0, 1)
    )
    assert first == again != other and first[:3] != first[3:6]


def test_the_longest_sequence_is_known_where_lengths_are_limited() -> None:
    drawn = {"kind": "lognormal", "median": 100.0, "sigma": 1.0, "min": 1, "max": 500}
    assert longest(spec()["workload"]) == 312
    assert longest(spec(prompt=drawn, output={"kind": "empirical", "values": [3, 9, 4]})["workload"]) == 509
    assert longest(spec(prompt=drawn | {"max": None})["workload"]) is None
    assert longest(spec(kind="open_loop")["workload"]) is None


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("workload.lengths=s-s", "workload.lengths: expected with an open loop only, not batches"),
        ("workload.output.kind=lognormal", "workload.output.sigma: missing"),
        ("workload.kind=open_loop", "workload.warmups: expected with batches only, not open_loop"),
    ],
)
def test_what_does_not_fit_batches_is_one_message(setting: str, said: str) -> None:
    experiment = Catalog().experiment("llumnix/migration", settings=[setting], world=World("live", "cpu"))
    with pytest.raises(SpecError, match=said):
        experiment.points([0])


def test_no_trace_can_be_made_of_batches() -> None:
    settings = ["workload.kind=batches", "grid.seq_len=256", "grid.method=migration", "grid.architecture=llama-7b"]
    with pytest.raises(UsageError, match="its requests go by the answers before them"):
        only_workload("figure10a", settings, 0)


def test_a_sequence_alone_goes_to_and_fro_between_two_instances_and_warmups_do_not_count() -> None:
    # as a live run asks for it, in virtual time: a paused copy of 8,192 tokens takes 1.7 s, an answer of 64 tokens 3 s
    settings = [
        *("workload.kind=batches", "workload.warmups=1", "workload.repeats=2", "policy.interval=0.5"),
        *("policy.migrate_threshold=1e9", "policy.migrate_in_threshold=1e9", "grid.architecture=llama-7b"),
        *("grid.method=blocking", "grid.seq_len=8192"),
    ]
    (point,) = Catalog().experiment("llumnix/migration", settings=settings).points([0])
    records: list[Record] = []
    execute(point, records.append)
    moves = [one for one in records if isinstance(one, MigrationRecord)]
    assert {one.outcome for one in moves} == {"migrated"}
    of_batches = [[one for one in moves if one.request_id == batch] for batch in range(3)]
    assert all(one.target == other.source for batch in of_batches for one, other in pairwise(batch))
    assert min(map(len, of_batches)) > 5
    labels = [one.label for one in records if isinstance(one, RequestRecord)]
    assert labels == [WARMUP, MEASURED, MEASURED]
