"""serve(): the wiring of a run, and what it leaves behind however it ends."""

import pytest

from serving.control import NoProgress
from serving.core.clock import FlowBody
from serving.policies import SYSTEMS
from serving.records import Record, RequestRecord
from serving.serve import IsolationMismatch, Setup, serve
from serving.units import GB
from serving.workload.clients import Client, Send
from tests.build import make_deployment, make_requests, make_testbed, run, sent


def serve_into(records: list[Record], client: Client, size: float = 13 * GB) -> None:
    """Serve llama2-7b, which the provider takes for so large, by serverless vLLM."""
    setup = Setup(
        testbed=make_testbed(),
        system=SYSTEMS["serverless_vllm"],
        deployments=(make_deployment(), make_deployment("opt-2.7b", size=size)),
        seed=0,
    )
    serve(setup, client, records.append)


def answers(records: list[Record]) -> list[tuple[int, bool]]:
    """Id of each recorded request, and whether it finished."""
    return [(r.request_id, r.finished_at is not None) for r in records if isinstance(r, RequestRecord)]


@pytest.mark.parametrize(("system", "needs"), [("serverlessllm", "exclusive"), ("hydraserve", "shared")])
def test_a_testbed_with_the_other_isolation_is_refused(system: str, needs: str) -> None:
    lent = {"exclusive": "shared", "shared": "exclusive"}[needs]
    with pytest.raises(IsolationMismatch, match=f"{system} needs {needs} GPUs, the testbed's are {lent}"):
        run(system, sent([]), testbed=make_testbed(exclusive=lent == "exclusive"))


def test_a_run_that_makes_no_progress_still_records_its_unanswered_requests() -> None:
    records: list[Record] = []
    served, hopeless = make_requests(1)[0], make_requests(2, model="opt-2.7b")[1]
    with pytest.raises(NoProgress):
        serve_into(records, sent([(1.0, served), (2.0, hopeless)]), size=400 * GB)
    assert answers(records) == [(0, True), (1, False)]


def test_a_client_that_raises_ends_the_run_with_its_requests_recorded() -> None:
    def failing(send: Send) -> FlowBody:
        send(make_requests(1)[0])
        yield 1.0
        raise OSError("the trace cannot be read")

    records: list[Record] = []
    with pytest.raises(OSError, match="the trace cannot be read"):
        serve_into(records, failing)
    assert answers(records) == [(0, False)]


def test_a_run_ends_within_an_interval_of_its_last_answer() -> None:
    outcome = run("serverless_vllm", sent([(1.0, make_requests(1)[0])]))
    (record,) = outcome.requests
    assert record.finished_at is not None
    assert record.finished_at <= outcome.control.cluster.now <= record.finished_at + 1.0


def test_a_run_lasts_until_its_client_has_ended() -> None:
    outcome = run("serverless_vllm", sent([], linger=100.0))
    assert outcome.records == []
    assert 100.0 <= outcome.control.cluster.now <= 101.0
