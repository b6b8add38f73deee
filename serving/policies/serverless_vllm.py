"""Serverless vLLM: the baseline that starts one worker per cold start, strictly in series.

**Paper**: HydraServe (NSDI'26), its first baseline. **Implements** (fact sheet): section 4, first column; 3.1 naive
placement (first server in order with a GPU that holds the model; the network is ignored).
**Departures**: GPU memory utilisation is 0.95 as for the other systems, not 0.8: with 0.8 a 13B model leaves no room
for KV in its own slice. It does not enter TTFT.
"""

from dataclasses import dataclass

from serving.core.actions import Action, Launch
from serving.core.cluster import Cluster
from serving.core.instance import Instance
from serving.core.request import Sequence
from serving.policies.autoscale import hand_out, retire_idle, workers_wanted
from serving.policies.continuous import Batching
from serving.policies.knobs import knob
from serving.policies.placement import FreeMemory, slice_size
from serving.policies.starts import SERIAL_START
from serving.units import GB, Bytes, Seconds, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerlessVllmConfig:
    """Knobs of serverless vLLM; the controller is HydraServe's, so are the numbers."""

    kv_reserve: Bytes = knob(5 * GB, unit="B", source="sheet 3: kv")
    leftover: Bytes = knob(6 * GB, unit="B", source="sheet 3.1 rule 6")
    batch_size: int = knob(8, source="sheet 4, per worker")
    max_step_tokens: Tokens = knob(3072, unit="tokens", source="sheet 2.5, max_model_len")
    grace_period: Seconds = knob(30.0, unit="s", source="sheet 4, keep-alive")
    interval: Seconds = knob(1.0, unit="s", source="sheet 2.1: period of the reaper")
    batching: Batching = Batching()


class ServerlessVllm:
    """The Controller."""

    def __init__(self, config: ServerlessVllmConfig) -> None:
        self.config = config
        self.interval = config.interval

    def on_arrival(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """Hand out, and start what is missing."""
        return self._scale(sequence.request.model, cluster)

    def on_ready(self, instance: Instance, cluster: Cluster) -> list[Action]:
        """Hand out."""
        return self._scale(instance.model, cluster)

    def on_finish(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """Hand out the free seat."""
        return self._scale(sequence.request.model, cluster)

    def on_change(self, model: str, cluster: Cluster, lost: Instance | None) -> list[Action]:
        """Hand out the free seats, and start what is missing again."""
        del lost
        return self._scale(model, cluster)

    def on_interval(self, cluster: Cluster) -> list[Action]:
        """Retire the idle; retry models whose sequences found no room."""
        retired = retire_idle(cluster, self.config.grace_period)
        actions: list[Action] = [*retired]
        held = cluster.models_held()
        free = FreeMemory.of(cluster, (action.instance for action in retired)) if held else None
        for model in held:
            actions += self._scale(model, cluster, free)
        return actions

    def _scale(self, model: str, cluster: Cluster, free: FreeMemory | None = None) -> list[Action]:
        actions = hand_out(model, cluster)
        wanted = workers_wanted(model, cluster, len(actions), self.config.batch_size)
        if not wanted:
            return actions
        free = free or FreeMemory.of(cluster)
        need = slice_size(cluster.deployments[model].size, self.config.kv_reserve)
        for _ in range(wanted):
            server = next((server for server in cluster.servers if free.fits(server, need)), None)
            if server is None:
                break
            actions.append(
                Launch(
                    model=model,
                    placements=(free.take(server, need, self.config.leftover),),
                    graph=SERIAL_START,
                    max_sequences=self.config.batch_size,
                    max_step_tokens=self.config.max_step_tokens,
                )
            )
        return actions
