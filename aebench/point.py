"""Point: one cell of an experiment's grid with one seed; the unit that is run, logged and reused."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GridValue = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One cell of the grid, resolved: everything a worker process needs to run it."""

    experiment: str
    """Id of the experiment, ``paper/name``."""
    keys: Mapping[str, GridValue]
    """Grid values by TOML name, in grid order."""
    seed: int
    spec: Mapping[str, Any]
    """The resolved experiment for this cell, JSON-able; see ``aebench.experiment``."""

    @property
    def name(self) -> str:
        """File name of the point: grid values in grid order, the seed where it is not 0."""
        keys = ",".join(f"{key}={value}" for key, value in self.keys.items())
        return f"{keys},seed={self.seed}" if self.seed else keys

    @property
    def digest(self) -> str:
        """SHA-256 over everything that can change the point's records; decides reuse."""
        text = json.dumps(
            {"experiment": self.experiment, "keys": dict(self.keys), "seed": self.seed, "spec": self.spec},
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()
