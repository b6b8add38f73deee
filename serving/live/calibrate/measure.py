"""calibrate(): measure a machine with one checkpoint, and make its profile."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from random import Random

from serving.core.clock import FlowBody
from serving.core.instance import Instance
from serving.core.stages import Loader
from serving.cost.profile import Profile
from serving.live.calibrate.bench import KV_TOKENS, Bench, live_bench, serial_start, simulated_bench
from serving.live.calibrate.contention import Contention
from serving.live.calibrate.fit import Measurements, predicted, rate, startup_costs, step_table
from serving.live.calibrate.shapes import Shape, Shapes
from serving.live.checkpoint import Checkpoint
from serving.live.fleet import WorkerOptions
from serving.records import StageRecord
from serving.units import Seconds, ms

LONG: Seconds = 1.0
"""No longer prompts are measured than the first that takes so long; beyond it, the curve goes on as it was."""
BRISK: Seconds = 50 * ms
"""Steps below it are repeated more often, at no cost."""
FIRST = Shape.prompt(32)
NUM_IN_HOPS = 3
"""Workers of an instance of one stage, and of one of two."""
HOPPING = (Shape.decode(1), Shape.decode(8), Shape.prompt(64))

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured."""

    num_starts: int = 6
    """Starts of one worker alone, by turns with the direct and the engine's loader."""
    num_at_once: int = 4
    """Workers that are then started together."""
    repeats: int = 5
    """Of each step, in an order of its own every time."""
    busy_time: Seconds = 0.5
    """For which instances compute at once, each time."""
    rounds: int = 4
    """Of what slows what down, each pair of steps once a round."""
    quick: bool = False


QUICK = Effort(num_starts=2, num_at_once=2, repeats=3, busy_time=0.1, rounds=1, quick=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is measured, on what."""

    hardware: str
    """In words."""
    num_cores: int
    device: str = "cpu"
    num_devices: int = 1
    """CUDA devices that workers are dealt out over."""
    threads: int = 1
    num_instances: int = 2
    """That compute at once, at most."""
    effort: Effort = Effort()


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Something measured that the fit has not seen, beside what the profile says of it."""

    name: str
    measured: Seconds
    predicted: Seconds

    @property
    def error(self) -> float:
        """Of the prediction, relative."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A profile, and how far it can be trusted."""

    profile: Profile
    checks: tuple[Check, ...]
    took: Seconds


def calibrate(folder: Path, options: Options, tell: Tell) -> Calibration:
    """Measure; LiveError when the checkpoint is damaged or a process dies. ``tell`` hears what is under way."""
    began = time.monotonic()
    checkpoint = Checkpoint.open(folder)
    effort = options.effort
    shapes = Shapes.of(checkpoint.config.max_positions, KV_TOKENS, effort.quick)
    found = Measurements(shapes)
    workers = WorkerOptions(
        device=options.device, num_devices=options.num_devices, threads=options.threads, max_blocks=None
    )
    num_servers = max(NUM_IN_HOPS, effort.num_at_once, options.num_instances)
    with live_bench(checkpoint, num_servers, workers) as bench:
        bench.run(Measuring(bench, options, found, tell).everything(_can_split(checkpoint)))
    profile = _profile(checkpoint, options, found)
    return Calibration(
        profile=profile,
        checks=(*_step_checks(profile, found), *_start_checks(checkpoint, num_servers, profile, found)),
        took=time.monotonic() - began,
    )


@dataclass(slots=True, eq=False)
class Measuring:
    """The flows of a calibration, in the order in which they run."""

    bench: Bench
    options: Options
    found: Measurements
    tell: Tell

    def everything(self, two_stages: bool) -> FlowBody:
        """All of it."""
        effort = self.options.effort
        for index in range(effort.num_starts):
            self.tell(f"start {index + 1} of {effort.num_starts}, one worker alone")
            yield from self._start_alone(Loader.ENGINE if index % 2 else Loader.DIRECT)
        number = max(effort.num_at_once, self.options.num_instances)
        if number > 2:
            self.tell("start of 2 workers at once")
            yield from self._start_two()
        self.tell(f"start of {number} workers at once")
        instances = yield from self._start_together(number)
        yield from self.bench.retire(instances[self.options.num_instances :])
        instances = instances[: self.options.num_instances]
        yield from self._steps(instances[0])
        yield from Contention(self.bench, effort.busy_time, effort.rounds, self.found, self.tell).everything(instances)
        if two_stages:
            self.tell("steps of two stages")
            yield from self._two_stages(instances[0])

    def _start_alone(self, loader: Loader) -> FlowBody:
        instances = yield from self.bench.launch(serial_start(loader))
        stages = self.bench.stages(instances[0])
        self.found.starts.append(stages)
        (self.found.engine_loads if loader is Loader.ENGINE else self.found.direct_loads).append(stages["load"])
        yield from self._first_step(instances[0])
        yield from self.bench.retire(instances)

    def _start_two(self) -> FlowBody:
        instances = yield from self.bench.launch(serial_start(Loader.DIRECT), 2)
        self.found.starts_of_two += [_from_launch_to_ready(self.bench.stages(instance)) for instance in instances]
        yield from self.bench.retire(instances)

    def _start_together(self, number: int) -> FlowBody:
        instances = yield from self.bench.launch(serial_start(Loader.DIRECT), number)
        for instance in instances:
            stages = self.bench.stages(instance)
            self.found.starts_at_once.append(stages)
            yield from self.bench.step(instance, FIRST)
        return instances

    def _first_step(self, instance: Instance) -> FlowBody:
        first = yield from self.bench.step(instance, FIRST)
        later = []
        for _ in range(3):
            later.append((yield from self.bench.step(instance, FIRST)))
        self.found.first_steps.append(first - statistics.median(later))

    def _steps(self, instance: Instance) -> FlowBody:
        """Every shape, often; the first round warms up and finds out which prompts are too long."""
        shapes = self.found.shapes
        self.tell("steps")
        prompts: list[Shape] = []
        for shape in shapes.prompts:
            prompts.append(shape)
            if (yield from self.bench.step(instance, shape)) > LONG:
                break
        self.found.shapes = shapes = Shapes(
            prompts=tuple(prompts), batches=shapes.batches, in_context=shapes.in_context, unseen=shapes.unseen
        )
        every = [*shapes.prompts, *shapes.batches, *shapes.in_context, *shapes.unseen]
        for shape in every[len(prompts) :]:
            yield from self.bench.step(instance, shape)
        for repeat in range(self.options.effort.repeats):
            self.tell(f"steps, {repeat + 1} of {self.options.effort.repeats}")
            yield from self._round(instance, Random(f"calibrate/{repeat}").sample(every, len(every)), self.found.alone)

    def _round(self, instance: Instance, shapes: Sequence[Shape], times: dict[Shape, list[Seconds]]) -> FlowBody:
        """Each shape once more."""
        for shape in shapes:
            took = yield from self.bench.step(instance, shape)
            again = []
            for _ in range(3 if took < BRISK else 0):  # the first may suffer from what another shape left behind
                again.append((yield from self.bench.step(instance, shape)))
            times.setdefault(shape, []).append(statistics.median(again) if again else took)

    def _two_stages(self, whole: Instance) -> FlowBody:
        """By turns on an instance of two stages and on one of one, which has the same neighbours."""
        others = [instance for instance in self.bench.control.cluster.instances if instance is not whole]
        yield from self.bench.retire(others)
        (cut,) = yield from self.bench.launch(serial_start(Loader.DIRECT), 1, num_stages=2)
        engine = self.bench.stages(cut)["engine"]
        self.found.weights = whole.workers[0].weights
        self.found.stage_engine = cut.workers[0].weights, engine.ended_at - engine.started_at
        for shape in HOPPING:
            yield from self.bench.step(cut, shape)
        for _ in range(self.options.effort.repeats):
            yield from self._round(cut, HOPPING, self.found.two_stages)
            yield from self._round(whole, HOPPING, self.found.one_stage)


def _can_split(checkpoint: Checkpoint) -> bool:
    try:
        checkpoint.spec("").split(2)
    except ValueError:
        return False
    return True


def _profile(checkpoint: Checkpoint, options: Options, found: Measurements) -> Profile:
    return Profile(
        hardware=options.hardware,
        device=options.device,
        model=checkpoint.folder.absolute().name,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "python": ".".join(map(str, sys.version_info[:3])),
            "torch": version("torch"),
        },
        threads=options.threads,
        quick=options.effort.quick,
        startup=startup_costs(found, options.num_cores),
        fetch_rate=rate(start["fetch"] for start in found.starts),
        load_rate=rate(found.direct_loads),
        steps=step_table(found),
    )


def _step_checks(profile: Profile, found: Measurements) -> list[Check]:
    return [
        Check(
            name=_in_words(shape),
            measured=statistics.median(found.alone[shape]),
            predicted=predicted(profile.steps, shape),
        )
        for shape in found.shapes.unseen
    ]


def _in_words(shape: Shape) -> str:
    decodes = sum(num_tokens == 1 for num_tokens, _ in shape.chunks)
    parts = [f"{decodes} decodes"] if decodes else []
    parts += [f"{n} tokens after {c}" if c else f"a prompt of {n}" for n, c in shape.chunks if n > 1]
    return "step of " + ", ".join(parts)


def _start_checks(checkpoint: Checkpoint, num_servers: int, profile: Profile, found: Measurements) -> list[Check]:
    """Two starts at once, beside the same in virtual time, where timed stages share the cores."""
    if not found.starts_of_two:
        return []
    bench = simulated_bench(checkpoint, num_servers, profile)

    def starts() -> FlowBody:
        instances = yield from bench.launch(serial_start(Loader.DIRECT), 2)
        return [_from_launch_to_ready(bench.stages(instance)) for instance in instances]

    simulated = bench.run(starts())
    mean = statistics.fmean
    return [
        Check(name="start, one of 2 at once", measured=mean(found.starts_of_two), predicted=mean(simulated)),
    ]


def _from_launch_to_ready(stages: Mapping[str, StageRecord]) -> Seconds:
    return stages["engine"].ended_at - stages["container"].started_at
