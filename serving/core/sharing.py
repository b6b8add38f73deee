"""Sharing: what two instances on one worker process give each other, a pipeline and the whole model that follows it."""

from serving.core.instance import Instance
from serving.core.request import Sequence


def close_for(pipeline: Instance, whole: Instance) -> None:
    """Let the pipeline take no more sequences: ``whole``, on the same process, takes them, beginning with those that
    wait."""
    if pipeline.pool is None or whole.pool is not pipeline.pool:
        raise RuntimeError(f"instance {pipeline.instance_id} can close only for one that shares its KV blocks")
    pipeline.closed = True
    pipeline.neighbour, whole.neighbour = whole, pipeline
    for sequence in pipeline.waiting:
        sequence.instance = whole
    whole.waiting.extendleft(reversed(pipeline.waiting))
    pipeline.waiting.clear()
    whole.wake()


def hand_over(pipeline: Instance, whole: Instance) -> list[Sequence]:
    """Give all running sequences, whose KV is complete there now, to the instance that shares the blocks."""
    if not pipeline.is_still or not pipeline.closed or pipeline.neighbour is not whole:
        raise RuntimeError(f"instance {pipeline.instance_id} can hand over when it is closed and frozen only")
    pipeline.release_leaving()
    moved, pipeline.running = pipeline.running, []
    whole.settle()
    for sequence in moved:
        sequence.instance = whole
        sequence.num_migrations += 1
    whole.running[:0] = moved
    whole.wake()
    return moved
