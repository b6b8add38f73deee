"""Deployed models by name: a table of ``[deployments]`` stands for one, or for as many as its ``copies``."""

from collections.abc import Mapping
from typing import Any

Spec = Mapping[str, Any]


def tables_by_model(deployments: Mapping[str, Spec]) -> dict[str, Spec]:
    """The table of each deployed model, in the order of tables and then of copies, named ``TABLE/0``, ``TABLE/1``...;
    a copy's has the architecture that its table is named like, where it names none."""
    return {
        model: table if model == name else {"architecture": name, **table}
        for name, table in deployments.items()
        for model in names(name, table)
    }


def names(name: str, table: Spec) -> list[str]:
    """The names of the models that a table deploys."""
    copies = table.get("copies")
    return [name] if copies is None else [f"{name}/{index}" for index in range(copies)]


def names_in_short(deployments: Mapping[str, Spec]) -> list[str]:
    """The deployed models as a message lists them: ``llama2-7b/0..63`` for 64 copies."""
    ends = [(name, table.get("copies")) for name, table in deployments.items()]
    return [name if copies is None else f"{name}/0..{copies - 1}" for name, copies in ends]
