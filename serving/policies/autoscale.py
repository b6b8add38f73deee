"""What the controllers of serverless systems share: hand out, count what is wanted, retire what is idle.

**Paper**: HydraServe, sheet section 2.2 (autoscaling loop) and 2.1 (reaper).
"""

from math import ceil

from serving.core.actions import Action, Dispatch, Retire
from serving.core.cluster import Cluster
from serving.core.instance import Phase
from serving.units import Seconds


def hand_out(model: str, cluster: Cluster) -> list[Action]:
    """Held sequences, oldest first, to ready instances with a seat, in order of launch (first fit)."""
    actions: list[Action] = []
    queue = iter(cluster.held.get(model, ()))
    for instance in cluster.instances_of(model, Phase.READY):
        for _ in range(instance.spare):
            sequence = next(queue, None)
            if sequence is None:
                return actions
            actions.append(Dispatch(sequence=sequence, instance=instance))
    return actions


def workers_wanted(model: str, cluster: Cluster, num_handed_out: int, batch_size: int) -> int:
    """New workers for the held sequences that neither a ready nor a starting instance will take."""
    starting = sum(instance.max_sequences for instance in cluster.instances_of(model, Phase.STARTING))
    return ceil(max(0, cluster.num_held(model) - num_handed_out - starting) / batch_size)


def oldest_wait(model: str, cluster: Cluster, num_handed_out: int = 0) -> Seconds:
    """How long the oldest held sequence of the model has waited, of those that are not handed out now."""
    queue = cluster.held.get(model, ())
    return cluster.now - queue[num_handed_out].arrived_at if len(queue) > num_handed_out else 0.0


def retire_idle(cluster: Cluster, grace_period: Seconds) -> list[Retire]:
    """Instances that have been idle for longer than the grace period and have no held sequence to wake up for. One that
    becomes several stays until they are there, and one that shares its process until it has it alone."""
    return [
        Retire(instance=instance)
        for instance in cluster.instances
        if instance.idle_since is not None
        and cluster.now - instance.idle_since > grace_period
        and instance.num_becoming < 2
        and instance.neighbour is None
        and not cluster.num_held(instance.model)
    ]
