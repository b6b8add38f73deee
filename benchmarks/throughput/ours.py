"""Contender: our engine, control process and worker process."""

import argparse
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from answering import Generate, answer

from serving.core.cluster import Deployment
from serving.cost.startup import StartupCosts
from serving.live.checkpoint import Checkpoint
from serving.live.engine import Engine
from serving.live.fleet import WorkerOptions
from serving.live.output import Output
from serving.live.setup import LiveSetup
from serving.policies import configured
from serving.testbed import ServerKind, Testbed
from serving.units import GB

BLOCKS = 4096
STEP_TOKENS = 4096
MODEL = "m"
NO_COSTS = StartupCosts(
    container=0.0, libraries=0.0, context=0.0, engine=0.0, first_step=0.0, engine_load_rate=20 * GB, jitter=0.0
)


def load(stack: ExitStack, folder: Path, threads: int, tokens: int) -> tuple[str, Generate]:
    """One instance on one worker process."""
    engine = Engine(_setup(folder, threads))
    stack.callback(engine.close)
    engine.start()

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        news: SimpleQueue[tuple[int, Output]] = SimpleQueue()
        outputs: list[list[int]] = [[] for _ in prompts]
        for index, prompt in enumerate(prompts):
            hear = partial(lambda index, output: news.put((index, output)), index)
            engine.submit(prompt, model=MODEL, max_tokens=tokens, ignore_eos=True, on_output=hear)
        left = len(prompts)
        while left:
            index, output = news.get()
            outputs[index] += output.token_ids
            if output.finish_reason is not None:
                left -= 1
                if output.error is not None:
                    raise SystemExit(f"ours: {output.error}")
        return outputs

    return "aebench", generate


def _setup(folder: Path, threads: int) -> LiveSetup:
    spec = Checkpoint.open(folder).spec(MODEL)
    kind = ServerKind(
        name="local", gpu="cpu", num_gpus=1, gpu_memory=4 * GB, dram=100 * GB,
        nic_rate=20 * GB, fetch_rate=20 * GB, pcie_rate=20 * GB, startup=NO_COSTS,
    )  # fmt: skip
    system = configured("fixed_instances", {"max_sequences": 64, "max_step_tokens": STEP_TOKENS})
    deployment = Deployment(model=MODEL, spec=spec, size=spec.weight_bytes, ttft_slo=60.0, tpot_slo=1.0)
    return LiveSetup(
        testbed=Testbed(servers=((kind, 1),), num_stores=1, store_nic_rate=20 * GB, exclusive=system.exclusive_gpus),
        system=system,
        deployments=(deployment,),
        checkpoints={MODEL: folder},
        workers=WorkerOptions(device="cpu", threads=threads, max_blocks=BLOCKS),
    )


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True, help="output tokens of each prompt")
    options = parser.parse_args()
    with ExitStack() as stack:
        answer(partial(load, stack, options.folder, options.threads, options.tokens))


if __name__ == "__main__":
    main()
