"""Knobs: config fields that carry their unit and source, so that a report can print them."""

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any


def knob(default: Any, *, unit: str = "", source: str) -> Any:
    """A dataclass field with a default, its unit and where the number comes from."""
    return field(default=default, metadata={"unit": unit, "source": source})


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number of a policy, as a report prints it."""

    name: str
    value: Any
    unit: str
    source: str


def parameters(config: Any) -> Iterator[Parameter]:
    """The knobs of a config with their present values."""
    for item in fields(config):
        if item.default is not MISSING and "source" in item.metadata:
            yield Parameter(item.name, getattr(config, item.name), item.metadata["unit"], item.metadata["source"])
