"""What tests of the live backend start with: a tiny model, a small testbed, setups of any system, requests."""

import atexit
import os
from dataclasses import replace
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir, mkdtemp
from typing import Any

from serving.core.cluster import Deployment
from serving.core.ports import System
from serving.core.request import Request
from serving.cost.startup import StartupCosts
from serving.live.checkpoint import Checkpoint
from serving.live.setup import LiveSetup
from serving.policies import configured
from serving.testbed import ServerKind, Testbed
from serving.units import GB, MB, MiB
from tests.live.checkpoints import make_tiny

NO_COSTS = StartupCosts(
    container=0.0, libraries=0.0, context=0.0, engine=0.0, first_step=0.0, engine_load_rate=1 * GB, jitter=0.0
)
"""Live runs take what they take."""


@cache
def tiny_model(layers: int = 4) -> Path:
    """A random Llama, made once a session."""
    folder = mkdtemp(prefix="aebench-test-")
    atexit.register(rmtree, folder, ignore_errors=True)
    return make_tiny(Path(folder) / f"tiny-{layers}", layers=layers)


def small_testbed(
    num_servers: int = 1, *, gpu_memory: float = 8 * MiB, exclusive: bool = False, **kind: Any
) -> Testbed:
    """Servers of one small GPU each, with rates that are no bottleneck."""
    server = ServerKind(
        name="small",
        gpu="cpu",
        num_gpus=1,
        gpu_memory=gpu_memory,
        dram=100 * GB,
        nic_rate=200 * MB,
        fetch_rate=200 * MB,
        pcie_rate=1 * GB,
        startup=NO_COSTS,
    )
    return Testbed(
        servers=((replace(server, **kind), num_servers),),
        num_stores=1,
        store_nic_rate=1 * GB,
        exclusive=exclusive,
    )


def live_setup(system: System, testbed: Testbed, *models: str, layers: int = 4, **fields: Any) -> LiveSetup:
    """The tiny model under one or more names."""
    folder = tiny_model(layers)
    checkpoint = Checkpoint.open(folder)
    names = models or ("tiny",)
    size = checkpoint.spec("tiny").weight_bytes
    return LiveSetup(
        testbed=testbed,
        system=system,
        deployments=tuple(
            Deployment(model=name, spec=checkpoint.spec(name), size=size, ttft_slo=30.0, tpot_slo=1.0) for name in names
        ),
        checkpoints=dict.fromkeys(names, folder),
        **fields,
    )


def fixed(num_instances: int = 1, num_stages: int = 1, **changes: Any) -> System:
    """Fixed instances; a missing one is noticed at once."""
    return configured(
        "fixed_instances", {"num_instances": num_instances, "num_stages": num_stages, "interval": 0.05, **changes}
    )


def request(request_id: int, num_prompt_tokens: int = 12, num_output_tokens: int = 6, **fields: Any) -> Request:
    """A request for the tiny model."""
    return Request(
        **{
            "request_id": request_id,
            "model": "tiny",
            "num_prompt_tokens": num_prompt_tokens,
            "num_output_tokens": num_output_tokens,
            **fields,
        }
    )


def left_over(pid: int | None = None) -> list[str]:
    """Regions, folders of sockets and child processes of this process that are still there."""
    pid = os.getpid() if pid is None else pid
    files = [path.name for folder in ("/dev/shm", gettempdir()) for path in Path(folder).glob(f"aebench-{pid}.*")]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    tracker = getattr(resource_tracker._resource_tracker, "_pid", None)  # of tests that start processes in other ways
    return files + [f"process {child}" for child in children if child != str(tracker)]
