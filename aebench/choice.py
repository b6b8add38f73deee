"""Choice: which of the figures that a user named can run in a world, and what is said of those that are left out."""

from collections.abc import Sequence
from dataclasses import dataclass

from aebench.catalog import Catalog
from aebench.declared import Declared
from aebench.errors import UsageError
from aebench.experiment import Experiment
from aebench.live_point import checkpoint_names, folder_name
from aebench.point import Point
from aebench.run_options import RunOptions
from aebench.world import World


@dataclass(frozen=True, slots=True)
class Choice:
    """The figures that run, by experiment."""

    figures: dict[str, list[Declared]]
    left_out: tuple[str, ...] = ()
    """A note for each experiment of a group that cannot run."""


def choose(catalog: Catalog, names: Sequence[str], options: RunOptions) -> Choice:
    """The figures behind the names. Of a group (a paper, a topic, ``all``) what cannot run is left out; UsageError when
    it was named itself, or when nothing is left."""
    world = options.world
    named = {each.figure_id for name in names if not catalog.is_group(name) for each in catalog.resolve([name])}
    wanted: dict[str, list[Declared]] = {}
    for declared in catalog.resolve(names):
        wanted.setdefault(declared.experiment_id, []).append(declared)
    refused = {name: reason for name in wanted if (reason := _why_not(catalog.experiment(name, world=world)))}
    for name, reason in refused.items():
        if len(refused) == len(wanted) or any(declared.figure_id in named for declared in wanted[name]):
            raise UsageError(reason)
    return Choice(
        figures={name: figures for name, figures in wanted.items() if name not in refused},
        left_out=tuple(f"left out: {reason}" for reason in refused.values()),
    )


def _why_not(experiment: Experiment) -> str | None:
    """Why an experiment cannot run in its world; None: it can."""
    world, name = experiment.world, experiment.experiment_id
    backends = experiment.file.backend
    if world.backend not in backends:
        return f"{name} does not run on --backend {world.backend}, only on: {', '.join(backends)}"
    if world.device is None or world.device in experiment.devices:
        return None
    how = "--profile" if world.profile is not None else "--backend live"
    if not experiment.devices:
        return f"{name} declares no machine of ours ([live]), so {how} has nothing to run it on. Leave out {how}"
    known = ", ".join(experiment.devices)
    return f"{name} declares nothing for device {world.device} ([live.{world.device}]), only for: {known}"


def check_profile(points: Sequence[Point], world: World) -> None:
    """UsageError when a profile was measured with a checkpoint that none of the points deploys."""
    if world.profile is None:
        return
    deployed = dict.fromkeys(folder_name(folder) for point in points for _, folder in checkpoint_names(point.spec))
    if world.profile.model not in deployed:
        raise UsageError(
            f"--profile: measured with checkpoint {world.profile.model}, but {points[0].experiment} deploys "
            f"{', '.join(sorted(deployed))}. Run: aebench calibrate --model {min(deployed)} --device {world.device}"
        )
