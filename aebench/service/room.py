"""Room: whether this machine has the memory that one instance takes, said before anything starts.

On a CPU all stages of an instance are in the machine's memory, each with its weights and KV blocks, and while weights
are loaded they are there twice, as they came and as they are computed with. On GPUs the KV blocks are on the devices;
weights only pass through the machine's memory.
"""

import os
import re
from dataclasses import dataclass
from math import ceil

from aebench.errors import UsageError
from aebench.machine import accelerators
from serving.cost.memory import UTILISATION
from serving.units import GB, Bytes, MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What one instance takes."""

    model: str
    memory: Bytes
    """Of the device of each stage: weights, KV blocks, and what the engine leaves unused."""
    num_stages: int
    weights: Bytes
    """Of all stages, as they are computed with."""
    stored_weights: Bytes
    """Of all stages, as the checkpoint has them."""
    num_devices: int
    """That stages are dealt out over."""


def host_memory() -> Bytes:
    """Memory of this machine."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def device_memory() -> Bytes | None:
    """Memory of the smallest CUDA device; None where the driver does not tell."""
    told = [re.fullmatch(r"(\d+) MiB", accelerator.memory) for accelerator in accelerators()]
    sizes = [int(match.group(1)) * MiB for match in told if match]
    return min(sizes, default=None)


def check_room(wanted: Wanted, device: str) -> None:
    """UsageError when one instance is larger than the machine, or its part on a CUDA device than the device."""
    if device == "cpu":
        _check_weights(wanted, wanted.weights + wanted.stored_weights)
        _check_cache(wanted, wanted.num_stages * wanted.memory, "this machine", host_memory())
        return
    _check_weights(wanted, wanted.stored_weights)
    has = device_memory()
    if has is not None:
        on_one = ceil(wanted.num_stages / wanted.num_devices) * wanted.memory * UTILISATION
        _check_cache(wanted, on_one, f"--device {device}", has)


def _check_weights(wanted: Wanted, size: Bytes) -> None:
    """Of these ``--kv-gb`` changes nothing."""
    has = host_memory()
    if size > has:
        raise UsageError(
            f"loading the weights of {wanted.model} takes {size / GB:.3g} GB of this machine, which has "
            f"{has / GB:.3g} GB: serve a smaller checkpoint"
        )


def _check_cache(wanted: Wanted, size: Bytes, where: str, has: Bytes) -> None:
    if size > has:
        raise UsageError(
            f"one instance of {wanted.model} takes {size / GB:.1f} GB of {where}, which has {has / GB:.1f} GB: "
            "lower --kv-gb"
        )
