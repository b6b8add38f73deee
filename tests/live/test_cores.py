"""Which processes have cores of their own, and that their threads are bound to them."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.live.clock import RealClock
from serving.live.cpu.build import build
from serving.live.fleet import Fleet, WorkerOptions


def fleet(threads: int, gpus: list[Any], processes: list[tuple[Any, object]], device: str = "cpu") -> Fleet:
    """Instances of one worker each, on (gpu, process)."""
    made = Fleet(RealClock(), WorkerOptions(device=device, threads=threads), Path("unused"))
    instances = [SimpleNamespace(workers=(SimpleNamespace(gpu=gpu, process=process),)) for gpu, process in processes]
    servers = [SimpleNamespace(gpus=gpus[:1]), SimpleNamespace(gpus=gpus[1:])]
    cluster: Any = SimpleNamespace(servers=servers, instances=instances)
    made.cluster = cluster
    return made


@pytest.mark.parametrize(
    ("threads", "cores", "expected"),
    [
        (1, {0, 1, 2}, [[0], [1], [2]]),
        (2, {9, 4, 5, 6, 7, 8}, [[4, 5], [6, 7], [8, 9]]),
        (1, {0, 1}, [[], [], []]),  # too few
        (1, {0, 1, 2, 3}, [[], [], []]),  # one more: threads may run on any
    ],
)
def test_cores_are_dealt_out_where_all_are_used(
    monkeypatch: pytest.MonkeyPatch, threads: int, cores: set[int], expected: list[list[int]]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: cores, raising=False)
    gpus = [SimpleNamespace(name=str(i)) for i in range(3)]
    made = fleet(threads, gpus, [(gpus[0], object())])
    assert [made.cores_of(gpu) for gpu in gpus] == expected


def test_no_cores_where_processes_share_a_gpu_or_there_is_a_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1}, raising=False)
    gpus = [SimpleNamespace(name=str(i)) for i in range(2)]
    one, other = object(), object()
    assert fleet(1, gpus, [(gpus[0], one), (gpus[0], other)]).cores_of(gpus[0]) == []
    assert fleet(1, gpus, [(gpus[0], one), (gpus[0], one)]).cores_of(gpus[0]) == [0]  # what a pipeline becomes
    assert fleet(1, gpus, [], device="cuda").cores_of(gpus[0]) == []


BINDS = """
import os, sys, torch
from serving.live.cpu.kernels import bind_threads
bind_threads([int(sys.argv[1])])
print(os.sched_getaffinity(0))
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux binds threads")
def test_a_bound_thread_runs_on_its_core() -> None:
    pytest.importorskip("torch", reason="needs the live extra: make test-live")
    if reason := build():
        pytest.skip(reason)
    core = max(os.sched_getaffinity(0))
    command = [sys.executable, "-c", BINDS, str(core)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout == f"{{{core}}}\n"
