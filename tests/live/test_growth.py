"""A worker process that gets the rest of its model while it serves, takes others' KV, and goes on alone."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the live extra: make test-live")

from serving.live.batch import StepSample  # noqa: E402
from serving.live.kv import KvCache  # noqa: E402
from serving.live.token_bucket import BURST  # noqa: E402
from tests.live.stages import (  # noqa: E402
    CommandError,
    InOneProcess,
    Stages,
    a_step,
    filled_region,
    generate,
    make_lively,
)

PROMPTS = [[7, 3, 250, 9, 11, 300, 42, 5, 6], [1, 2, 3], [9, 8, 7, 6, 5, 4, 3, 2]]
BLOCKS = [[9, 4, 17, 2, 30, 11, 0], [1, 3, 5, 6, 7, 8, 10], [31, 29, 28, 27, 26, 25, 24]]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of four layers."""
    return make_lively(tmp_path_factory.mktemp("models") / "tiny", tie_word_embeddings=request.param)


DEVICES = ["cpu", pytest.param("cuda:0", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.fixture(params=DEVICES)
def stages(request: pytest.FixtureRequest, folder: Path) -> Iterator[Stages]:
    """Two of them."""
    with Stages(folder, 2, device=request.param) as started:
        yield started


def alone(stages: Stages, rank: int, ids: list[int], num_computed: int, blocks: list[int]) -> int:
    """A step of the whole model in one worker."""
    header, buffers = a_step(ids, num_computed, blocks).encode()
    answer = stages.workers[rank].call("step", *buffers, **{"num_stages": 1, **header})
    return int(StepSample.decode(*answer).ids.item())


def a_move(number: int, layers: list[int], blocks: list[int], patience: float = 10.0) -> dict[str, Any]:
    """What both commands of a move say."""
    return {"move": number, "layers": layers, "blocks": blocks, "patience": patience}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stage_grows_while_the_pipeline_serves_and_goes_on_with_its_kv(
    folder: Path, stages: Stages, rank: int
) -> None:
    expected = [generate(InOneProcess(folder), prompt, 12, BLOCKS[0]) for prompt in PROMPTS]
    worker, other = stages.workers[rank], stages.workers[1 - rank]
    first = generate(stages, PROMPTS[0], 4, BLOCKS[0])
    with pytest.raises(CommandError, match=r"no engine of 1 stages here, only of \[2\]"):
        alone(stages, rank, PROMPTS[1], 0, BLOCKS[1])
    rest = stages.checkpoint.part(range(2, 4) if rank == 0 else range(2), "tiny")
    with filled_region(stages.checkpoint, rest) as region:
        worker.call("part", part=rest.to_json(), region=region.name)
        for tensors in ([0, 3], [3, len(rest.tensors)]):
            worker.call("load", first_layer=rest.layers.start, tensors=tensors, loader="background")
            first += stages.step(a_step(first[-1:], len(PROMPTS[0]) + len(first) - 1, BLOCKS[0])).ids.tolist()
    worker.call("grow")

    second = [alone(stages, rank, PROMPTS[1], 0, BLOCKS[1])]
    third = generate(stages, PROMPTS[2], 2, BLOCKS[2])  # begun by the pipeline, beside the whole model
    for _ in range(3):
        first += stages.step(a_step(first[-1:], len(PROMPTS[0]) + len(first) - 1, BLOCKS[0])).ids.tolist()
        second.append(alone(stages, rank, second[-1:], len(PROMPTS[1]) + len(second) - 1, BLOCKS[1]))

    what = a_move(0, [rest.layers.start, rest.layers.stop], BLOCKS[0] + BLOCKS[2])
    asked_at = monotonic()
    taking = worker.send("kv_take", **what, num_stages=1, rate=0.2e6)
    assert other.call("kv_give", **what, num_stages=2, to=str(stages.inlet(rank)))[0]["outcome"] == "whole"
    taken, _ = worker.wait(taking)
    num_bytes = taken["bytes"]
    assert taken["outcome"] == "whole"
    assert num_bytes == 14 * 2 * (2 * 4 * 2 * 16 * 4)  # blocks x layers x bytes of one
    assert monotonic() - asked_at >= num_bytes / 0.2e6 - BURST
    worker.call("shed", num_stages=2)
    other.live.stop()
    for prompt, output, blocks in zip(PROMPTS, (first, second, third), BLOCKS, strict=True):
        while len(output) < 12:
            output.append(alone(stages, rank, output[-1:], len(prompt) + len(output) - 1, blocks))
    assert [first, second, third] == expected
    header, buffers = a_step([1], 0, [1]).encode()
    with pytest.raises(CommandError, match=r"no engine of 2 stages here, only of \[1\]"):
        worker.call("step", *buffers, **{"num_stages": 2, **header})


def test_kv_that_does_not_fit_is_refused_in_one_line(folder: Path, stages: Stages) -> None:
    worker, other = stages.workers
    rest = stages.checkpoint.part(range(2, 4), "tiny")
    with filled_region(stages.checkpoint, rest) as region:
        worker.call("part", part=rest.to_json(), region=region.name)
        worker.call("load", first_layer=2, tensors=[0, len(rest.tensors)], loader="background")
    worker.call("grow")
    to, nobody = str(stages.inlet(0)), str(stages.sockets / "nobody")
    assert other.call("kv_give", **a_move(0, [2, 4], [1]), num_stages=2, to=nobody)[0]["outcome"] == "gone"
    with pytest.raises(CommandError, match=r"no KV of layers 1..4 in a stage of layers 2..4"):
        other.call("kv_give", **a_move(1, [1, 4], [1]), num_stages=2, to=to)
    with pytest.raises(CommandError, match=r"KV blocks \[32\] are not among the 32"):
        worker.call("kv_take", **a_move(2, [2, 4], [32]), num_stages=1, rate=None)
    taking = worker.send("kv_take", **a_move(3, [2, 4], [1, 2]), num_stages=1, rate=None)
    other.send("kv_give", **a_move(3, [2, 4], [1]), num_stages=2, to=to)
    with pytest.raises(CommandError, match=r"KV: expected 4096 bytes, 2048 are given"):
        worker.wait(taking)
    assert alone(stages, 0, PROMPTS[0], 0, BLOCKS[0]) == generate(InOneProcess(folder), PROMPTS[0], 1, BLOCKS[0])[0]


def test_a_grown_model_shares_its_stages_weights_and_kv(folder: Path) -> None:
    whole = InOneProcess(folder).runner
    config = whole.config
    from serving.live.layout import layout
    from serving.live.runner import StageRunner

    tensors = dict(all_tensors(folder))
    own = StageRunner(config, range(1, 3), {n: tensors[n] for n, _ in layout(config, range(1, 3))}, "cpu", "float32")
    own.allocate(8, 4)
    rest = {name: t for layers in (range(1), range(3, 4)) for name, t in rest_of(folder, layers)}
    grown = own.grown(rest)
    assert [block is mine for block, mine in zip(grown.model.blocks[1:3], own.model.blocks, strict=True)] == [True] * 2
    assert [tensor.data_ptr() for tensor in grown.kv.keys[1:3]] == [tensor.data_ptr() for tensor in own.kv.keys]
    assert [tensor.data_ptr() for tensor in grown.kv.values[1:3]] == [tensor.data_ptr() for tensor in own.kv.values]
    assert isinstance(grown.kv, KvCache)
    assert {tensor.shape for tensor in grown.kv.keys} == {own.kv.keys[0].shape}
    assert len({tensor.data_ptr() for tensor in (*grown.kv.keys, *grown.kv.values)}) == 8


def all_tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Of the whole model."""
    yield from rest_of(folder, range(4))


def rest_of(folder: Path, layers: range) -> Iterator[tuple[str, Any]]:
    """Of some layers' part."""
    from serving.live.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(folder)
    part = checkpoint.part(layers, "tiny")
    for entry, values in zip(part.tensors, checkpoint.buffers(part), strict=True):
        yield entry.name, torch.frombuffer(bytearray(values), dtype=torch.float32).view(entry.shape)
