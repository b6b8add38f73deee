"""SYSTEMS: every system by its slug. A new one is a file and a line here."""

from dataclasses import replace
from typing import Any

from serving.core.ports import System
from serving.policies.continuous import ContinuousBatching
from serving.policies.fixed_instances import FixedInstances, FixedInstancesConfig
from serving.policies.hydraserve import HydraServe, HydraServeConfig
from serving.policies.llumnix import Llumnix
from serving.policies.llumnix_config import LlumnixConfig
from serving.policies.queue_jump import QueueJump
from serving.policies.serverless_vllm import ServerlessVllm, ServerlessVllmConfig
from serving.policies.serverlessllm import ServerlessLLM, ServerlessLLMConfig


def _batching(config: Any) -> ContinuousBatching:
    return ContinuousBatching(config.batching)


def _llumnix_batching(config: LlumnixConfig) -> ContinuousBatching:
    return QueueJump(config.batching) if config.scheduling_priority else ContinuousBatching(config.batching)


NO_PRIORITIES = LlumnixConfig(scheduling_priority=False, execution_priority=False)
NO_MIGRATION = replace(NO_PRIORITIES, migration=False, defragmentation=False, interval=1.0)
"""What is left of Llumnix without either: looked at once a second, for instances that are missing."""

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(
            name="serverless_vllm",
            config=ServerlessVllmConfig(),
            controller=ServerlessVllm,
            scheduler=_batching,
            exclusive_gpus=False,
            summary="one worker per cold start, first fit, all stages in series",
        ),
        System(
            name="serverlessllm",
            config=ServerlessLLMConfig(),
            controller=ServerlessLLM,
            scheduler=_batching,
            exclusive_gpus=True,
            summary="whole GPUs, pinned-memory store, fastest estimated start",
            resident_workers=True,
        ),
        System(
            name="serverlessllm_with_cached_model",
            config=ServerlessLLMConfig(),
            controller=ServerlessLLM,
            scheduler=_batching,
            exclusive_gpus=True,
            summary="ServerlessLLM with the model already in pinned host memory (the workload sees to it)",
            resident_workers=True,
        ),
        System(
            name="hydraserve_with_single_worker",
            config=HydraServeConfig(parallel=False),
            controller=HydraServe,
            scheduler=_batching,
            exclusive_gpus=False,
            plans_by_slos=True,
            summary="HydraServe's overlap inside one worker, no pipeline group",
        ),
        System(
            name="hydraserve",
            config=HydraServeConfig(),
            controller=HydraServe,
            scheduler=_batching,
            exclusive_gpus=False,
            plans_by_slos=True,
            summary="pipeline group of up to 4 workers, overlap inside each, network-aware placement",
        ),
        System(
            name="hydraserve_with_cache",
            config=HydraServeConfig(sizing="adaptive", cache=True),
            controller=HydraServe,
            scheduler=_batching,
            exclusive_gpus=False,
            plans_by_slos=True,
            summary="HydraServe, with the weights of single workers kept in host memory",
        ),
        System(
            name="fixed_instances",
            config=FixedInstancesConfig(),
            controller=FixedInstances,
            scheduler=_batching,
            exclusive_gpus=True,
            summary="so many instances, kept alive; each sequence goes to the one with the fewest",
        ),
        System(
            name="llumnix",
            config=LlumnixConfig(),
            controller=Llumnix,
            scheduler=_llumnix_batching,
            exclusive_gpus=True,
            summary="dispatch by freeness, running sequences migrate live, two classes of priority",
        ),
        System(
            name="llumnix-base",
            config=NO_PRIORITIES,
            controller=Llumnix,
            scheduler=_llumnix_batching,
            exclusive_gpus=True,
            summary="Llumnix that treats all requests alike",
        ),
        System(
            name="infaas++",
            config=NO_MIGRATION,
            controller=Llumnix,
            scheduler=_llumnix_batching,
            exclusive_gpus=True,
            summary="dispatch by Llumnix's freeness, no migration",
        ),
        System(
            name="round-robin",
            config=replace(NO_MIGRATION, dispatch="round_robin"),
            controller=Llumnix,
            scheduler=_llumnix_batching,
            exclusive_gpus=True,
            summary="each request to the instance that got the fewest so far, no migration",
        ),
    )
}


def configured(name: str, changes: dict[str, Any]) -> System:
    """A system with some knobs changed; those of the scheduler are in a table of their own, ``batching``."""
    system = SYSTEMS[name]
    batching = replace(system.config.batching, **changes.get("batching", {}))
    return replace(system, config=replace(system.config, **{**changes, "batching": batching}))
