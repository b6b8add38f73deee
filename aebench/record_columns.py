"""The columns of a log: which one holds which field of which type of record, and records made from rows."""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any

from aebench.errors import LogError
from serving.records import RECORD_TYPES, Record

Row = dict[str, Any]

_FIELDS: dict[type[Record], tuple[str, ...]] = {
    record_type: tuple(field.name for field in dataclasses.fields(record_type)) for record_type in RECORD_TYPES.values()
}


def plain(hint: Any) -> Any:
    """A field's type without None."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint


def _name_columns() -> dict[type[Record], dict[str, str]]:
    """Column by field: named like it, with the kind before it where a kind before has a field of that name and of
    another type."""
    taken: dict[str, Any] = {}
    columns: dict[type[Record], dict[str, str]] = {}
    for record_type, names in _FIELDS.items():
        hints = {name: plain(hint) for name, hint in typing.get_type_hints(record_type).items()}
        columns[record_type] = {}
        for name in names:
            is_free = taken.setdefault(name, hints[name]) == hints[name]
            columns[record_type][name] = name if is_free else f"{record_type.kind}_{name}"
    return columns


COLUMNS = _name_columns()
"""Column by field, by type of record."""
REQUIRED: dict[type[Record], tuple[str, ...]] = {
    record_type: tuple(field.name for field in dataclasses.fields(record_type) if field.default is dataclasses.MISSING)
    for record_type in RECORD_TYPES.values()
}
"""Fields without a default. One with a default may be absent: it was appended after some logs were written."""
TUPLES: dict[type[Record], tuple[str, ...]] = {
    record_type: tuple(
        name for name, hint in typing.get_type_hints(record_type).items() if typing.get_origin(hint) is tuple
    )
    for record_type in RECORD_TYPES.values()
}
"""Fields that come back as lists."""


def decode(row: Row, where: str) -> Record:
    """The record that a row of the current schema states."""
    record_type = RECORD_TYPES.get(row.get("kind", ""))
    if record_type is None:
        raise LogError(f"{where}: unknown kind {row.get('kind')!r}. Known: {', '.join(RECORD_TYPES)}")
    columns = COLUMNS[record_type]
    known = ("kind", *columns.values())
    absent = [name for name in REQUIRED[record_type] if columns[name] not in row]
    unknown = [name for name, value in row.items() if name not in known and value is not None]
    check_fields(record_type, absent, unknown, where)
    values = {name: row[column] for name, column in columns.items() if column in row}
    for name in TUPLES[record_type]:
        if name in values:
            values[name] = tuple(values[name])
    return record_type(**values)


def check_fields(record_type: type[Record], absent: Sequence[str], unknown: Sequence[str], where: str) -> None:
    """LogError when a record lacks a field that it needs, or has one that nobody knows."""
    if absent or unknown:
        raise LogError(f"{where}: a {record_type.kind} record lacks {absent} and has unknown {unknown}")
