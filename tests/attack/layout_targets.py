"""Archives in Parquet, tars and HDF5 files of a video each, with one file to mutate."""

from __future__ import annotations

import functools
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from attack import mutations as m
from attack.target import Target
from helpers import layouts

ROWS, WIDTH = 20, 10
BLOCK = 512  # bytes of a header, and the size that contents are padded to


def targets(root: Path, inference: tuple[str, ...]) -> list[Target]:
    """Write the archives below `root`; `inference` is a command without --features and --output."""
    rng = np.random.default_rng(1)
    arrays = {name: rng.standard_normal((ROWS, WIDTH)).astype(np.float32) for name in ("good", "other", "victim")}
    rows = (m.any_bytes, m.any_bytes, m.whole_file, parquet_column, parquet_column)
    members = (m.any_bytes, m.whole_file, _tar_header, _tar_header, _tar_member)
    found = []
    for layout, own in ((layouts.nested, rows), (layouts.flat, rows), (layouts.plain_tar, members)):
        folder = root / layout.__name__
        folder.mkdir()
        archive = layout(folder, arrays).name
        found.append(_target(folder.name, inference, archive, archive, own))
    folder = root / "hdf5_each"
    (folder / "each").mkdir(parents=True)
    for name, array in arrays.items():
        with h5py.File(folder / "each" / f"{name}.h5", "w") as file:
            file["victim"] = array  # the name that the mutation of HDF5 replaces
    own = (m.any_bytes, m.whole_file, m.hdf5_objects, m.hdf5_objects)
    found.append(_target("hdf5_each", inference, "each", "each/victim.h5", own, kept=("good", "other")))
    return found


def _target(
    folder: str, inference: tuple[str, ...], archive: str, victim: str, own: tuple[m.Mutation, ...], **more: Any
) -> Target:
    run = ("infer", *inference, "--features", archive, "--output", "out.json", "--max-video-gib", "0.0625")
    return Target(f"layout {folder}", folder, run, victim, own, (archive,), ("out.json",), **more)


def parquet_column(rng: random.Random, path: Path) -> str:
    """Write the table again with a column of another type, or with other values in it."""
    table = pq.read_table(path)
    name = rng.choice(table.column_names)
    if rng.random() < 0.4:
        kind, make = "values", functools.partial(_with_another, rng, table[name])
    else:
        kind, of_length = rng.choice(list(_COLUMNS.items()))
        make = functools.partial(of_length, len(table))
    try:
        column = make()
    except (pa.ArrowException, TypeError, ValueError, OverflowError):  # what Arrow cannot hold
        kind, column = "null", pa.nulls(len(table))
    table = table.set_column(table.column_names.index(name), rng.choice((name, name, "x")), column)
    pq.write_table(table, path, compression=rng.choice(("none", "zstd")), row_group_size=rng.choice((1, 2, 1000)))
    return f"{name}: {kind}"


def _with_another(rng: random.Random, column: pa.ChunkedArray) -> pa.Array:
    """The column with one value changed."""
    values = column.to_pylist()
    at = rng.randrange(len(values))
    values[at] = rng.choice(m.NAMES) if isinstance(values[at], str) else m.mutate_tree(rng, values[at])
    return pa.array(values, column.type)


_COLUMNS: dict[str, Callable[[int], Any]] = {
    "null": pa.nulls,
    "text": lambda n: pa.array(["x"] * n),
    "bytes": lambda n: pa.array([b"\xff\x00"] * n),
    "long text": lambda n: pa.DictionaryArray.from_arrays(pa.array([0] * n), pa.array(["a" * 10**7])),
    "numbers": lambda n: pa.array(range(n)),
    "half": lambda n: pa.array([[np.ones(WIDTH, np.float16)] * ROWS] * n),
    "decimals": lambda n: pa.array([[[1] * WIDTH] * ROWS] * n, pa.list_(pa.list_(pa.decimal128(20, 5)))),
    "times": lambda n: pa.array([[[1] * WIDTH] * ROWS] * n, pa.list_(pa.list_(pa.timestamp("ns")))),
    "truth values": lambda n: pa.array([[[True] * WIDTH] * ROWS] * n),
    "texts": lambda n: pa.array([[["1"] * WIDTH] * ROWS] * n),
    "empty": lambda n: pa.array([[]] * n, pa.list_(layouts.FLOATS)),
    "no width": lambda n: pa.array([[[]] * ROWS] * n, pa.list_(layouts.FLOATS)),
    "ragged": lambda n: pa.array([[[1.0] * (1 + i % 3) for i in range(ROWS)]] * n, pa.list_(layouts.FLOATS)),
    "deep": lambda n: pa.array([[[[[1.0]]]]] * n),
    "structures": lambda n: pa.array([{"data": [1.0] * 9, "shape": [3, 3]}] * n),
    "wrong shapes": lambda n: pa.array([{"data": [1.0] * 9, "shape": [2**62, -4]}] * n),
    "shapes": lambda n: pa.array([[2**62, 2**62]] * n),
    "maps": lambda n: pa.array([[("a", 1.0)]] * n, pa.map_(pa.string(), pa.float32())),
    "huge": lambda n: pa.array([np.zeros(2**25, np.float32)] + [np.zeros(1, np.float32)] * (n - 1), layouts.FLOATS),
    "no numbers": lambda n: pa.array([[[float("nan")] * WIDTH] * ROWS] * n, pa.list_(layouts.FLOATS)),
}


def _tar_header(rng: random.Random, path: Path) -> str:
    """Change a field of a member's header, with the checksum that it then has."""
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        begin = rng.choice(tar.getmembers()).offset
    header = content[begin : begin + BLOCK]
    field, (first, last) = rng.choice(list(_FIELDS.items()))
    size = last - first
    value = rng.choice(
        (b"7" * (size - 1), b"0" * size, b"\x80" + b"\xff" * (size - 1), b"\x80" + bytes(size - 1), rng.randbytes(size))
    )
    if field == "type":
        value = rng.choice(b"0123456789DKLMNSVXgx\0\xff").to_bytes(1, "big")
    elif field == "name":
        value = rng.choice(m.NAMES).encode("utf-8", "surrogateescape") + b".npy"
    header[first:last] = value[:size].ljust(size, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    content[begin : begin + BLOCK] = header
    path.write_bytes(content)
    return field


_FIELDS = {"name": (0, 100), "size": (124, 136), "time": (136, 148), "type": (156, 157), "link": (157, 257),
           "magic": (257, 265), "prefix": (345, 500)}  # fmt: skip


def _tar_member(rng: random.Random, path: Path) -> str:
    """Add a member that is no plain file of features."""
    kind = rng.choice(("link", "hard link", "device", "pipe", "folder", "twice", "outside", "declared", "archive"))
    types = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE}
    about: dict[str, Any] = {"type": types[kind], "linkname": "/etc/passwd"} if kind in types else {}
    name, content = f"{rng.choice(('victim', 'more', 'a/b'))}.npy", layouts.npy(np.ones((ROWS, WIDTH), np.float32))
    if kind == "outside":
        name = rng.choice(("../out.npy", "/out.npy", "../../out.json.npy"))
    elif kind == "declared":
        content = content.replace(b"(20, 10), ", b"(2000000000, 10), ".ljust(10))
    elif kind == "folder":
        about = {"type": tarfile.DIRTYPE}
    elif kind == "archive":
        inside = io.BytesIO()
        np.savez_compressed(inside, feats=np.zeros((2**24, WIDTH), np.float32))
        name, content = "more.npz", inside.getvalue()
    with tarfile.open(path, "a") as tar:
        for _ in range(2 if kind == "twice" else 1):
            layouts.add(tar, name, b"" if about else content, **about)
    return kind
