"""RunManifest: ``run.json``, what a run was, on which machine and sources, and how it ended."""

import dataclasses
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

from aebench.errors import LogError
from aebench.log_format import SCHEMA, check_schema, upgrade
from aebench.world import World
from serving.units import ms

Status = Literal["started", "success", "partial", "error", "stopped"]
MAX_CLOCK_LAG = 1 * ms
"""Lag of a live run's timers from which on the run says that it was late."""
_PACKAGES = ("aebench", "numpy", "pandas", "pyarrow", "scipy", "matplotlib", "torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunManifest:
    """``run.json``: what is needed to repeat the run, and how it ended."""

    schema: int = SCHEMA
    status: Status = "started"
    experiment: str
    """Id of the experiment, ``paper/name``."""
    spec: dict[str, Any]
    """The resolved experiment, with everything ``--set`` and ``--scale`` changed."""
    seeds: tuple[int, ...]
    backend: str
    grid_keys: tuple[str, ...]
    figures: tuple[str, ...] = ()
    """Ids of the figures that the run was made for."""
    host: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    """Git commit of the sources; None: they are not in a git repository."""
    dirty: bool = False
    argv: tuple[str, ...] = ()
    """The user's command."""
    started_at: str = ""
    """UTC, ISO 8601; the instant 0 of the run's records in calendar time."""
    wall_seconds: float = 0.0
    """Time spent running, over all resumptions."""
    num_points: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    """Point name -> what happened, for the points that ended in error."""
    scale: str = "paper"
    settings: tuple[str, ...] = ()
    """What ``--set`` changed, as it was typed."""
    device: str | None = None
    """What live workers computed on; None: the paper's machines."""

    @property
    def as_declared(self) -> bool:
        """Whether the experiment ran as its file declares it."""
        return self.scale == "paper" and not self.settings

    @property
    def world(self) -> World:
        """Where the points ran."""
        return World(self.backend, self.device)

    @property
    def hardware(self) -> str | None:
        """The hardware that was measured, or simulated from a profile of it; None: the paper's machines."""
        named = self.host.get("hardware")
        return None if named is None else str(named)

    @property
    def measured(self) -> str | None:
        """The hardware as captions name it: with the model of a profile, and how roughly that was measured."""
        profile = self.spec.get("profile")
        if self.hardware is None or not isinstance(profile, dict):
            return self.hardware
        threads = profile.get("threads", 1)
        words = [
            f"{self.hardware} with {profile.get('model')}",
            *([f"{threads} threads a worker"] if threads != 1 else []),
            *(["measured with --quick"] if profile.get("quick") else []),
        ]
        return ", ".join(words)

    @property
    def late_clock(self) -> str | None:
        """What to say of a clock that was too late for what the run measured; None: it was not."""
        lag = self.host.get("clock_lag", 0.0)
        if lag <= MAX_CLOCK_LAG:
            return None
        return (
            f"Timers ran up to {1e3 * lag:.1f} ms late (99th percentile; expected at most {1e3 * MAX_CLOCK_LAG:g} ms): "
            "times of that size are the control process's, not the device's."
        )

    @classmethod
    def parse(cls, content: bytes, path: Path) -> Self:
        """The manifest that a ``run.json`` states, upgraded to the current schema."""
        from pydantic import TypeAdapter, ValidationError

        from aebench.toml_files import expectation, shown

        try:
            row = json.loads(content)
        except ValueError as error:
            raise LogError(f"{path}: not JSON ({error}). Is the log complete?") from error
        if not isinstance(row, dict):
            raise LogError(f"{path}: expected a JSON object, got {type(row).__name__}")
        row = upgrade({"kind": "run", **row}, check_schema(row.get("schema"), f"{path}"))
        del row["kind"]
        try:
            return TypeAdapter(cls).validate_python({**row, "schema": SCHEMA})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise LogError(
                f"{path}, {key}: expected {expectation(first['msg'])}, got {shown(first['input'])}"
            ) from error

    def encode(self) -> bytes:
        """The manifest as indented JSON."""
        return (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode()


def describe_host() -> dict[str, Any]:
    """The machine a run was made on, as far as it can matter to the numbers."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that results depend on, those that are installed."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_state() -> tuple[str | None, bool]:
    """Commit of the sources and whether they differ from it; None where git cannot tell."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    sources = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(command, cwd=sources, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None, False
    commit, _, dirty = answer.stdout.strip().partition("-")
    return commit, bool(dirty)
