"""LiveExecutor: which tokens a step computes, and what becomes of those that it yields."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.core.instance import Instance
from serving.core.plan import StepPlan, StepResult
from serving.core.request import Sampling, State
from serving.core.request import Sequence as Life
from serving.live.batch import StepBatch, StepSample, TokenLogprobs
from serving.live.executor import LiveExecutor, made_up_prompt
from serving.live.fleet import Fleet, WorkerOptions
from serving.live.output import Output, TokenLogprob
from serving.live.recording import Recording, StepEnded
from serving.live.stream import OutputStream, Stops
from serving.live.worker_link import Reply
from tests.build import Bench, make_instance, make_sequence
from tests.live.served import request


@dataclass
class FakeLink:
    """A worker that notes its steps and answers when told to."""

    batches: list[StepBatch] = field(default_factory=list)
    replies: list[Callable[[Reply], None] | None] = field(default_factory=list)

    def call(self, header: dict[str, Any], on_reply: Any, buffers: Sequence[memoryview] = ()) -> None:
        self.batches.append(StepBatch.decode(header, b"".join(buffers)))
        self.replies.append(on_reply)

    def answer(self, ids: list[int], logprobs: TokenLogprobs | None = None) -> None:
        header, buffers = StepSample(ids=np.array(ids, np.int64), logprobs=logprobs).encode()
        on_reply = self.replies[-1]
        assert on_reply is not None
        on_reply(Reply(header=header, payload=b"".join(buffers)))


class FakeFleet(Fleet):
    """Two stages."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.clock, WorkerOptions(), Path("unused"), Recording())
        self.first, self.last = FakeLink(), FakeLink()
        self.faults: list[str] = []

    def links(self, instance: Instance) -> list[Any]:
        del instance
        return [self.first, self.last]

    def fault(self, worker: Any, reason: str) -> None:
        del worker
        self.faults.append(reason)


@dataclass
class Scene:
    """One executor over two fake workers, and the results that it handed on."""

    bench: Bench
    fleet: FakeFleet
    executor: LiveExecutor
    results: list[StepResult] = field(default_factory=list)

    def step(self, *work: tuple[Life, int]) -> StepBatch:
        """Submit a step of so many tokens for each sequence; what the workers are sent."""
        plan = StepPlan()
        for sequence, num_tokens in work:
            plan.add(sequence, num_tokens)
        self.executor.submit(self.bench.instance, plan, self.results.append)
        return self.fleet.last.batches[-1]


@pytest.fixture
def scene() -> Scene:
    bench = make_instance()
    fleet = FakeFleet(bench)
    return Scene(bench, fleet, LiveExecutor(fleet, seed=3))


def prompted(prompt: range, num_output_tokens: int = 4, **fields: Any) -> Life:
    asked = request(0, len(prompt), num_output_tokens, prompt=tuple(prompt), **fields)
    sequence = Life(asked, 0.0)
    sequence.block_table += [7, 3]
    return sequence


def fold(sequence: Life, num_computed: int, num_output: int) -> None:
    """What Instance.finish_step does with a result."""
    sequence.num_computed += num_computed
    sequence.num_tokens += num_output


def test_a_step_computes_the_tokens_that_follow_those_computed(scene: Scene) -> None:
    sequence = prompted(range(100, 110))
    chunk = scene.step((sequence, 6))
    assert chunk.ids.tolist() == [100, 101, 102, 103, 104, 105]
    assert chunk.wants.tolist() == [0]
    assert chunk.tables() == [[7, 3]]
    scene.fleet.last.answer([])
    fold(sequence, 6, scene.results[-1].num_output[0])
    rest = scene.step((sequence, 4))
    assert rest.ids.tolist() == [106, 107, 108, 109]
    assert (rest.wants.tolist(), rest.num_computed.tolist()) == ([1], [6])
    scene.fleet.last.answer([55])
    fold(sequence, 4, scene.results[-1].num_output[0])
    assert scene.step((sequence, 1)).ids.tolist() == [55]
    scene.fleet.last.answer([56])
    assert sequence.output_ids == [55, 56]
    assert [result.num_output for result in scene.results] == [[0], [1], [1]]


def test_after_a_preemption_prompt_and_output_are_computed_again(scene: Scene) -> None:
    sequence = prompted(range(100, 104))
    sequence.output_ids += [55, 56]
    sequence.num_tokens += 2
    assert scene.step((sequence, 6)).ids.tolist() == [100, 101, 102, 103, 55, 56]
    assert scene.step((sequence, 5)).ids.tolist() == [100, 101, 102, 103, 55]
    sequence.num_computed = 3
    assert scene.step((sequence, 3)).ids.tolist() == [103, 55, 56]


def test_every_stage_gets_the_step_and_the_last_one_answers(scene: Scene) -> None:
    scene.step((prompted(range(3)), 3))
    assert scene.fleet.first.batches[0].ids.tolist() == scene.fleet.last.batches[0].ids.tolist()
    assert scene.fleet.first.replies == [None]


def test_tokens_go_to_the_sequences_that_wanted_one(scene: Scene) -> None:
    whole, chunk, other = prompted(range(3)), prompted(range(9)), prompted(range(4))
    scene.step((whole, 3), (chunk, 5), (other, 4))
    scene.fleet.last.answer([11, 12])
    assert (whole.output_ids, chunk.output_ids, other.output_ids) == ([11], [], [12])
    assert scene.results[0].num_output == [1, 0, 1]
    recording = scene.fleet.recording
    assert recording is not None
    (event,) = recording.events
    assert isinstance(event, StepEnded)
    assert (event.num_output, event.final_tokens) == ((1, 0, 1), (7, 13, 8))


def test_a_stop_lowers_where_the_sequence_ends(scene: Scene) -> None:
    heard: list[Output] = []
    sequence = prompted(range(3), num_output_tokens=100)
    scene.executor.listen(0, OutputStream(heard.append, Stops(token_ids=frozenset({9})), None))
    for token in (5, 9):
        scene.step((sequence, sequence.num_tokens - sequence.num_computed))
        scene.fleet.last.answer([token])
        assert sequence.final_tokens == (103 if token == 5 else 5)
        fold(sequence, sequence.num_tokens - sequence.num_computed, 1)
    assert [output.finish_reason for output in heard] == [None, "stop"]
    assert sequence.num_tokens == sequence.final_tokens


def test_the_last_token_allowed_is_told_as_such(scene: Scene) -> None:
    heard: list[Output] = []
    scene.executor.listen(0, OutputStream(heard.append, Stops(), None))
    scene.step((prompted(range(3), num_output_tokens=1), 3))
    scene.fleet.last.answer([5])
    assert heard == [Output(token_ids=(5,), finish_reason="length")]


def test_an_aborted_sequence_hears_no_more(scene: Scene) -> None:
    heard: list[Output] = []
    sequence = prompted(range(3))
    scene.executor.listen(0, OutputStream(heard.append, Stops(), None))
    scene.step((sequence, 3))
    sequence.state = State.ABORTED
    scene.fleet.last.answer([5])
    assert heard == []
    assert scene.results[0].num_output == [1]  # the instance folds what was computed


def test_log_probabilities_are_cut_to_what_each_asked_for(scene: Scene) -> None:
    heard: list[Output] = []
    scene.executor.listen(0, OutputStream(heard.append, Stops(), None))
    scene.step((prompted(range(3), sampling=Sampling(logprobs=1)), 3))
    found = TokenLogprobs(
        chosen=np.array([-0.5], np.float32),
        top_ids=np.array([[5, 6]], np.int64),
        top=np.array([[-0.5, -2.0]], np.float32),
    )
    scene.fleet.last.answer([5], found)
    assert heard[0].logprobs == (TokenLogprob(token_id=5, logprob=-0.5, top=((5, -0.5),)),)


@pytest.mark.parametrize("ids", [[], [1, 2]])
def test_a_result_of_another_size_is_a_fault_of_the_worker(scene: Scene, ids: list[int]) -> None:
    scene.step((prompted(range(3)), 3))
    scene.fleet.last.answer(ids)
    assert scene.results == []
    assert scene.fleet.faults == [f"a step of 1 sequences that end came back with {len(ids)} tokens"]


def test_a_prompt_is_made_up_where_only_its_length_is_known(scene: Scene) -> None:
    sequence = make_sequence(num_prompt_tokens=40, request_id=5)
    ids = scene.step((sequence, 40)).ids.tolist()
    assert tuple(ids) == made_up_prompt(3, 5, 40, scene.bench.instance.spec.vocab)
    assert len(set(ids)) > 20 and min(ids) >= 0 and max(ids) < scene.bench.instance.spec.vocab
    assert made_up_prompt(3, 5, 40, 512) == made_up_prompt(3, 5, 40, 512)
    assert len({made_up_prompt(*key, 40, 512) for key in ((3, 5), (3, 6), (4, 5))}) == 3
    assert replace(sequence.request, request_id=6).prompt is None
