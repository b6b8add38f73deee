"""World: where the points of a run are executed, and what an experiment declares for it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aebench.settings import Tables, expand_dots, merge

if TYPE_CHECKING:
    from serving.cost.profile import Profile

DEVICES = ("cpu", "cuda")
"""What live workers compute on; each may have a table ``[live.DEVICE]``."""
SMOKE = "smoke"


@dataclass(frozen=True, slots=True)
class World:
    """In virtual time on the paper's machines, on a device of this machine, or in virtual time as a profile of such a
    device has it."""

    backend: str = "sim"
    device: str | None = None
    """None: the machines of the paper, as the experiment declares them outside of ``[live]``."""
    profile: "Profile | None" = field(default=None, compare=False)
    """Of the device, where it is simulated. A log has it in its spec."""

    @property
    def is_local(self) -> bool:
        """Whether points run on what ``[live]`` declares instead of on the paper's machines."""
        return self.device is not None


PAPER = World()
"""The paper's machines in virtual time."""


def declared_devices(tables: Mapping[str, Any]) -> tuple[str, ...]:
    """Devices that an experiment declares ``[live.DEVICE]`` for; all of them when what ``[live]`` holds names none."""
    live = tables.get("live", {})
    return tuple(device for device in DEVICES if device in live) or (DEVICES if live else ())


def tables_for(world: World, tables: Mapping[str, Any], scale: str) -> Tables:
    """An experiment's tables as they are in a world at a scale: ``[scale.smoke]`` is for the paper's machines,
    ``[live]``, ``[live.DEVICE]`` and ``[live.smoke]`` for a local one; ``live`` itself is gone."""
    found: Tables = {key: copy.deepcopy(value) for key, value in tables.items() if key != "live"}
    if not world.is_local:
        merge(found, expand_dots(tables.get("scale", {}).get(scale, {})))
        return found
    live = tables.get("live", {})
    every = {key: value for key, value in live.items() if key not in (*DEVICES, SMOKE)}
    for over in (every, live.get(world.device, {}), live.get(SMOKE, {}) if scale == SMOKE else {}):
        _put_over(found, over)
    return found


def _put_over(tables: Tables, over: Mapping[str, Any]) -> None:
    """Merge a table of ``[live]``. Names of models, of sources and of grid values have dots of their own; and every
    model that is deployed has to be here, so the deployments that are given are all."""
    named = {key: over[key] for key in ("deployments", "sources", "when") if key in over}
    merge(tables, expand_dots({key: value for key, value in over.items() if key not in named}))
    if "deployments" in named:
        tables["deployments"] = copy.deepcopy(named["deployments"])
    merge(tables, {"when": named.get("when", {})})
    tables["sources"] = {**tables.get("sources", {}), **named.get("sources", {})}
