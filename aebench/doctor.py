"""Doctor: what this machine can run, and what is missing for the rest."""

import importlib.util
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from aebench.catalog import Catalog
from aebench.errors import AebenchError
from aebench.machine import (
    INSTALL_LIVE,
    LIVE_PACKAGES,
    SERVICE_PACKAGES,
    SHARED_MEMORY,
    absent_packages,
    accelerators,
)
from serving.core.clock import SimClock
from serving.live.checkpoint import models_root

CORE = ("click", "jinja2", "matplotlib", "numpy", "pandas", "pyarrow", "pydantic", "scipy", "tqdm")
NEEDED_DISK = 100e6
"""Bytes for logs and figures of a full run."""
NEEDED_SHARED_MEMORY = 1.5e9
"""Bytes for the weights of the smallest live figure: two models of 0.54 GB, and one on its way."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: how it is, and what to do if that is not well."""

    name: str
    well: bool
    text: str
    needed: bool = True
    """Whether the sim backend needs it."""
    live: bool = False
    """Whether the live backend needs it."""


@dataclass(frozen=True, slots=True)
class Examination:
    """Everything looked at."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether the sim backend can run."""
        return all(finding.well for finding in self.findings if finding.needed)

    @property
    def text(self) -> str:
        """A line per finding, then what can be run."""
        width = max(len(finding.name) for finding in self.findings)
        lines = [f"{self._mark(f):<7}  {f.name:<{width}}  {f.text}" for f in self.findings]
        can = "can run: every figure on --backend sim" if self.healthy else "cannot run yet: mend what is missing"
        return "\n".join([*lines, "", can, *([self._live] if self.healthy else [])])

    @property
    def _live(self) -> str:
        """Whether the live backend can run too, and what keeps it from that."""
        absent = [finding.name for finding in self.findings if finding.live and not finding.well]
        if absent:
            return f"cannot run --backend live yet, see: {', '.join(absent)}"
        return f"can run --backend live on: {', '.join(['cpu', *(['cuda'] if accelerators() else [])])}"

    def _mark(self, finding: Finding) -> str:
        if finding.well:
            return "ok"
        return "missing" if finding.needed else "without"


def examine(log_path: Path) -> Examination:
    """Look at interpreter, packages, experiments, disk, speed, and what the live backend would need."""
    found = [_python(), _packages(), _experiments(), _disk(log_path), _speed(), _git(), _gpu()]
    found += [_live_packages(), _service(), _models(), _shared_memory()]
    return Examination(tuple(found))


def _python() -> Finding:
    text = f"{platform.python_version()}, {os.cpu_count()} cores"
    return Finding(
        "Python", sys.version_info >= (3, 11), text if sys.version_info >= (3, 11) else f"{text}; needs 3.11"
    )


def _packages() -> Finding:
    absent = [name for name in CORE if importlib.util.find_spec(name) is None]
    if absent:
        return Finding("packages", False, f"no {', '.join(absent)}. Run: pip install -e .")
    return Finding("packages", True, ", ".join(f"{name} {metadata.version(name)}" for name in CORE))


def _experiments() -> Finding:
    try:
        catalog = Catalog()
        broken = "; ".join(str(error) for error in catalog.broken.values())
        found = f"{len(catalog.figures)} figures of {', '.join(catalog.papers)}"
        return Finding("experiments", not broken, broken or found)
    except AebenchError as error:
        return Finding("experiments", False, str(error))


def _disk(log_path: Path) -> Finding:
    folder = log_path.absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return Finding("log folder", False, f"{folder} cannot be written. Give --log-path another folder")
    free = shutil.disk_usage(folder).free
    text = f"{log_path}, {free / 1e9:.1f} GB free"
    return Finding("log folder", free > NEEDED_DISK, text if free > NEEDED_DISK else f"{text}; needs 0.1 GB")


def _speed() -> Finding:
    clock, num_events = SimClock(), 50_000

    def next_event(left: int) -> None:
        if left:
            clock.call_later(1.0, next_event, left - 1)

    clock.post(next_event, num_events)
    began = time.perf_counter()
    clock.run()
    rate = num_events / (time.perf_counter() - began)
    return Finding("speed", True, f"{rate / 1e3:.0f} k simulated events/s")


def _git() -> Finding:
    well = shutil.which("git") is not None
    text = "runs record the commit" if well else "runs cannot record the commit"
    return Finding("git", well, text, needed=False)


def _gpu() -> Finding:
    found = [f"{accelerator.name} ({accelerator.memory})" for accelerator in accelerators()]
    if found:
        return Finding("GPU", True, ", ".join(found), needed=False)
    text = "the NVIDIA driver shows no device" if shutil.which("nvidia-smi") else "no NVIDIA driver"
    return Finding("GPU", False, f"{text}; the simulator and --device cpu need none", needed=False)


def _live_packages() -> Finding:
    absent = absent_packages()
    if absent:
        text = f"no {', '.join(absent)}; for --backend live: {INSTALL_LIVE}"
        return Finding("live extra", False, text, needed=False, live=True)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIVE_PACKAGES)
    return Finding("live extra", True, versions, needed=False, live=True)


def _service() -> Finding:
    absent = absent_packages(SERVICE_PACKAGES)
    if absent:
        return Finding("service", False, f"no {', '.join(absent)}; for aebench serve: {INSTALL_LIVE}", needed=False)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in SERVICE_PACKAGES)
    return Finding("service", True, versions, needed=False)


def _models() -> Finding:
    root = models_root()
    names = sorted(path.parent.name for path in root.glob("*/config.json"))
    if names:
        return Finding("models", True, f"{', '.join(names)} in {root}", needed=False, live=True)
    text = f"none in {root}; for --backend live: aebench model import {root / 'smollm2-135m'}"
    return Finding("models", False, text, needed=False, live=True)


def _shared_memory() -> Finding:
    if not SHARED_MEMORY.is_dir():
        text = f"no {SHARED_MEMORY}: live runs keep fetched weights in files of the temporary folder"
        return Finding("shm", True, text, needed=False)
    free = shutil.disk_usage(SHARED_MEMORY).free
    text = f"{SHARED_MEMORY}, {free / 1e9:.1f} GB free; a live run keeps a model's weights there, once a fetch"
    return Finding("shm", free > NEEDED_SHARED_MEMORY, text, needed=False, live=True)
