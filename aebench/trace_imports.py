"""What ``aebench trace import`` does with recorded lengths: the traces of an experiment whose requests have them."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from aebench.errors import UsageError
from aebench.execute import deployments
from aebench.machine import INSTALL_LIVE, absent_packages
from aebench.open_loop_workload import Pair, open_loop_requests
from aebench.point import Point
from aebench.trace_commands import only_workload, rows_of, written
from serving.units import Tokens
from serving.workload.burstgpt import read_burstgpt
from serving.workload.recordings import RecordingError
from serving.workload.sharegpt import read_sharegpt

MAX_TOKENS: Tokens = 6_144
"""Of a prompt and of an output of BurstGPT; longer ones are cut (sheet section 7)."""
MAX_SUM: Tokens = 12_800
"""Below which prompt and output of ShareGPT stay together; other conversations are left out (sheet section 7)."""


def import_sharegpt(file: Path, tokenizer: Path, name: str, settings: Sequence[str], seed: int, out: Path) -> str:
    """Write the workload of an experiment's points with the first exchanges of a recording, in file order, counted by
    the ``tokenizer.json`` of a folder."""
    point = _open_loop(name, settings, seed)
    num_requests = point.spec["workload"]["num_requests"]
    try:
        pairs = list(itertools.islice(_counted(file, tokenizer), num_requests))
    except RecordingError as error:
        raise UsageError(str(error)) from error
    return _import(file, point, pairs, out)


def import_burstgpt(file: Path, name: str, settings: Sequence[str], seed: int, out: Path) -> str:
    """Write the workload of an experiment's points with conversations drawn from a recording, none twice."""
    point = _open_loop(name, settings, seed)
    try:
        recorded = read_burstgpt(file, MAX_TOKENS)
    except RecordingError as error:
        raise UsageError(str(error)) from error
    chosen = min(len(recorded), point.spec["workload"]["num_requests"])
    return _import(file, point, Random(f"{point.seed}/burstgpt").sample(recorded, chosen), out)


def _open_loop(name: str, settings: Sequence[str], seed: int) -> Point:
    """The one workload that the settings leave of an experiment, with arrivals that are drawn."""
    point = only_workload(name, settings, seed)
    workload = point.spec["workload"]
    if workload["kind"] != "open_loop" or workload["arrivals"]["kind"] == "trace":
        raise UsageError(f"{point.experiment}: expected an experiment with an open loop whose arrivals are drawn")
    return point


def _counted(file: Path, folder: Path) -> Iterator[Pair]:
    """Tokens of one exchange after another, without those that are too long."""
    if absent := absent_packages(["tokenizers"]):
        raise UsageError(f"counting tokens needs {', '.join(absent)}, not installed here. Run: {INSTALL_LIVE}")
    from serving.live.tokenizer import Tokenizer

    tokenizer = Tokenizer.open(folder)
    for question, answer in read_sharegpt(file):
        pair = len(tokenizer.encode(question)), len(tokenizer.encode(answer))
        if min(pair) > 0 and sum(pair) < MAX_SUM:
            yield pair


def _import(file: Path, point: Point, pairs: Sequence[Pair], out: Path) -> str:
    wanted = point.spec["workload"]["num_requests"]
    if len(pairs) < wanted:
        hint = f" Run with --set workload.num_requests={len(pairs)}" if pairs else ""
        raise UsageError(
            f"{file}: held {len(pairs):,} usable conversations, workload.num_requests is {wanted:,}.{hint}"
        )
    by_model = {deployment.model: deployment for deployment in deployments(point.spec)}
    return written(rows_of(open_loop_requests(point.spec, point.seed, by_model, pairs)), out)
