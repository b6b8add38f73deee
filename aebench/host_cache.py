"""Host cache: how much memory of a server a point sets aside for weights that stay, in GiB, or in GB by server type."""

from collections.abc import Mapping
from typing import Any

from serving.units import GB, Bytes, GiB


def cache_bytes(spec: Mapping[str, Any], server: str) -> Bytes:
    """Memory of each server of a type that is set aside; a type that ``cache_gb`` does not name has none."""
    cache = spec.get("cache_gb")
    if cache is None:
        return float(spec["cache_gib"] * GiB)
    return float((cache.get(server, 0.0) if isinstance(cache, Mapping) else cache) * GB)


def largest_cache(spec: Mapping[str, Any]) -> Bytes:
    """The largest cache of any server that takes part."""
    kinds = (name for name, table in spec["servers"].items() if spec["gpu"] in (None, table["gpu"]))
    return max(cache_bytes(spec, name) for name in kinds)
