"""Settings: what ``--scale`` and ``--set`` change in an experiment's tables."""

import copy
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from aebench.errors import UsageError
from aebench.point import GridValue

Tables = dict[str, Any]


def merge(tables: Tables, over: Mapping[str, Any]) -> None:
    """Put ``over`` on top of ``tables``, table by table, in place."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(tables.get(key), dict):
            merge(tables[key], value)
        else:
            tables[key] = copy.deepcopy(value)


def expand_dots(over: Mapping[str, Any]) -> Tables:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``, for keys that TOML kept quoted."""
    expanded: Tables = {}
    for key, value in over.items():
        *parents, last = key.split(".")
        table = expanded
        for parent in parents:
            table = table.setdefault(parent, {})
        table[last] = expand_dots(value) if isinstance(value, Mapping) else value
    return expanded


def apply_setting(tables: Tables, setting: str) -> None:
    """``grid.KEY=V1,V2`` restricts or replaces an axis, ``KEY=VALUE`` any other field, in place."""
    key, text = parts(setting)
    *parents, last = key
    if parents == ["grid"]:
        if last not in tables["grid"]:
            known = ", ".join(tables["grid"])
            raise UsageError(f"--set {setting}: the grid has no key {last!r}. Known: {known}")
        tables["grid"][last] = [_value(part) for part in text.split(",")]
        return
    if not parents and last in tables["grid"]:
        raise UsageError(f"--set {setting}: {last} is an axis of the grid; set it with --set grid.{last}={text}")
    table = tables
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {setting}: {parent!r} is no table")
    table[last] = _value(text)


def parts(setting: str) -> tuple[tuple[str, ...], str]:
    """The tables and the key that ``KEY=VALUE`` names, as TOML reads a dotted key, and the text of the value."""
    key, _, text = setting.partition("=")
    try:
        path = _path(tomllib.loads(f"{key} = 0"))
    except tomllib.TOMLDecodeError:
        path = ()
    if not path or not text:
        raise UsageError(f"--set {setting}: expected KEY=VALUE, for example --set grid.model=opt-2.7b")
    return path, text


def _path(tables: Any) -> tuple[str, ...]:
    if not isinstance(tables, dict):
        return ()
    ((key, inner),) = tables.items()
    return (key, *_path(inner))


def held(tables: Mapping[str, Any], path: Sequence[str]) -> Any:
    """What the tables hold there; None: nothing."""
    found: Any = tables
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _value(text: str) -> GridValue:
    """A TOML scalar where the text is one, else the text itself."""
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, str | int | float | bool) else text
