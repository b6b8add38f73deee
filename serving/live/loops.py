"""ControlLoops: waits for loops of a control plane, as in virtual time: uniform over the loop's period."""

from random import Random

from serving.core.clock import Clock, Signal
from serving.core.stages import Stage


class ControlLoops:
    """Loops are not in step with each other, so each wait is drawn; one stream of draws per stage name."""

    def __init__(self, clock: Clock, seed: int) -> None:
        self._clock = clock
        self._seed = seed
        self._streams: dict[str, Random] = {}

    def wait(self, stage: Stage) -> Signal:
        """Fires when the loop of the stage looks for work next."""
        if stage.name not in self._streams:
            self._streams[stage.name] = Random(f"{self._seed}/startup/{stage.name}")
        ended = Signal(self._clock)
        self._clock.call_later(self._streams[stage.name].uniform(0.0, stage.period), ended.fire)
        return ended
