"""Greedy output is one and the same: alone, batched, chunked, preempted, pipelined, after a loss, and transformers'."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the live extra: make test-live")
transformers = pytest.importorskip("transformers", reason="needs the live extra: make test-live")

from serving.live.checkpoint import Checkpoint  # noqa: E402
from serving.live.engine import Engine  # noqa: E402
from serving.live.fleet import WorkerOptions  # noqa: E402
from serving.live.gguf_import import INSTALL, MODULE, import_gguf, packaged_gguf  # noqa: E402
from serving.live.setup import LiveSetup  # noqa: E402
from serving.live.tokenizer import Tokenizer  # noqa: E402
from serving.units import GB  # noqa: E402
from tests.live.checkpoints import make_tiny  # noqa: E402
from tests.live.served import fixed, left_over, live_setup, small_testbed  # noqa: E402
from tests.live.test_engine import WAIT, ask, serving, until  # noqa: E402

NUM_PROMPTS = 20
TEXTS = [
    "The capital of France is", "Once upon a time, there was a", "def fibonacci(n):", "Water boils at",
    "The three primary colours are", "In 1969, humans first", "My favourite recipe for bread begins with",
    "Photosynthesis is the process by which", "To be, or not to be,", "1, 2, 3, 4, 5,", "The quick brown fox",
    "Dear Sir or Madam,\n\nI am writing to", "Q: What is the largest planet?\nA:", "import numpy as np\n\n",
    "The theory of evolution was proposed by", "Every morning she walks her dog along the river and",
    "A prime number is a number that", "Roses are red,\nviolets are", "In machine learning, overfitting means that",
    "The meeting was moved from Monday to Thursday because the manager, who had been travelling for two weeks, said",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, what it is asked, and what transformers answers."""

    folder: Path
    prompts: list[list[int]]
    length: int
    """Output tokens of each answer."""
    expected: list[list[int]]

    @property
    def num_blocks(self) -> int:
        """KV blocks of the longest of its sequences."""
        return -(-(max(map(len, self.prompts)) + self.length) // 16)

    def setup(self, num_stages: int = 1, max_blocks: int = 256, **changes: Any) -> LiveSetup:
        """One instance of the model under the name ``tiny``."""
        spec = Checkpoint.open(self.folder).spec("tiny")
        testbed = small_testbed(num_stages, gpu_memory=4 * GB, exclusive=True, fetch_rate=20 * GB, nic_rate=20 * GB)
        base = live_setup(fixed(1, num_stages, **changes), testbed, workers=WorkerOptions(max_blocks=max_blocks))
        deployment = replace(base.deployments[0], spec=spec, size=spec.weight_bytes)
        return replace(base, deployments=(deployment,), checkpoints={"tiny": self.folder})


def tiny_case(folder: Path) -> Case:
    """A random model of 4 layers: whatever is computed wrong shows at once."""
    draw = Random("0/greedy")
    prompts = [[draw.randrange(512) for _ in range(draw.randint(3, 60))] for _ in range(NUM_PROMPTS)]
    make_tiny(folder / "tiny", layers=4)
    return Case(folder=folder / "tiny", prompts=prompts, length=16, expected=generated(folder / "tiny", prompts, 16))


def smollm2_case(folder: Path) -> Case:
    """A real language model."""
    if find_spec(MODULE) is None:
        pytest.skip(f"needs the weights of SmolLM2-135M: {INSTALL}")
    import_gguf(packaged_gguf(), folder / "smollm2", "float32")
    tokenizer = Tokenizer.open(folder / "smollm2")
    prompts = [list(tokenizer.encode(text)) for text in TEXTS]
    return Case(
        folder=folder / "smollm2", prompts=prompts, length=24, expected=generated(folder / "smollm2", prompts, 24)
    )


def generated(folder: Path, prompts: list[list[int]], length: int) -> list[list[int]]:
    """transformers' greedy output in float32; the prompts in one batch, padded on the left."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        whole = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=length, pad_token_id=0)
    found: list[list[int]] = whole[:, longest:].tolist()
    assert len({tuple(answer) for answer in found}) > NUM_PROMPTS // 2, "the prompts make no difference"
    return found


@pytest.fixture(scope="module", params=[tiny_case, smollm2_case], ids=["tiny", "smollm2"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Each model in turn."""
    made: Case = request.param(tmp_path_factory.mktemp("models"))
    return made


@pytest.fixture(scope="module")
def engine(case: Case) -> Iterator[Engine]:
    """One instance of one stage with room for every sequence."""
    with serving(case.setup()) as started:
        yield started
    assert files_left() == []


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    """No test leaves a region or socket file; ``serving`` looks for processes."""
    yield
    assert [name for name in files_left() if not name.endswith(".kv")] == []  # where what runs on is called


def files_left() -> list[str]:
    """Regions and socket files."""
    return [name for name in left_over() if not name.startswith("process ")]


def answers(engine: Engine, case: Case, together: bool = True) -> list[list[int]]:
    """The answer to each prompt; all at once, or one after the other."""
    asked = []
    for prompt in case.prompts:
        asked.append(ask(engine, prompt, max_tokens=case.length)[1])
        assert together or asked[-1].last.finish_reason == "length"
    assert {heard.last.finish_reason for heard in asked} == {"length"}
    return [heard.ids for heard in asked]


def test_alone(case: Case, engine: Engine) -> None:
    assert answers(engine, case, together=False) == case.expected


def test_in_a_full_batch(case: Case, engine: Engine) -> None:
    assert answers(engine, case) == case.expected


def test_after_the_instance_was_lost(case: Case, engine: Engine) -> None:
    before = engine.stats().of("tiny").losses
    asked = [ask(engine, prompt, max_tokens=case.length)[1] for prompt in case.prompts]
    assert asked[0].started.wait(WAIT)
    run = engine._run
    assert run is not None
    link = run.fleet.links(run.control.cluster.instances[0])[0]
    os.kill(link.live.pid, signal.SIGKILL)
    assert {heard.last.finish_reason for heard in asked} == {"length"}
    assert [heard.ids for heard in asked] == case.expected
    assert engine.stats().of("tiny").losses == before + 1


def test_chunked(case: Case) -> None:
    with serving(case.setup(max_step_tokens=8)) as engine:
        assert answers(engine, case) == case.expected
        assert engine.stats().of("tiny").preemptions == 0


def test_preempted(case: Case) -> None:
    with serving(case.setup(max_blocks=case.num_blocks + 3)) as engine:
        assert answers(engine, case) == case.expected
        stats = until(engine, lambda stats: stats.kv_blocks_used == 0)
        assert stats.preemptions > 0


@pytest.mark.parametrize("num_stages", [2, 4])
def test_over_stages(case: Case, num_stages: int) -> None:
    with serving(case.setup(num_stages)) as engine:
        assert answers(engine, case) == case.expected
