"""RunOptions: the flags of ``aebench run``, and the world that they mean."""

from dataclasses import dataclass
from pathlib import Path

from aebench.machine_profile import read_profile
from aebench.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Flags of ``aebench run``."""

    backend: str = "sim"
    device: str | None = None
    """Of a live run; None: the CPU."""
    scale: str = "paper"
    num_runs: int = 1
    settings: tuple[str, ...] = ()
    jobs: int = 1
    resume: bool = False
    log_path: Path = Path("logs")
    progress: bool = True
    argv: tuple[str, ...] = ()
    profile: Path | None = None
    """What ``aebench calibrate`` measured of a machine, which is simulated then."""
    notes: tuple[str, ...] = ()
    """What the user is told of these flags before anything runs."""

    @property
    def world(self) -> World:
        """Where the points run."""
        if self.profile is not None:
            profile = read_profile(self.profile)
            return World(self.backend, profile.device, profile)
        return World(self.backend, (self.device or "cpu") if self.backend == "live" else None)
