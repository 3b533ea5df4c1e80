"""Proposals as columns in Parquet files: one row a proposal, in the order of videos and ranks.

column: video text, rank int32 from 1 for the best of a video, start and end float64 in seconds, score float64,
label text or null.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..storage.optional import require_pyarrow

COLUMNS = ("video", "rank", "start", "end", "score", "label")
SUFFIX = ".parquet"
LARGEST_TABLE = 2 << 30  # bytes of the columns that are read from a file
_LONGEST_TEXT = 4096  # bytes of an id or a label


class Columns(NamedTuple):
    """Proposals of one video, best first. segments: [n, 2] float64, seconds; scores: [n] float64; labels: n or None."""

    segments: np.ndarray
    scores: np.ndarray
    labels: Sequence[str] | np.ndarray | None = None

    def entries(self) -> list[str]:
        """The entries of a submission as JSON: the bytes of `json.dumps`, in a third of its time.

        ValueError: a number is NaN or infinite, which JSON does not have.
        """
        if not (np.isfinite(self.segments).all() and np.isfinite(self.scores).all()):
            raise ValueError("segments and scores have NaN or infinity, expected finite numbers")
        rows = zip(self.scores.tolist(), *self.segments.T.tolist(), strict=True)
        if self.labels is None:
            return [f'{{"score": {score!r}, "segment": [{start!r}, {end!r}]}}' for score, start, end in rows]
        names = {label: json.dumps(label) for label in set(map(str, self.labels))}
        return [
            f'{{"score": {score!r}, "segment": [{start!r}, {end!r}], "label": {names[str(label)]}}}'
            for (score, start, end), label in zip(rows, self.labels, strict=True)
        ]

    def json(self) -> str:
        """As in a submission."""
        return f"[{', '.join(self.entries())}]"

    def columns(self) -> Columns:
        return self


def _schema() -> Any:
    arrow = require_pyarrow()
    kinds = (arrow.string(), arrow.int32(), *[arrow.float64()] * 3, arrow.string())
    return arrow.schema(list(zip(COLUMNS, kinds, strict=True)))


@contextlib.contextmanager
def parquet_writer(path: str | os.PathLike, about: dict[str, str]) -> Iterator[Any]:
    """A writer of tables with the columns. about: stored in the file's footer, as text by names."""
    writer = require_pyarrow().parquet.ParquetWriter(
        path, _schema(), compression="zstd", store_schema=False, write_page_checksum=True
    )
    with writer:
        yield writer
        writer.add_key_value_metadata(about)


def not_utf8(video: str, labels: Iterable[str] | None) -> str | None:
    """A message if the video's name or a label is not UTF-8, as file names need not be; else None."""
    for name in (video, *(() if labels is None else set(map(str, labels)))):
        try:
            name.encode()
        except UnicodeEncodeError:
            return f"{name!r} is not UTF-8"
    return None


def parquet_table(videos: Sequence[tuple[str, Columns]]) -> Any:
    """The rows of some videos as an Arrow table."""
    arrow = require_pyarrow()
    counts = [len(columns.scores) for _, columns in videos]
    segments = np.concatenate([columns.segments for _, columns in videos] or [np.empty((0, 2))]).reshape(-1, 2)
    labels: list[str | None] = []
    for count, (_, columns) in zip(counts, videos, strict=True):
        labels += [None] * count if columns.labels is None else list(map(str, columns.labels))
    names = arrow.array([name for name, _ in videos], arrow.string())
    ranks = np.concatenate([np.arange(1, count + 1) for count in counts] or [np.empty(0)])
    columns = [
        names.take(arrow.array(np.repeat(np.arange(len(videos)), counts))),
        arrow.array(ranks.astype(np.int32)),
        arrow.array(np.ascontiguousarray(segments[:, 0])),
        arrow.array(np.ascontiguousarray(segments[:, 1])),
        arrow.array(np.concatenate([columns.scores for _, columns in videos] or [np.empty(0)])),
        arrow.array(labels, arrow.string()),
    ]
    return arrow.Table.from_arrays(columns, schema=_schema())


def is_text(kind: Any) -> bool:
    """Whether a type of Arrow is text, stored as a dictionary or not."""
    types = require_pyarrow().types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def require_plain(file: Any, names: Sequence[str], groups: Sequence[int]) -> None:
    """ValueError: columns of these row groups are no plain numbers or text, or too large for memory."""
    types = require_pyarrow().types
    for name in names:
        kind = file.schema_arrow.field(name).type
        number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)
        if not (number or is_text(kind) or types.is_null(kind)):
            raise ValueError(f"column {name} has type {kind}")
    facts = [file.metadata.row_group(group) for group in groups]
    columns = [group.column(number) for group in facts for number in range(group.num_columns)]
    size = sum(max(one.total_uncompressed_size, 8 * one.num_values) for one in columns if one.path_in_schema in names)
    if size > LARGEST_TABLE:
        raise ValueError(f"{size / 2**30:.3g} GiB of columns, at most {LARGEST_TABLE >> 30} are read")


def texts(column: Any) -> list[str | None]:
    """The values of a column that is read as a dictionary: equal ones are in memory once.

    ValueError: the column has another type, or a value is longer than an id or a label can be.
    """
    types, compute = require_pyarrow().types, importlib.import_module("pyarrow.compute")
    if not (types.is_dictionary(column.type) and is_text(column.type)):
        raise ValueError(f"ids or labels have type {column.type}")
    longest = compute.max(compute.binary_length(column.dictionary)).as_py() or 0
    if longest > _LONGEST_TEXT:
        raise ValueError(f"an id or a label has {longest} bytes, at most {_LONGEST_TEXT} are read")
    names = [*column.dictionary.to_pylist(), None]
    return [names[index] for index in column.indices.fill_null(len(names) - 1).to_pylist()]
