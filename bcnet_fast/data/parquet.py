"""Features in Parquet files: a row for each video, with its id and its array.

An array is stored as in Hugging Face datasets, pandas and Ray: a list of rows; a flat list with a column `shape`
beside it; or a tensor of Arrow or Ray. Row groups are read as a whole, and the last one is kept, as are the metadata of
the last file.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..storage.address import Place
from ..storage.files import open_binary, readable
from ..storage.optional import require_pyarrow
from ..text import alternatives
from .source import ARRAY_NAMES, ReadLimits, SharedFiles

# An optional dependency, imported only by the functions that need it.
if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".parquet", ".pq")
ID_NAMES = ("id", "video", "video_id", "__key__")
SHAPE = "shape"
_EXPECTED = "a Parquet file with a column of ids and one of arrays"
_LONGEST_ID = 4096  # bytes
_MOST_ROWS = 1 << 24  # rows of a row group
_MOST_IDS_BYTES = 1 << 30  # bytes of a row group's ids
_BYTES = {"FLOAT": 4, "INT32": 4, "FIXED_LEN_BYTE_ARRAY": 2}  # bytes of a stored value; 8 for other types


class _Columns(NamedTuple):
    """Names of the columns of a file. shape: column of shapes; fixed: the shape that the type states."""

    ids: str
    arrays: str
    shape: str | None
    fixed: tuple[int, ...] | None


class ParquetRows(SharedFiles):
    """Rows of one or more Parquet files."""

    expected = "a list of rows of numbers"

    def __init__(self, files: Sequence[Place], kind: str, limits: ReadLimits) -> None:
        self.kind, self.limits = kind, limits
        self._files = list(files)
        self._columns: list[_Columns] = []
        self.videos: dict[str, tuple[int, int, int]] = {}  # numbers of the file, of the row group, of the row in it
        self._facts: tuple[int, Any] | None = None  # number of a file, its metadata, which are slow to read if many
        self._held: tuple[tuple[int, int, int], Any] | None = None  # process, file, group; their columns
        for number, path in enumerate(self._files):
            with _opened(path) as file:
                self._columns.append(_columns_of(file.schema_arrow, path))
                for group in range(file.metadata.num_row_groups):
                    for row, video in enumerate(_ids(file, group, self._columns[-1].ids, path)):
                        if video in self.videos:
                            other = self._files[self.videos[video][0]]
                            raise InputError(f"{other} and {path} have a row of video {video!r}, expected one for each")
                        self.videos[video] = number, group, row

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None, "_facts": None}

    def open(self, name: str) -> np.ndarray:
        number, group, row = self.videos[name]
        columns = self._columns[number]
        table = self._group(number, group)
        shape = columns.fixed
        if columns.shape is not None:
            stated = _value(table.column(columns.shape), row)
            shape = () if stated is None else tuple(map(int, stated.to_pylist()))
        found = _value(table.column(columns.arrays), row)
        if found is None:
            raise InputError(f"{self.where(name)} is null, expected {self.expected}")
        return _as_array(found, shape, self.where(name))

    def _group(self, number: int, group: int) -> Any:
        """The columns of a row group. InputError: they are larger than the features of a video may be."""
        key = os.getpid(), number, group
        if self._held is None or self._held[0] != key:
            self._held = None  # before the next one is read
            path, columns = self._files[number], self._columns[number]
            with _opened(path, self._facts[1] if self._facts and self._facts[0] == number else None) as file:
                self._facts = number, file.metadata
                size = _unpacked_bytes(file.metadata.row_group(group), columns.arrays)
                if size > self.limits.max_bytes:
                    raise InputError(
                        f"{path} has a row group of {size / 2**30:.3g} GiB, expected at most "
                        f"{self.limits.max_video_gib:.3g} GiB (--max-video-gib)"
                    )
                names = [name for name in (columns.arrays, columns.shape) if name is not None]
                self._held = key, file.read_row_group(group, columns=names, use_threads=False)
        return self._held[1]

    def close(self) -> None:
        self._held = None


@contextlib.contextmanager
def _opened(path: Place, facts: Any = None) -> Iterator[Any]:
    """Open a file. facts: its metadata, if they are known."""
    with readable(path, _EXPECTED):
        parquet = require_pyarrow().parquet
        with open_binary(path, _EXPECTED) as raw:
            facts = parquet.read_metadata(raw) if facts is None else facts
            stored = facts.schema.to_arrow_schema().names
            names = [name for name in ID_NAMES if name in stored]
            # Reading ahead would start threads, which a fork loses.
            # Read as a dictionary, so that repeated ids are in memory once.
            with parquet.ParquetFile(raw, metadata=facts, read_dictionary=names, pre_buffer=False) as file:
                yield file


def _columns_of(schema: pyarrow.Schema, path: Place) -> _Columns:
    """The columns of ids and arrays. InputError: one is missing, or of another type."""
    import pyarrow
    from pyarrow import types

    names = schema.names
    ids = next((name for name in ID_NAMES if name in names), None)
    arrays = next((name for name in reversed(ARRAY_NAMES) if name in names), None)
    if ids is None or arrays is None or len(set(names)) < len(names):
        raise InputError(
            f"{path} has the columns {', '.join(names[:9]) or 'none'}, expected one of ids, "
            f"{alternatives(ID_NAMES)}, and one of arrays, {alternatives(ARRAY_NAMES)}"
        )
    kind = schema.field(ids).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise InputError(f"{path}: column {ids} has type {kind}, expected text")
    field = schema.field(arrays)
    inner, fixed = _storage(field)
    if types.is_struct(inner) and {"data", SHAPE} <= {inner.field(i).name for i in range(inner.num_fields)}:
        inner, fixed = inner.field("data").type, ()  # a tensor of Ray, whose shape is in its row
    depth = 0
    while _is_list(inner):
        depth, inner = depth + 1, inner.value_type
    if depth not in (1, 2) or not (types.is_integer(inner) or types.is_floating(inner)):
        raise InputError(f"{path}: column {arrays} has type {field.type}, expected lists of rows of numbers")
    shape = None
    if depth == 1 and fixed is None:
        stated = schema.field(SHAPE).type if SHAPE in names else pyarrow.null()
        if not (_is_list(stated) and types.is_integer(stated.value_type)):
            raise InputError(
                f"{path}: column {arrays} has flat lists, expected lists of rows, or a column {SHAPE} with lists of "
                "whole numbers beside it"
            )
        shape = SHAPE
    return _Columns(ids, arrays, shape, fixed if depth == 1 else None)


def _storage(field: pyarrow.Field) -> tuple[Any, tuple[int, ...] | None]:
    """How a column is stored, and the shape that its type states, such as that of Ray's tensors."""
    import pyarrow

    if isinstance(field.type, pyarrow.BaseExtensionType):
        return field.type.storage_type, _as_shape(getattr(field.type, "shape", None))
    metadata = field.metadata or {}
    name = metadata.get(b"ARROW:extension:name", b"")
    if not name.endswith((b"tensor", b"tensor_v2")):
        return field.type, None
    try:
        stated = json.loads(metadata.get(b"ARROW:extension:metadata") or b"null")
    except ValueError:
        return field.type, None
    return field.type, _as_shape(stated.get("shape") if isinstance(stated, dict) else stated)


def _as_shape(stated: Any) -> tuple[int, ...] | None:
    usable = isinstance(stated, list | tuple) and all(type(length) is int and length >= 0 for length in stated)
    return tuple(stated) if usable else None


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _ids(file: Any, group: int, name: str, path: Place) -> Iterator[str]:
    """The ids of a row group. InputError: one is missing or longer than an id can be."""
    compute: Any = importlib.import_module("pyarrow.compute")
    facts = file.metadata.row_group(group)
    size = sum(column.total_uncompressed_size for column in _leaves(facts, name))
    if facts.num_rows > _MOST_ROWS or size > _MOST_IDS_BYTES:
        raise InputError(
            f"{path} has a row group with {facts.num_rows} rows and {size} bytes of ids, expected at most {_MOST_ROWS} "
            f"and {_MOST_IDS_BYTES}"
        )
    for chunk in file.read_row_group(group, columns=[name], use_threads=False).column(0).chunks:
        if chunk.null_count:
            raise InputError(f"{path} has {chunk.null_count} rows without an id, expected one in each")
        longest = compute.max(compute.binary_length(chunk.dictionary)).as_py() or 0
        if longest > _LONGEST_ID:
            raise InputError(f"{path} has an id of {longest} bytes, expected at most {_LONGEST_ID}")
        names = chunk.dictionary.to_pylist()
        for index in chunk.indices.to_numpy().tolist():
            yield names[index]


def _leaves(facts: Any, name: str) -> list[Any]:
    """Metadata of the leaf columns, of numbers and text, below one column of a row group."""
    columns = [facts.column(number) for number in range(facts.num_columns)]
    return [column for column in columns if f"{column.path_in_schema}.".startswith(f"{name}.")]


def _unpacked_bytes(facts: Any, name: str) -> int:
    return sum(column.num_values * _BYTES.get(column.physical_type, 8) for column in _leaves(facts, name))


def _value(column: pyarrow.ChunkedArray, row: int) -> Any:
    """The value of a row as an array of what is in it; a tensor of Ray as its struct; None for null."""
    import pyarrow

    found = column.slice(row, 1).combine_chunks()
    found = found.chunk(0) if isinstance(found, pyarrow.ChunkedArray) else found
    found = found.storage if isinstance(found, pyarrow.ExtensionArray) else found
    if len(found) != 1 or found.null_count:
        return None
    return found if isinstance(found, pyarrow.StructArray) else found.flatten()


def _as_array(found: Any, shape: tuple[int, ...] | None, where: str) -> np.ndarray:
    """The numbers of a row in their shape. InputError: they have none, or one is null."""
    import pyarrow

    compute: Any = importlib.import_module("pyarrow.compute")
    if isinstance(found, pyarrow.StructArray):
        data, stated = (_value(pyarrow.chunked_array([part]), 0) for part in map(found.field, ("data", SHAPE)))
        if data is None or stated is None:
            raise InputError(f"{where} has data or {SHAPE} null, expected both")
        found, shape = data, tuple(stated.to_pylist())
    if _is_list(found.type):
        lengths = set() if found.null_count else set(compute.unique(compute.list_value_length(found)).to_pylist())
        if len(lengths) != 1:
            rows = f"{found.null_count} null" if found.null_count else f"{len(lengths)} lengths of its"
            raise InputError(f"{where} has {rows} rows, expected rows of one length")
        found, shape = found.flatten(), (len(found), *lengths)
    if found.null_count:
        raise InputError(f"{where} has {found.null_count} null values, expected numbers")
    if (
        shape is None
        or any(type(length) is not int or length < 0 for length in shape)
        or math.prod(shape) != len(found)
    ):
        raise InputError(f"{where} has {len(found)} numbers and the shape {list(shape or ())}, expected one that fits")
    return found.to_numpy(zero_copy_only=False).reshape(shape)
