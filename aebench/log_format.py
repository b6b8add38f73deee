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
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from aebench.errors import LogError
from aebench.point import GridValue, Point
from aebench.record_columns import COLUMNS, REQUIRED, TUPLES, Row, check_fields, decode, plain
from serving.records import RECORD_TYPES, Record

SCHEMA = 1
"""Version of everything in a log: ``run.json``, JSON lines, Parquet."""

UPGRADES: dict[int, Callable[[Row], Row]] = {}
"""Schema n -> the step from n to n + 1, for one row: a record, a ``point`` header or the ``run`` itself."""

_CHUNK_BYTES = 16 << 20
_ZSTD_LEVEL = 9
_METADATA_KEY = b"aebench"
Only = Mapping[str, Sequence[str]]
"""Values by column: of the rows that have something in the column, those with one of these are read."""
NO_MATTER: Only = {}
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
    for name, column in COLUMNS[type(record)].items():
        row[column] = getattr(record, name)
    return _encode(row).encode()


def read_lines(path: Path, wanted: Sequence[type[Record]], only: Only = NO_MATTER) -> list[Record]:
    """The records of an unfinished point; a last line cut short by a crash is left out."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise LogError(f"{path}: {error.strerror}") from error
    if not lines:
        raise LogError(f"{path}, line 1: no header. Delete it and run again with --resume")
    header = Header.parse(lines[0], f"{path}, line 1")
    numbered = ((f"{path}, line {number}", line) for number, line in enumerate(lines[1:], start=2))
    rows = ((upgrade(_object(line, where), header.schema), where) for where, line in numbered)
    return [
        record for row, where in rows if isinstance(record := decode(row, where), tuple(wanted)) and _is_of(row, only)
    ]


def _is_of(row: Row, only: Only) -> bool:
    return all(row.get(column) is None or row[column] in values for column, values in only.items())


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

    annotation = plain(annotation)
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
        for name, column in COLUMNS[record_type].items():
            columns[column] = _arrow_type(hints[name])
    return pa.schema(columns)


def write_parquet(lines: BinaryIO, header: Header, target: BinaryIO) -> None:
    """Copies records from JSON lines (behind their header) into a Parquet file, some megabytes at a time."""
    import pyarrow as pa
    import pyarrow.json as pj
    import pyarrow.parquet as pq

    schema = arrow_schema().with_metadata({_METADATA_KEY: header.encode()})
    parsing = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    times = [field.name for field in schema if pa.types.is_floating(field.type)]  # their bytes are alike place by place
    encoding = {"use_byte_stream_split": times, "use_dictionary": [name for name in schema.names if name not in times]}
    writer = pq.ParquetWriter(
        target, schema, compression="zstd", compression_level=_ZSTD_LEVEL, write_page_checksum=True, **encoding
    )
    with writer as sealed:
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


def read_parquet(path: Path, wanted: Sequence[type[Record]], only: Only = NO_MATTER) -> list[Record]:
    """The records of a sealed point that are of the wanted types, in the order in which they were written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    header = read_parquet_header(path)
    if header.schema != SCHEMA:
        return _read_upgraded(path, wanted, only, header.schema)
    with _reading_parquet(path):
        table = pq.read_table(path, filters=_filter(wanted, only), page_checksum_verification=True, partitioning=None)
        places: dict[str, list[int]] = {record_type.kind: [] for record_type in wanted}
        for place, kind in enumerate(table["kind"].to_pylist()):
            places[kind].append(place)
        records: list[Record | None] = [None] * len(table)
        for record_type in wanted:
            rows = table.take(pa.array(places[record_type.kind], pa.int64()))
            found = _of_table(rows, record_type, str(path))
            for place, record in zip(places[record_type.kind], found, strict=True):
                records[place] = record
    return [record for record in records if record is not None]


def _filter(wanted: Sequence[type[Record]], only: Only) -> Any:
    """What Parquet is to read."""
    import pyarrow.compute as pc

    rows = pc.field("kind").isin([record_type.kind for record_type in wanted])
    for column, values in only.items():
        rows &= pc.field(column).is_null() | pc.field(column).isin(list(values))
    return rows


def _of_table(table: Any, record_type: type[Record], where: str) -> list[Record]:
    """The records of one type, column by column: several times as fast as row by row."""
    if not len(table):
        return []
    columns = {name: column for name, column in COLUMNS[record_type].items() if column in table.column_names}
    known = ("kind", *columns.values())
    absent = [name for name in REQUIRED[record_type] if name not in columns]
    unknown = [name for name in table.column_names if name not in known and table[name].null_count < len(table)]
    check_fields(record_type, absent, unknown, where)
    values = [_values(table[column]) for column in columns.values()]
    for number, name in enumerate(columns):
        if name in TUPLES[record_type]:
            values[number] = list(map(tuple, values[number]))
    return [record_type(**dict(zip(columns, row, strict=True))) for row in zip(*values, strict=True)]


def _read_upgraded(path: Path, wanted: Sequence[type[Record]], only: Only, schema: int) -> list[Record]:
    """The records of a point that was sealed under an older schema."""
    import pyarrow.parquet as pq

    with _reading_parquet(path):
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        columns = {name: _values(table[name]) for name in table.column_names}
    rows = [upgrade(dict(zip(columns, row, strict=True)), schema) for row in zip(*columns.values(), strict=True)]
    records = [decode(row, str(path)) for row in rows if _is_of(row, only)]
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
