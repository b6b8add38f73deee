"""Instances of several stages: the same tokens as one, and no stage left waiting for another that is gone."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the live extra: make test-live")

from tests.live.stages import CommandError, InOneProcess, Stages, a_step, generate, make_lively

PROMPTS = [[7, 3, 250, 9, 11, 300, 42, 5, 6], [1, 2, 3], list(range(20, 50))]
BLOCKS = [9, 4, 17, 2, 30, 11, 0, 5, 8, 22, 23]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of four layers."""
    return make_lively(tmp_path_factory.mktemp("models") / "tiny")


def test_two_and_four_stages_answer_like_one_and_a_dead_stage_is_reported(folder: Path) -> None:
    alone = [generate(InOneProcess(folder), prompt, 12, BLOCKS) for prompt in PROMPTS]
    with Stages(folder, 4) as stages:
        assert [generate(stages, prompt, 12, BLOCKS, chunk=8) for prompt in PROMPTS] == alone
    with Stages(folder, 2) as stages:
        assert [generate(stages, prompt, 12, BLOCKS) for prompt in PROMPTS] == alone
        check_that_a_step_which_fails_in_the_first_stage_fails_in_the_last(stages)
        assert generate(stages, PROMPTS[0], 12, BLOCKS) == alone[0]
        check_that_a_stage_killed_in_a_step_is_missed(stages)


def encoded(prompt: list[int]) -> tuple[dict[str, Any], list[memoryview]]:
    """A step for two stages, as it is sent."""
    header, buffers = a_step(prompt, 0, BLOCKS).encode()
    return {"num_stages": 2, **header}, buffers


def check_that_a_step_which_fails_in_the_first_stage_fails_in_the_last(stages: Stages) -> None:
    header, buffers = encoded(PROMPTS[0])
    first, last = stages.workers
    broken = first.send("step", *buffers[:-1], **header)
    waiting = last.send("step", *buffers, **header)
    with pytest.raises(CommandError, match="its header counts more"):
        first.wait(broken)
    with pytest.raises(CommandError, match="failed in the stage before: step frame"):
        last.wait(waiting)
    # and the other way round: what the first stage sent for the failed step is not taken for the next
    header, buffers = encoded(PROMPTS[1])
    first.send("step", *buffers, **header)
    with pytest.raises(CommandError, match="its header counts more"):
        last.wait(last.send("step", *buffers[:-1], **header))


def check_that_a_stage_killed_in_a_step_is_missed(stages: Stages) -> None:
    first, last = stages.workers
    header, buffers = encoded(PROMPTS[0])
    first.live.process.send_signal(signal.SIGSTOP)  # so that the last stage is in the step and waits
    waiting = last.send("step", *buffers, **header)
    time.sleep(0.2)
    assert last.live.running
    first.live.process.kill()
    with pytest.raises(CommandError, match="the stage before this one is gone"):
        last.wait(waiting)
    with pytest.raises(CommandError, match="the stage before this one is gone"):
        last.wait(last.send("step", *buffers, **header))
