"""LiveProvisioner: the stages of a cold start, carried out by worker processes."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from serving.core.clock import Signal
from serving.core.instance import Instance
from serving.core.stages import Stage, Work
from serving.core.worker import Worker
from serving.cost.memory import BLOCK_SIZE
from serving.live.checkpoint import Checkpoint
from serving.live.fleet import Fleet, key_of
from serving.live.loops import ControlLoops
from serving.live.recording import StageEnded, WorkerKey
from serving.live.worker_link import Reply, WorkerLink


class LiveProvisioner:
    """The Provisioner port."""

    def __init__(self, fleet: Fleet, loops: ControlLoops, checkpoints: Mapping[str, Checkpoint]) -> None:
        self._fleet = fleet
        self._loops = loops
        self._checkpoints = checkpoints
        self.keeps_spares = False
        """Processes wait on every GPU before an instance is launched, and again once it has ended."""

    def start(self, instance: Instance, worker: Worker, stage: Stage) -> Signal:
        """Begin a stage in the worker's process. ``container`` makes the process; a graph without it takes one that is
        there already. Waits for loops of the control plane pass on the clock."""
        if stage.period:
            return self._loops.wait(stage)
        ended = Signal(self._fleet.clock)
        try:
            self._begin(instance, worker, stage, ended)
        except ValueError as error:  # no process could be started, or the slice holds no KV block
            self._fleet.clock.post(self._fleet.fault, worker, str(error))
        return ended

    def num_blocks(self, instance: Instance) -> int:
        """KV blocks that fit beside the weights in the tightest slice, or as many as are wanted at most."""
        return self._fleet.options.num_blocks(instance)

    def grow(self, instance: Instance, whole: Worker) -> Signal:
        """Make an engine of the whole model beside that of the worker's stage."""
        ended = Signal(self._fleet.clock)
        link = self._fleet.link(whole)
        if link is not None:  # it died, of which the fleet tells
            end = partial(self._end, ended, key_of(instance, whole), "grow")
            link.call({"op": "grow"}, partial(_carried_out, end))
        return ended

    def stop(self, instance: Instance, workers: tuple[Worker, ...]) -> None:
        """End the processes of some of the instance's workers. If others stay, each is an instance of its own by now,
        and has no stage of this one any more."""
        self._fleet.stop(instance, workers)
        for worker in instance.workers:
            link = None if worker in workers else self._fleet.link(worker)
            if link is not None:
                link.call({"op": "shed", "num_stages": len(instance.workers)}, None)
        if self.keeps_spares:
            for worker in workers:
                self._fleet.keep_spare(worker.gpu)

    def _begin(self, instance: Instance, worker: Worker, stage: Stage, ended: Signal) -> None:
        self.num_blocks(instance)  # raises at the first stage rather than when everything is loaded
        end = partial(self._end, ended, (instance.instance_id, worker.rank), stage.name)
        if stage.name == "container":
            self._fleet.start(worker).when_greeted(end)
            return
        link = self._fleet.link(worker) or self._fleet.take_spare(worker)
        command = self._command(instance, worker, stage, link)
        link.when_greeted(lambda: link.call(command, partial(_carried_out, end)))

    def _command(self, instance: Instance, worker: Worker, stage: Stage, link: WorkerLink) -> dict[str, Any]:
        if stage.work is Work.PROFILE:
            return {"op": "profile", "num_tokens": instance.max_step_tokens, **self._model(instance)}
        match stage.name:
            case "libraries":
                return {"op": "libraries"}
            case "context":
                return {"op": "context", "device": self._fleet.device_of(worker.gpu)}
            case "engine":
                return {"inlet": str(self._fleet.kv_path(link)), **self._engine(instance, worker)}
        raise LookupError(f"stage {stage.name!r} of a cold start: a worker process has no such stage")

    def _engine(self, instance: Instance, worker: Worker) -> dict[str, Any]:
        last = len(instance.workers) - 1
        here, behind = (str(self._fleet.socket_path(instance, worker.rank + step)) for step in (0, 1))
        return {
            "op": "engine",
            **self._model(instance),
            "rank": worker.rank,
            "num_stages": len(instance.workers),
            "listen": here if worker.rank > 0 else None,
            "connect": behind if worker.rank < last else None,
            "num_blocks": self._fleet.options.num_blocks(instance, worker if worker.whole else None),
            "block_size": BLOCK_SIZE,
            "cores": self._fleet.cores_of(worker.gpu),
        }

    def _model(self, instance: Instance) -> dict[str, Any]:
        config, options = self._checkpoints[instance.model].config, self._fleet.options
        return {"config": config.to_json(), "dtype": options.dtype or config.dtype, "threads": options.threads}

    def _end(self, ended: Signal, worker: WorkerKey, stage: str) -> None:
        self._fleet.record(StageEnded(at=self._fleet.clock.now, worker=worker, stage=stage))
        ended.fire()


def _carried_out(end: Callable[[], None], reply: Reply) -> None:
    del reply  # says nothing but that it is done
    end()
