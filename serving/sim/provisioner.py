"""Provisioner in virtual time: stages take what the testbed's start-up costs say, with jitter."""

from collections.abc import Mapping
from math import log, sqrt
from random import Random

from serving.core.clock import Clock, Signal
from serving.core.instance import Instance
from serving.core.stages import Stage, Work
from serving.core.worker import Worker
from serving.cost.engine import EngineCosts
from serving.cost.memory import num_blocks
from serving.cost.profile import StepTable
from serving.cost.roofline import forward_time
from serving.cost.startup import StartupCosts
from serving.sim.processors import Processors
from serving.units import Seconds


class SimProvisioner:
    """The Provisioner port. Jitter is lognormal with mean 1, one stream per stage name.

    Loops of a control plane are not in step with each other, so the wait for one is uniform over its period.
    Where servers are parts of one machine, the timed stages of all of them share its cores.
    """

    def __init__(
        self,
        clock: Clock,
        startup: dict[str, StartupCosts],
        seed: int,
        steps: StepTable | None = None,
        processors: Processors | None = None,
        engines: Mapping[str, EngineCosts] | None = None,
    ) -> None:
        self._clock = clock
        self._steps = steps
        self._processors = processors
        self._startup = startup
        self._seed = seed
        self._engines = engines or {}
        self._streams: dict[str, Random] = {}

    def start(self, instance: Instance, worker: Worker, stage: Stage) -> Signal:
        """Begin a TIMED, PROFILE or POLL stage, or the wait before a FETCH; the signal fires at its end."""
        duration = self._duration(instance, worker, stage)
        cores = self._startup[worker.server.kind].host_cores
        if self._processors is not None and cores is not None and not stage.period:
            return self._processors.compute(duration, cores).done
        ended = Signal(self._clock)
        self._clock.call_later(duration, ended.fire)
        return ended

    def num_blocks(self, instance: Instance) -> int:
        """KV blocks that fit beside the weights in the tightest stage; no more than engines there are known to have."""
        known = [self._engines[w.server.kind].kv_blocks for w in instance.workers if w.server.kind in self._engines]
        return min([num_blocks(instance), *(number for number in known if number is not None)])

    def grow(self, instance: Instance, whole: Worker) -> Signal:
        """At once: tensors are handed over and tables extended, for which nobody gives a time."""
        del instance, whole
        grown = Signal(self._clock)
        grown.fire()
        return grown

    def stop(self, instance: Instance, workers: tuple[Worker, ...]) -> None:
        """Nothing runs that would have to end."""

    def _duration(self, instance: Instance, worker: Worker, stage: Stage) -> Seconds:
        costs = self._startup[worker.server.kind]
        if stage.work is Work.PROFILE and self._steps is not None:
            return self._steps.prefill_time(instance.max_step_tokens)
        if stage.work is Work.PROFILE:
            return self._forward(instance, worker)
        if stage.period:
            return self._stream(stage.name).uniform(0.0, stage.period)
        sigma = sqrt(log(1 + costs.jitter**2))
        return costs.timed(stage.name, worker.weights) * self._stream(stage.name).lognormvariate(-(sigma**2) / 2, sigma)

    def _forward(self, instance: Instance, worker: Worker) -> Seconds:
        num_rows, engine = instance.max_step_tokens, self._engines.get(worker.server.kind)
        busy = forward_time(instance.spec, worker, num_rows, 0)
        return busy if engine is None else engine.terms(instance.spec, worker, num_rows, 1).time(busy, 0)

    def _stream(self, stage_name: str) -> Random:
        if stage_name not in self._streams:
            self._streams[stage_name] = Random(f"{self._seed}/startup/{stage_name}")
        return self._streams[stage_name]
