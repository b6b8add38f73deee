"""A point on real processes: what it needs before anything runs, and its run."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from aebench.batch_workload import longest
from aebench.deployed_models import tables_by_model
from aebench.errors import UsageError
from aebench.execute import deployments, lends_whole_gpus, testbed
from aebench.machine import check_live, num_devices
from aebench.point import Point
from aebench.workloads import client
from serving.core.model import ModelSpec
from serving.live.checkpoint import Checkpoint, find, models_root
from serving.live.errors import LiveError
from serving.policies import configured
from serving.records import Record
from serving.units import Seconds

Spec = Mapping[str, Any]

IMPORTED = "smollm2-135m"
"""The model whose weights come in a package; any other is made at random."""


def execute(point: Point, write: Callable[[Record], None]) -> Seconds:
    """Run one point and hand its records to ``write``; the 99th percentile of how late the clock's timers ran."""
    from serving.live.clock import RealClock
    from serving.live.fleet import WorkerOptions
    from serving.live.setup import LiveSetup, serve_live

    spec = point.spec
    system = configured(spec["system"], spec["policy"])
    setup = LiveSetup(
        testbed=testbed(spec, lends_whole_gpus(spec["isolation"], system)),
        system=system,
        deployments=deployments(spec),
        checkpoints={name: find(folder) for name, folder in checkpoint_names(spec)},
        seed=point.seed,
        workers=WorkerOptions(device=spec["device"], num_devices=num_devices(spec["device"])),
    )
    clock = serve_live(setup, client(spec, point.seed, setup.deployments), write).backend.clock
    assert isinstance(clock, RealClock)
    return clock.lag(0.99)


def checkpoint_names(spec: Spec) -> Iterator[tuple[str, str]]:
    """Deployments, and the names of the checkpoints that they load."""
    for name, table in tables_by_model(spec["deployments"]).items():
        yield name, table.get("checkpoint") or table.get("architecture") or name


def folder_name(checkpoint: str) -> str:
    """What a checkpoint's folder is called: the checkpoint's name, or the last part of a path to one."""
    return Path(checkpoint).absolute().name


def checkpoint_specs(spec: Spec) -> dict[str, ModelSpec]:
    """Architecture by deployment, as each one's checkpoint has it."""
    return {name: _checkpoint(find(folder)).spec(name) for name, folder in checkpoint_names(spec)}


def prepared(points: Sequence[Point], device: str) -> list[Point]:
    """The points with what tells their checkpoints apart in their specs; UsageError when something is missing that they
    need, before any of them runs."""
    check_live("--backend live", device)
    marked = [replace(point, spec={**point.spec, "checkpoints": _marks(point.spec)}) for point in points]
    for point in marked:
        _check_positions(point)
    return marked


def _check_positions(point: Point) -> None:
    """UsageError when a sequence would have more tokens than its checkpoint has positions for."""
    needed = longest(point.spec["workload"])
    for _, name in checkpoint_names(point.spec):
        positions = _checkpoint(find(name)).config.max_positions
        if needed is not None and needed > positions:
            which = ", ".join(f"{key}={value}" for key, value in point.keys.items())
            raise UsageError(
                f"--backend live: {point.experiment} with {which} has sequences of {needed} tokens, checkpoint {name} "
                f"has positions for {positions}. Leave such points out with --set grid.KEY=..., or make a checkpoint "
                f"of {needed} --positions (aebench model make)"
            )


def _marks(spec: Spec) -> dict[str, str]:
    marks: dict[str, str] = {}
    tables = tables_by_model(spec["deployments"])
    for name, folder in checkpoint_names(spec):
        table = tables[name]
        declared = table.get("dtype")
        try:
            marks[folder] = _mark(folder)
        except LiveError as error:
            raise UsageError(_how_to_get(folder, table.get("architecture") or name, declared, error)) from error
        stored = _checkpoint(find(folder)).config.dtype
        if declared not in (None, stored):
            raise UsageError(
                f"--backend live: {name} is declared as {declared}, checkpoint {find(folder)} has {stored}. "
                f"Expected the same type: make or import it with --dtype {declared}"
            )
    return marks


@cache
def _mark(name: str) -> str:
    """Digest of what a checkpoint is shaped like: its config, and names and sizes of its files. The values of weights
    do not change how long anything takes."""
    folder = find(name)
    _checkpoint(folder)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _how_to_get(name: str, shape: str, dtype: str | None, error: LiveError) -> str:
    """What is wrong with a checkpoint, and the command that makes one of a shape and type."""
    folder = models_root() / name
    if folder.exists():
        return f"--backend live: {error}"
    of_type = "" if dtype is None else f" --dtype {dtype}"
    make = f"import {folder}" if name == IMPORTED else f"make {folder} --like {shape} --share-layers"
    return (
        f"--backend live: no checkpoint {name} under {models_root()}. Run: aebench model {make}{of_type}. "
        "AEBENCH_MODELS names another folder of models"
    )


@cache
def _checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint.open(folder)
