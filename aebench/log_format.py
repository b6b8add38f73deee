"""The format of a point's log: a header and records, as JSON lines or as one zstd Parquet file.

Line 1 of the JSON lines is the header, every further line one record. The Parquet file holds the same rows
as columns (the fields of all record types, ``kind`` first) and the header in its schema metadata. Where times are
rounded it holds them as ``aebench.ticks``, and the rows kind by kind, requests by id (docs/adr/0013). pyarrow
is imported where it is used, because a worker needs it only at the end of its first point.
"""

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from aebench.errors import LogError
from aebench.point import GridValue, Point
from aebench.record_columns import COLUMNS, REQUIRED, TUPLES, Row, check_fields, decode
from aebench.sealed_columns import arrow_schema, column_values, in_order, in_seconds, in_ticks, tick_schema, writing
from aebench.ticks import TIMES, Ticks
from serving.records import Record

SCHEMA = 1
"""Version of everything in a log: ``run.json``, JSON lines, Parquet."""

UPGRADES: dict[int, Callable[[Row], Row]] = {}
"""Schema n -> the step from n to n + 1, for one row: a record, a ``point`` header or the ``run`` itself."""

_CHUNK_BYTES = 16 << 20
_METADATA_KEY = b"aebench"
_IN_TICKS_KEY = b"aebench in ticks"
"""The header's key where times are in ticks: who does not know ticks finds no header, rather than wrong times."""
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


def encode(record: Record, time_digits: int | None = None) -> bytes:
    """One record as a JSON object, ``kind`` first, then the fields in order; times rounded to so many digits."""
    row: Row = {"kind": record.kind}
    for name, column in COLUMNS[type(record)].items():
        value = getattr(record, name)
        if time_digits is not None and value is not None and column in TIMES:
            is_tuple = type(value) is tuple
            value = [round(v, time_digits) for v in value] if is_tuple else round(value, time_digits)
        row[column] = value
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


def write_parquet(lines: BinaryIO, header: Header, target: BinaryIO, ticks: Ticks | None = None) -> None:
    """Copies records from JSON lines (behind their header) into a Parquet file, some megabytes at a time."""
    import pyarrow.json as pj
    import pyarrow.parquet as pq

    exact = arrow_schema()
    parsing = pj.ParseOptions(explicit_schema=exact, unexpected_field_behavior="error")
    schema = exact.with_metadata({_METADATA_KEY: header.encode()})
    if ticks is not None:
        schema = tick_schema(ticks, {_IN_TICKS_KEY: header.encode()})
    with pq.ParquetWriter(target, schema, **writing(schema, ordered=ticks is not None)) as sealed:
        while chunk := b"".join(lines.readlines(_CHUNK_BYTES)):
            reading = pj.ReadOptions(use_threads=False, block_size=len(chunk))
            rows = pj.read_json(io.BytesIO(chunk), read_options=reading, parse_options=parsing).select(schema.names)
            if ticks is not None:
                rows = in_ticks(in_order(rows), schema, ticks)
            sealed.write_table(rows.replace_schema_metadata(schema.metadata))
        if ticks is not None:
            sealed.add_key_value_metadata(schema.metadata)  # without Arrow's own, which is as large as a column


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
    header = metadata.get(_METADATA_KEY, metadata.get(_IN_TICKS_KEY))
    if header is None:
        raise LogError(f"{path}: a Parquet file that aebench did not write. Move it out of the log")
    return Header.parse(header, str(path))


def read_parquet(path: Path, wanted: Sequence[type[Record]], only: Only = NO_MATTER) -> list[Record]:
    """The records of a sealed point that are of the wanted types, in the order in which they were written, or
    kind by kind and requests by id where times are rounded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    header = read_parquet_header(path)
    if header.schema != SCHEMA:
        return _read_upgraded(path, wanted, only, header.schema)
    with _reading_parquet(path):
        filters = _filter(wanted, only)
        table = in_seconds(pq.read_table(path, filters=filters, page_checksum_verification=True, partitioning=None))
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
    found = [column_values(table[column]) for column in columns.values()]
    for number, name in enumerate(columns):
        if name in TUPLES[record_type]:
            found[number] = list(map(tuple, found[number]))
    return [record_type(**dict(zip(columns, row, strict=True))) for row in zip(*found, strict=True)]


def _read_upgraded(path: Path, wanted: Sequence[type[Record]], only: Only, schema: int) -> list[Record]:
    """The records of a point that was sealed under an older schema."""
    import pyarrow.parquet as pq

    with _reading_parquet(path):
        table = in_seconds(pq.read_table(path, page_checksum_verification=True, partitioning=None))
        columns = {name: column_values(table[name]) for name in table.column_names}
    rows = [upgrade(dict(zip(columns, row, strict=True)), schema) for row in zip(*columns.values(), strict=True)]
    records = [decode(row, str(path)) for row in rows if _is_of(row, only)]
    return [record for record in records if isinstance(record, tuple(wanted))]
