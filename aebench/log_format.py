"""The format of a point's log: a header and records, as JSON lines or as one zstd Parquet file.

Line 1 of the JSON lines is the header, every further line one record. The Parquet file holds the same rows
as columns (the fields of all record types, ``kind`` first) and the header in its schema metadata. pyarrow
is imported where it is used, because a worker needs it only at the end of its first point.
"""

import dataclasses
import functools
import io
import itertools
import json
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from aebench.errors import LogError
from aebench.point import GridValue, Point
from serving.records import RECORD_TYPES, Record

Row = dict[str, Any]

SCHEMA = 1
"""Version of everything in a log: ``run.json``, JSON lines, Parquet."""

UPGRADES: dict[int, Callable[[Row], Row]] = {}
"""Schema n -> the step from n to n + 1, for one row: a record, a ``point`` header or the ``run`` itself."""

_CHUNK_BYTES = 16 << 20
_METADATA_KEY = b"aebench"
_FIELDS: dict[type[Record], tuple[str, ...]] = {
    record_type: tuple(field.name for field in dataclasses.fields(record_type)) for record_type in RECORD_TYPES.values()
}
_REQUIRED: dict[type[Record], tuple[str, ...]] = {
    record_type: tuple(field.name for field in dataclasses.fields(record_type) if field.default is dataclasses.MISSING)
    for record_type in RECORD_TYPES.values()
}
"""Fields without a default. One with a default may be absent: it was appended after some logs were written."""
_TUPLES: dict[type[Record], tuple[str, ...]] = {
    record_type: tuple(
        name for name, hint in typing.get_type_hints(record_type).items() if typing.get_origin(hint) is tuple
    )
    for record_type in RECORD_TYPES.values()
}
"""Fields that come back as lists."""
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def upgrade(row: Row, schema: int) -> Row:
    """The row, written under ``schema``, as the current schema has it."""
    for version in range(schema, SCHEMA):
        row = UPGRADES[version](row)
    return row


def check_schema(schema: object, where: str) -> int:
    """The schema version that a file states, when this aebench can read it."""
    if type(schema) is not int or schema < 1:
        raise LogError(f"{where}: schema is {schema!r}, expected a number from 1 to {SCHEMA}")
    if schema > SCHEMA:
        raise LogError(
            f"{where}: written by a newer aebench (schema {schema}, this one reads up to {SCHEMA}). "
            "Update aebench to read it"
        )
    return schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Line 1 of a point's file: which point, and from which spec its records came."""

    schema: int
    digest: str
    keys: dict[str, GridValue]
    seed: int

    @classmethod
    def of(cls, point: Point) -> Self:
        """The header that a file of this point starts with."""
        return cls(schema=SCHEMA, digest=point.digest, keys=dict(point.keys), seed=point.seed)

    @classmethod
    def parse(cls, line: bytes, where: str) -> Self:
        """The header that a file states; ``schema`` stays the one that its rows were written under."""
        row = _object(line, where)
        if row.get("kind") != "point":
            raise LogError(f"{where}: expected the header of a point, got kind {row.get('kind')!r}")
        schema = check_schema(row.get("schema"), where)
        row = upgrade(row, schema)
        try:
            return cls(schema=schema, digest=row["digest"], keys=row["keys"], seed=row["seed"])
        except KeyError as error:
            raise LogError(f"{where}: the header has no {error}") from error

    def encode(self) -> bytes:
        """The header as a JSON object."""
        return _encode({"kind": "point", **dataclasses.asdict(self)}).encode()


def encode(record: Record) -> bytes:
    """One record as a JSON object, ``kind`` first, then the fields in order."""
    row: Row = {"kind": record.kind}
    for name in _FIELDS[type(record)]:
        row[name] = getattr(record, name)
    return _encode(row).encode()


def decode(row: Row, where: str) -> Record:
    """The record that a row of the current schema states."""
    record_type = RECORD_TYPES.get(row.get("kind", ""))
    if record_type is None:
        raise LogError(f"{where}: unknown kind {row.get('kind')!r}. Known: {', '.join(RECORD_TYPES)}")
    names = _FIELDS[record_type]
    absent = [name for name in _REQUIRED[record_type] if name not in row]
    unknown = [name for name, value in row.items() if name not in ("kind", *names) and value is not None]
    if absent or unknown:
        raise LogError(f"{where}: a {record_type.kind} record lacks {absent} and has unknown {unknown}")
    values = {name: row[name] for name in names if name in row}
    for name in _TUPLES[record_type]:
        if name in values:
            values[name] = tuple(values[name])
    return record_type(**values)


def read_lines(path: Path, wanted: Sequence[type[Record]]) -> list[Record]:
    """The records of an unfinished point; a last line cut short by a crash is left out."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise LogError(f"{path}: {error.strerror}") from error
    if not lines:
        raise LogError(f"{path}, line 1: no header. Delete it and run again with --resume")
    header = Header.parse(lines[0], f"{path}, line 1")
    numbered = ((f"{path}, line {number}", line) for number, line in enumerate(lines[1:], start=2))
    records = (decode(upgrade(_object(line, where), header.schema), where) for where, line in numbered)
    return [record for record in records if isinstance(record, tuple(wanted))]


def _object(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise LogError(f"{where}: not JSON ({error}). Delete the file and run again with --resume") from error
    if not isinstance(row, dict):
        raise LogError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row


def _arrow_type(annotation: Any) -> Any:
    """The Parquet type of a record field; every column may be null, since a row fills only its kind's."""
    import pyarrow as pa

    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        (annotation,) = (arg for arg in typing.get_args(annotation) if arg is not types.NoneType)
    if typing.get_origin(annotation) is tuple:
        return pa.list_(_arrow_type(typing.get_args(annotation)[0]))
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[annotation]


@functools.cache
def arrow_schema() -> Any:
    """The columns of a sealed point, from the record types: ``kind``, then their fields in order."""
    import pyarrow as pa

    columns = {"kind": pa.string()}
    for record_type in RECORD_TYPES.values():
        hints = typing.get_type_hints(record_type)
        for name in _FIELDS[record_type]:
            column = _arrow_type(hints[name])
            if columns.setdefault(name, column) != column:
                raise TypeError(f"records.py gives {name!r} two types: {columns[name]} and {column}")
    return pa.schema(columns)


def write_parquet(lines: BinaryIO, header: Header, target: BinaryIO) -> None:
    """Copies records from JSON lines (behind their header) into a Parquet file, some megabytes at a time."""
    import pyarrow.json as pj
    import pyarrow.parquet as pq

    schema = arrow_schema().with_metadata({_METADATA_KEY: header.encode()})
    parsing = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    with pq.ParquetWriter(target, schema, compression="zstd", write_page_checksum=True) as sealed:
        while chunk := b"".join(lines.readlines(_CHUNK_BYTES)):
            reading = pj.ReadOptions(use_threads=False, block_size=len(chunk))
            rows = pj.read_json(io.BytesIO(chunk), read_options=reading, parse_options=parsing)
            sealed.write_table(rows.select(schema.names).replace_schema_metadata(schema.metadata))


@contextmanager
def _reading_parquet(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError as error:
        raise LogError(f"{path}: {error.strerror}") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise LogError(f"{path}: damaged ({error}). Delete it and run again with --resume") from error


def read_parquet_header(path: Path) -> Header:
    """The header of a sealed point, read without its records."""
    import pyarrow.parquet as pq

    with _reading_parquet(path):
        metadata = pq.read_schema(path).metadata or {}
    if _METADATA_KEY not in metadata:
        raise LogError(f"{path}: a Parquet file that aebench did not write. Move it out of the log")
    return Header.parse(metadata[_METADATA_KEY], str(path))


def read_parquet(path: Path, wanted: Sequence[type[Record]]) -> list[Record]:
    """The records of a sealed point that are of the wanted types, in the order in which they were written."""
    import pyarrow.parquet as pq

    header = read_parquet_header(path)
    kinds = [record_type.kind for record_type in wanted]
    current = header.schema == SCHEMA
    with _reading_parquet(path):
        filters = [("kind", "in", kinds)] if current else None
        table = pq.read_table(path, filters=filters, page_checksum_verification=True, partitioning=None)
        columns = {name: _values(table[name]) for name in table.column_names}
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    records = (decode(upgrade(row, header.schema), str(path)) for row in rows)
    return [record for record in records if isinstance(record, tuple(wanted))]


def _values(column: Any) -> list[Any]:
    """A column as Python values; lists by way of numpy, ten times as fast as one by one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_list(column.type):
        return list(column.to_pylist())
    values = pc.list_flatten(column).to_numpy().tolist()
    lengths = pc.list_value_length(column).to_pylist()
    ends = itertools.accumulate(length or 0 for length in lengths)
    return [None if length is None else values[end - length : end] for length, end in zip(lengths, ends, strict=True)]
