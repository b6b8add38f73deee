"""A worker process by itself: its start, its commands, its ends, and what it computes."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the live extra: make test-live")

from serving.core.request import Sampling  # noqa: E402
from serving.live.batch import StepBatch  # noqa: E402
from serving.live.checkpoint import Checkpoint  # noqa: E402
from tests.live.stages import (  # noqa: E402
    NUM_BLOCKS,
    CommandError,
    Stages,
    StageWorker,
    a_step,
    fill,
    filled_region,
    generate,
    make_lively,
)

PROMPT = [7, 3, 250, 9, 11, 300, 42, 5, 6]
BLOCKS = [9, 4, 17, 2, 30, 11, 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of four layers."""
    return make_lively(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def single(folder: Path) -> Iterator[Stages]:
    """One worker with all layers, started once: nothing that a test does changes what another sees."""
    with Stages(folder) as stages:
        yield stages


@pytest.fixture(scope="module")
def output(folder: Path) -> list[int]:
    """What transformers answers to PROMPT, greedily."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder)
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        return model.generate(ids, max_new_tokens=16, min_new_tokens=16, do_sample=False)[0, len(PROMPT) :].tolist()


def test_greedy_output_is_that_of_transformers(single: Stages, output: list[int]) -> None:
    assert len(set(output)) > 4  # a model that says one thing forever would show little
    assert generate(single, PROMPT, 16, BLOCKS) == output
    assert generate(single, PROMPT, 16, BLOCKS, chunk=4) == output


def test_sequences_in_one_batch_do_not_see_each_other(single: Stages, output: list[int]) -> None:
    other = generate(single, PROMPT[::-1], 2, [20, 21, 22])
    sample = single.step(
        StepBatch.of(
            ids=[PROMPT, PROMPT[::-1], PROMPT[:3]],
            num_computed=[0, 0, 0],
            block_tables=[[1, 3, 5], [20, 21, 22], [6]],
            wants=[True, True, False],
            sampling=[None, None, None],
        )
    )
    assert sample.ids.tolist() == [output[0], other[0]]
    sample = single.step(
        StepBatch.of(
            ids=[[output[0]], [other[0]], PROMPT[3:]],
            num_computed=[9, 9, 3],
            block_tables=[[1, 3, 5], [20, 21, 22], [6, 7, 8]],
            wants=[True, True, True],
            sampling=[None, None, None],
        )
    )
    assert sample.ids.tolist() == [output[1], other[1], output[0]]


def test_a_drawn_token_is_the_same_alone_and_in_a_batch(single: Stages) -> None:
    hot = [Sampling(temperature=1.5, seed=seed, top_p=0.95) for seed in range(8)]
    alone = [single.step(a_step(PROMPT, 0, [1, 3, 5], sampling=choice)).ids.item() for choice in hot]
    together = single.step(
        StepBatch.of(
            ids=[PROMPT] * 8,
            num_computed=[0] * 8,
            block_tables=[[3 * i, 3 * i + 1, 3 * i + 2] for i in range(8)],
            wants=[True] * 8,
            sampling=hot,
        )
    )
    assert together.ids.tolist() == alone
    assert len(set(alone)) > 3
    single.step(a_step(PROMPT[:5], 0, [1, 3], wants=False))
    assert single.step(a_step(PROMPT[5:], 5, [1, 3, 5], sampling=hot[3])).ids.item() == alone[3]


def test_logprobs_come_with_the_tokens_that_want_them(single: Stages) -> None:
    plain = single.step(a_step(PROMPT, 0, BLOCKS))
    assert plain.logprobs is None
    asked = single.step(a_step(PROMPT, 0, BLOCKS, sampling=Sampling(logprobs=3)))
    assert asked.ids.tolist() == plain.ids.tolist()
    assert asked.logprobs is not None
    assert asked.logprobs.top_ids.shape == (1, 3)
    assert asked.logprobs.top_ids[0, 0] == asked.ids[0]
    assert asked.logprobs.top[0, 0] == asked.logprobs.chosen[0] < 0


def test_the_other_loader_and_moved_kv_continue_alike(folder: Path, single: Stages, output: list[int]) -> None:
    with Stages(folder, loader="engine") as second:
        worker = second.workers[0]
        worker.call("profile", num_tokens=600, **second.model)  # more than the model is long
        half = generate(single, PROMPT, 5, BLOCKS)
        _, bytes_ = single.workers[0].call("kv_read", num_stages=1, blocks=BLOCKS[:4])
        moved = [21, 20, 3, 1, 8, 9, 10]
        worker.call("kv_write", bytes_, num_stages=1, blocks=moved[:4])
        while len(half) < 16:
            half += second.step(a_step(half[-1:], len(PROMPT) + len(half) - 1, moved)).ids.tolist()
        assert half == output
        with pytest.raises(CommandError, match="4 blocks of these layers are"):
            worker.call("kv_write", bytes_[:-4], num_stages=1, blocks=moved[:4])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("loader", "num_stages"), [("direct", 1), ("engine", 1), ("direct", 2)])
def test_a_gpu_gives_the_same_tokens(folder: Path, output: list[int], loader: str, num_stages: int) -> None:
    with Stages(folder, num_stages, loader, device="cuda:0") as stages:
        assert generate(stages, PROMPT, 16, BLOCKS) == output
        assert generate(stages, PROMPT, 16, BLOCKS, chunk=4) == output


def test_tensors_load_while_the_libraries_are_imported(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    part = checkpoint.part(range(4), "tiny")
    worker = StageWorker.spawn().greet()
    try:
        with filled_region(checkpoint, part, stop=3) as region:
            libraries = worker.send("libraries")
            worker.call("context", device="cpu")
            worker.call("part", part=part.to_json(), region=region.name)
            worker.call("load", first_layer=0, tensors=[0, 3], loader="direct")
            rest = worker.send("load", first_layer=0, tensors=[3, len(part.tensors)], loader="direct")
            fill(region, checkpoint, part)
            worker.wait(rest)
            assert not worker.answered(libraries)
        assert worker.live.running
    finally:
        worker.live.stop()


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ({"op": "dance"}, "no command 'dance'"),
        ({"op": "load", "first_layer": 0, "tensors": [0, 1], "loader": "direct"}, "the command 'part' comes first"),
        ({"op": "context"}, "context: the command lacks 'device'"),
        ({"op": "context", "device": "tpu"}, "no device 'tpu'"),
        ({"op": "context", "device": "cuda:x"}, "no device 'cuda:x'"),
        ({"op": "part", "part": {}, "region": "x"}, "after its context"),
        ({"op": "step", "num_stages": 1}, "the command 'engine' comes first"),
        ({"op": "kv_read", "num_stages": 1, "blocks": [0]}, "the command 'engine' comes first"),
    ],
)
def test_a_command_that_cannot_be_is_answered_in_one_line(
    bare: StageWorker, command: dict[str, object], error: str
) -> None:
    with pytest.raises(CommandError, match=error) as caught:
        bare.call(**command)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def bare() -> Iterator[StageWorker]:
    """A worker that was told nothing yet."""
    worker = StageWorker.spawn().greet()
    yield worker
    worker.live.stop()


@pytest.mark.parametrize(
    ("batch", "error"),
    [
        (a_step(PROMPT, 0, [1, 2]), "a sequence of 9 tokens, with KV blocks for 8"),
        (a_step(PROMPT, 0, [1, 2, NUM_BLOCKS]), f"KV block {NUM_BLOCKS} is not one of {NUM_BLOCKS}"),
        (a_step([320], 0, [1]), "token ids must be from 0 to 319"),
        (a_step([1], 256, list(range(32)) * 3), "of a model for 256"),
    ],
)
def test_a_step_that_cannot_be_is_refused_and_the_next_one_runs(single: Stages, batch: StepBatch, error: str) -> None:
    with pytest.raises(CommandError, match=error):
        single.step(batch)
    assert len(single.step(a_step(PROMPT, 0, BLOCKS)).ids) == 1


def test_a_part_that_is_larger_than_its_region_is_refused(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    half, whole = checkpoint.part(range(2), "tiny"), checkpoint.part(range(4), "tiny")
    worker = StageWorker.spawn().greet()
    try:
        worker.call("context", device="cpu")
        with filled_region(checkpoint, half) as region, pytest.raises(CommandError, match=f"region {region.name} has"):
            worker.call("part", part=whole.to_json(), region=region.name)
        with pytest.raises(CommandError, match="no region aebench-gone-1"):
            worker.call("part", part=whole.to_json(), region="aebench-gone-1")
    finally:
        worker.live.stop()


@pytest.mark.parametrize("how", ["exit", "hang up", "hang up when idle", "signals, then hang up"])
def test_a_worker_ends_when_it_is_told_and_when_control_is_gone(how: str) -> None:
    worker = StageWorker.spawn().greet()
    if how != "hang up when idle":
        worker.send("libraries")  # the main thread is in an import when the end comes
    if how == "exit":
        worker.call("exit")
    else:
        if how.startswith("signals"):
            for number in (signal.SIGINT, signal.SIGTERM):
                worker.live.process.send_signal(number)
            assert worker.call("context", device="cpu")[0]["ok"]
        worker.live.socket.close()
    assert worker.live.process.wait(10) == 0
    worker.live.stop()
