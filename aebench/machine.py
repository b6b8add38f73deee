"""Machine: what this computer is, as far as a live run depends on it."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from aebench.errors import UsageError
from aebench.world import World

SHARED_MEMORY = Path("/dev/shm")
LIVE_PACKAGES = ("torch", "safetensors", "tokenizers")
"""What live workers import beyond what the simulator needs."""
SERVICE_PACKAGES = ("starlette", "uvicorn")
"""What ``aebench serve`` imports beyond that."""
INSTALL_LIVE = "pip install 'aebench[live]'"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One CUDA device as its driver names it."""

    name: str
    memory: str
    """As the driver prints it, such as ``143771 MiB``."""


def hardware_text(device: str) -> str:
    """The hardware that a device's numbers depend on: ``NVIDIA H200, 16 cores``, ``2-core CPU x86_64 (AMD EPYC)``."""
    cores = usable_cores()
    if device == "cuda":
        names = [accelerator.name for accelerator in accelerators()]
        counted = [f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)]
        return f"{', '.join(counted) or 'no CUDA device'}, {cores} cores"
    return f"{cores}-core CPU {platform.machine()} ({cpu_model()})"


def hardware_of(world: World) -> str | None:
    """The hardware that a world is made of; None: the paper's machines."""
    if world.profile is not None:
        return world.profile.hardware
    return None if world.device is None else hardware_text(world.device)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor calls itself."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or "model unknown"


def accelerators() -> list[Accelerator]:
    """CUDA devices that the driver shows; none without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rpartition(",") for line in answer.stdout.splitlines() if "," in line]
    return [Accelerator(name.strip(), memory.strip()) for name, _, memory in rows]


def absent_packages(names: Sequence[str] = LIVE_PACKAGES) -> list[str]:
    """Packages that are not installed, of those that live workers need."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def check_live(what: str, device: str) -> None:
    """UsageError when this machine lacks what live workers of a device need; ``what`` wants them."""
    if absent := absent_packages():
        raise UsageError(f"{what} needs {', '.join(absent)}, not installed here. Run: {INSTALL_LIVE}")
    if device != "cuda":
        return
    if not accelerators():
        raise UsageError(
            "--device cuda: nvidia-smi shows no CUDA device on this machine. Expected one, or --device cpu"
        )
    if metadata.version("torch").endswith("+cpu"):
        raise UsageError(
            f"--device cuda: torch {metadata.version('torch')} is built for the CPU only. "
            "Expected a CUDA build of it, or --device cpu"
        )


def check_service(what: str) -> None:
    """UsageError when a package that answers over HTTP is not installed."""
    if absent := absent_packages(SERVICE_PACKAGES):
        raise UsageError(f"{what} needs {', '.join(absent)}, not installed here. Run: {INSTALL_LIVE}")


def num_devices(device: str) -> int:
    """Devices that workers are dealt out over: every CUDA device, or the one CPU."""
    return max(1, len(accelerators())) if device == "cuda" else 1


def slug(text: str) -> str:
    """A text as part of a file name: ``NVIDIA H200, 16 cores`` as ``nvidia-h200-16-cores``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
