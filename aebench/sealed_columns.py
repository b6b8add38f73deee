"""The columns of a sealed point: their types, how they are encoded, and times in them as ticks or seconds.

Tables are pyarrow's, which is imported where it is used, because a worker needs it only at the end of its first point.
"""

import functools
import itertools
import json
import typing
from collections.abc import Mapping
from typing import Any

from aebench.record_columns import COLUMNS, plain
from aebench.ticks import TIMES, Ticks, from_ticks, to_ticks
from serving.records import RECORD_TYPES, RequestRecord

_ZSTD_LEVEL = 9
_ZSTD_LEVEL_OF_TICKS = 19
"""Of small columns, which take little time even so."""
_TICKS_KEY = b"ticks"
_RISING = ("arrived_at", "started_at", "paused_at", "at")
"""Columns in which a row has little more than the row before, when rows are in order."""


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


def writing(schema: Any, *, ordered: bool) -> dict[str, Any]:
    """How columns become bytes: of numbers, all first bytes, then all second bytes, since those are alike. Of rows in
    order, some columns as the differences from row to row."""
    import pyarrow as pa

    options: dict[str, Any] = {"compression": "zstd", "compression_level": _ZSTD_LEVEL, "write_page_checksum": True}
    if not ordered:
        numbers = [field.name for field in schema if pa.types.is_floating(field.type)]
        named = [name for name in schema.names if name not in numbers]
        return {**options, "use_byte_stream_split": numbers, "use_dictionary": named}
    numbers = [_path(field) for field in schema if _is_number(field.type)]
    encodings = {name: "DELTA_BINARY_PACKED" if name in _RISING else "BYTE_STREAM_SPLIT" for name in numbers}
    named = [name for name in map(_path, schema) if name not in numbers]
    return {
        **options,
        "compression_level": _ZSTD_LEVEL_OF_TICKS,
        "column_encoding": encodings,
        "use_dictionary": named,
        "write_statistics": False,
        "store_schema": False,
    }


def _is_number(column_type: Any) -> bool:
    import pyarrow as pa

    item = column_type.value_type if pa.types.is_list(column_type) else column_type
    return bool(pa.types.is_floating(item) or pa.types.is_integer(item))


def _path(field: Any) -> str:
    """What Parquet calls a column's values."""
    import pyarrow as pa

    return f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name


def tick_schema(how: Ticks, metadata: Mapping[bytes, bytes]) -> Any:
    """The columns with times as whole numbers; the metadata say as well how to read them."""
    import pyarrow as pa

    fields = []
    for field in arrow_schema():
        whole = pa.list_(pa.int64()) if pa.types.is_list(field.type) else pa.int64()
        fields.append(field.with_type(whole) if field.name in TIMES else field)
    ticks = json.dumps({"digits": how.digits, "since": how.since}).encode()
    return pa.schema(fields, metadata={**metadata, _TICKS_KEY: ticks})


def in_order(rows: Any) -> Any:
    """Kind by kind, requests by id, all else as it was written."""
    import numpy as np

    places = {kind: place for place, kind in enumerate(RECORD_TYPES)}
    kinds = np.array([places[kind] for kind in rows["kind"].to_pylist()], dtype=np.int64)
    ids = np.nan_to_num(rows["request_id"].to_numpy()).astype(np.int64)
    return rows.take(np.lexsort((np.where(kinds == places[RequestRecord.kind], ids, 0), kinds)))


def in_ticks(rows: Any, schema: Any, how: Ticks) -> Any:
    """The rows with times in seconds as rows with times in ticks."""
    return _with_times(rows, to_ticks(_times(rows), how)).cast(schema)


def in_seconds(rows: Any) -> Any:
    """The rows with times in seconds, of whichever form."""
    ticks = (rows.schema.metadata or {}).get(_TICKS_KEY)
    if ticks is None:
        return rows
    return _with_times(rows, from_ticks(_times(rows), Ticks(**json.loads(ticks))))


def _times(rows: Any) -> dict[str, Any]:
    """The columns with times as arrays of floats, NaN where there is none; of lists, the items one after the other."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    found = {}
    for name in rows.column_names:
        if name in TIMES:
            is_list = pa.types.is_list(rows[name].type)
            found[name] = (pc.list_flatten(rows[name]) if is_list else rows[name]).to_numpy().astype(np.float64)
    return found


def _with_times(rows: Any, times: Mapping[str, Any]) -> Any:
    """The rows with other times, as floats."""
    import pyarrow as pa

    for name, items in times.items():
        column = pa.array(items, from_pandas=True)  # NaN is null
        if pa.types.is_list(rows[name].type):
            before = rows[name].combine_chunks()
            ends = list(itertools.accumulate(column_values(before.value_lengths().fill_null(0)), initial=0))
            column = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), column, mask=before.is_null())
        rows = rows.set_column(rows.column_names.index(name), name, column)
    return rows


def column_values(column: Any) -> list[Any]:
    """A column as Python values; lists by way of numpy, ten times as fast as one by one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_list(column.type):
        return list(column.to_pylist())
    items = pc.list_flatten(column).to_numpy().tolist()
    lengths = pc.list_value_length(column).to_pylist()
    ends = itertools.accumulate(length or 0 for length in lengths)
    return [None if length is None else items[end - length : end] for length, end in zip(lengths, ends, strict=True)]
