"""Seeded mutations of files: bytes, text, and the structures of the formats that the package reads."""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

Mutation = Callable[[random.Random, Path], str | None]  # changes the file; may return what it did

_BELL = "\x1b[31m\x07"
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, -(2**63), 10**300, 10**4000, 1e-308, 1e308, -1.0, float("nan"), float("inf")),
    *("", "x", "a" * 300, "a\nb", _BELL, "\udce9", "\u202e", "1e999", "../../x", "=1+1", "\0"),
    *([], {}, [[]], [None, None], {"a": 1}, [1, 2, 3], {"": {}}, ["x"] * 1000),
]
NAMES = ["a\nb", _BELL, "\udce9\udcff", "x" * 240, "a b", "-rf", "$x$", "v_v", "\u202ex", "%s", "a,b", '"', "é" * 100]


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, cut, insert, repeat or zero some bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        size = max(len(data), 1)
        at = rng.randrange(size)
        length = rng.choice((1, 2, 4, 8, 64, size // 2 + 1))
        choice = rng.randrange(8)
        if choice == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif choice == 1 and data:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif choice == 2:
            del data[at : at + length]
        elif choice == 3:
            data[at:at] = rng.randbytes(min(length, 1000))
        elif choice == 4:
            data[at:at] = data[at : at + length]
        elif choice == 5:
            data[at : at + length] = bytes(min(length, size))
        elif choice == 6:
            del data[at:]
        else:
            number = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1))
            data[at : at + 8] = struct.pack("<Q", number)
    return bytes(data)


def mutate_tree(rng: random.Random, tree: Any) -> Any:
    """Replace, remove, repeat or rename one node of nested lists and dictionaries."""
    nodes: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack and len(nodes) < 5000:
        node = stack.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            nodes.append((node, key))
            stack.append(node[key])
    if not nodes or rng.random() < 0.03:
        return copy.deepcopy(rng.choice(VALUES))
    parent, key = rng.choice(nodes)
    choice = rng.randrange(6)
    if choice <= 2:
        parent[key] = copy.deepcopy(rng.choice(VALUES))
    elif choice == 3:
        del parent[key]
    elif choice == 4 and isinstance(parent, dict):
        parent[rng.choice([*NAMES, "x"])] = parent.pop(key)
    else:
        nested: Any = parent[key]
        for _ in range(rng.choice((1, 2, 900, 930, 945, 960, 975, 30_000))):
            nested = [nested]
        parent[key] = nested
    return tree


def dump(tree: Any) -> str:
    """JSON of any depth and any number, unlike `json.dumps`."""
    parts: list[str] = []
    stack: list[Any] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, _Text):
            parts.append(node.text)
        elif isinstance(node, list):
            items = [part for item in node for part in (item, _Text(", "))][:-1]
            stack += reversed([_Text("["), *items, _Text("]")])
        elif isinstance(node, dict):
            items = [part for k, v in node.items() for part in (_Text(f"{json.dumps(k)}: "), v, _Text(", "))][:-1]
            stack += reversed([_Text("{"), *items, _Text("}")])
        elif type(node) is int and abs(node) > 10**4000:
            parts.append("1" + "0" * 5000)
        else:
            parts.append(json.dumps(node))
    return "".join(parts)


class _Text:
    def __init__(self, text: str) -> None:
        self.text = text


def any_bytes(rng: random.Random, path: Path) -> None:
    path.write_bytes(mutate_bytes(rng, path.read_bytes()))


def whole_file(rng: random.Random, path: Path) -> str:
    """Replace the file by something else."""
    path.unlink()
    kind = rng.choice(
        ("empty", "random", "zeros", "loop", "dangling", "pipe", "folder", "gzip", "zip", "text", "missing")
    )
    if kind in ("empty", "random", "zeros", "text"):
        content = {"empty": b"", "random": rng.randbytes(500), "zeros": bytes(500), "text": b"hello\n"}
        path.write_bytes(content[kind])
    elif kind == "gzip":
        path.write_bytes(gzip.compress(rng.choice((bytes(2**27), b"[" * 2**20, b"{}", rng.randbytes(10)))))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(rng.choice(("x", "archive/data.pkl", "feats.npy")), rng.randbytes(20))
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    return kind


def json_tree(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    packed = content[:2] == b"\x1f\x8b"
    tree = json.loads(gzip.decompress(content) if packed else content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        tree = mutate_tree(rng, tree)
    text = dump(tree).encode("utf-8", "surrogateescape")
    path.write_bytes(gzip.compress(text) if packed else text)


def csv_cells(rng: random.Random, path: Path) -> None:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    for _ in range(rng.choice((1, 1, 3))):
        row = rng.choice(rows)
        cell = rng.randrange(len(row))
        choice = rng.randrange(5)
        if choice <= 2:
            row[cell] = str(rng.choice([*NAMES, "nan", "inf", "-1", "1e308", "9" * 5000, "", "0x10", "1_0", "\0"]))
        elif choice == 3:
            row.insert(cell, "1")
        else:
            del row[cell]
            row.append("") if not row else None
    path.write_bytes("\n".join(map(",".join, rows)).encode("utf-8", "surrogateescape"))


def words(rng: random.Random, path: Path) -> None:
    """Replace, remove or repeat words of a text whose words are separated by blanks."""
    rows = [line.split(" ") for line in path.read_text().split("\n")]
    odd = [
        *NAMES,
        "nan",
        "inf",
        "-1",
        "0",
        "1",
        "0.5",
        "1e308",
        "1e-308",
        "2147483647",
        "99999999",
        "9" * 5000,
        "",
        "\0",
    ]
    for _ in range(rng.choice((1, 1, 3))):
        row = rng.choice(rows)
        cell = rng.randrange(len(row))
        choice = rng.randrange(4)
        if choice <= 1:
            row[cell] = rng.choice(odd)
        elif choice == 2:
            row.insert(cell, row[cell])
        else:
            row[cell : cell + 1] = []
            row += [] if row else [""]
    path.write_bytes("\n".join(map(" ".join, rows)).encode("utf-8", "surrogateescape"))


def lines(rng: random.Random, path: Path) -> None:
    """Remove, repeat, exchange or cut whole lines."""
    rows = path.read_bytes().split(b"\n")
    for _ in range(rng.choice((1, 1, 3))):
        at, other = rng.randrange(len(rows)), rng.randrange(len(rows))
        choice = rng.randrange(4)
        if choice == 0:
            del rows[at]
            rows = rows or [b""]
        elif choice == 1:
            rows.insert(at, rows[other])
        elif choice == 2:
            rows[at], rows[other] = rows[other], rows[at]
        else:
            rows[at] = rows[at][: rng.randrange(len(rows[at]) + 1)]
    path.write_bytes(b"\n".join(rows))


def toml_values(rng: random.Random, path: Path) -> None:
    hostile = ["1" * 5000, "0x" + "f" * 9000, "[" * 5000 + "]" * 5000, "1e308", "nan", "-inf", '"a\\nb"', "1979-05-27"]
    hostile += ["{a = 1}", "[]", "true", "9223372036854775808", '"\\u001b[31m"', "'", '"""', "1e-308", "1_0", "[1, 2]"]
    lines = path.read_text().splitlines()
    at = rng.randrange(len(lines))
    name = lines[at].partition("=")[0]
    added = [
        f"{name}= {rng.choice(hostile)}",
        rng.choice(hostile),
        "[" + rng.choice(NAMES) + "]",
        f"{'a.' * 3000}b = 1",
    ]
    lines[at] = rng.choice(added)
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))


def npy_bytes(rng: random.Random, values: bytes = bytes(2000)) -> bytes:
    """An .npy file with a header of its own."""
    shapes = [
        "(20, 10)",
        "(20, 10",
        "(10**30, 10)",
        "(99999999999999999999, 10)",
        "(2147483648, 10)",
        "(-20, 10)",
        "()",
    ]
    shapes += ["(20L, 10L)", "(0, 10)", "(20.0, 10)", "(True, 10)", "[20, 10]", "(" * 90 + ")" * 90, "'x'", "(1,) * 99"]
    types = [
        "'<f4'",
        "'>f8'",
        "'|O'",
        "'<U9'",
        "'<c8'",
        "'|V0'",
        "'<M8[s]'",
        "['<f4']",
        "[('a', '<f4')]",
        "None",
        "'f99'",
    ]
    types += ["'|b1'", "'<f2'", "'<i8'", "'" + "x" * 200 + "'", "[('a', '|O')]", "__import__('os')", "'<f16'"]
    order = rng.choice(["False", "True", "1", "None"])
    shape, kind = rng.choice(shapes), rng.choice(types)
    header = rng.choice(
        [f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"] * 6
        + ["", "{", "(" * 5000, "{'descr': '<f4'}", "'" * 3, "\\", "{'shape': (20, 10)}\0", "1" * 5000]
    ).encode("latin-1")
    version = rng.choice((1, 1, 1, 2, 3, 9))
    length = struct.pack("<H" if version == 1 else "<I", min(len(header), 65535))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + values


def npy_header(rng: random.Random, path: Path) -> None:
    path.write_bytes(npy_bytes(rng))


def zip_members(rng: random.Random, path: Path) -> None:
    """Change the members of a zip archive (.npz, .pt), with right checksums, or its directory."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    choice = rng.randrange(8)
    if choice <= 2:
        members[name] = mutate_bytes(rng, members[name])
    elif choice == 3 and path.suffix == ".npz":
        members[name] = npy_bytes(rng)
    elif choice == 4:
        members[rng.choice(("feats.npy", "features.npy", "../x.npy", "archive/data.pkl"))] = members[name]
    elif choice == 5:
        members[name] = members[name] + bytes(2**28)  # packed, a few KiB
    elif choice == 6:
        del members[name]
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of repeated names
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if choice == 5 else method, compresslevel=1) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    if choice == 7:
        content = bytearray(path.read_bytes())
        at = content.rindex(b"PK\x01\x02") + rng.choice((8, 10, 16, 20, 24, 28, 42))
        content[at] ^= rng.choice((1, 8, 77))
        path.write_bytes(content)


class _Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def torch_objects(rng: random.Random, path: Path) -> None:
    """Save something other than a plain tensor: under `state_dict` where the file has one."""
    plain = torch.ones(20, 10)
    nested: Any = []
    for _ in range(900):
        nested = [nested]
    choices: list[Callable[[], Any]] = [
        lambda: plain.to("meta"),
        lambda: plain.to_sparse(),
        lambda: torch.complex(plain, plain).conj(),
        lambda: torch.complex(plain, plain).conj().imag,
        lambda: torch.zeros(1).expand(2**35, 10),
        lambda: torch.zeros(20, 10, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        lambda: plain.to(torch.float8_e5m2),
        lambda: plain.bool(),
        lambda: torch.zeros(0, 10),
        lambda: torch.tensor(3.0),
        lambda: torch.nested.nested_tensor([plain, plain]),
        lambda: torch.quantize_per_tensor(plain, 0.1, 0, torch.quint8),
        lambda: torch.nn.Parameter(plain),
        lambda: torch.nn.Linear(3, 3),
        lambda: _Calls(os.system, "exit 1"),
        lambda: _Calls(eval, "open('../executed', 'w')"),
        lambda: _Calls(torch.zeros, 2**40),
        lambda: nested,
        lambda: {1: plain, ("a", "b"): plain},
        lambda: rng.choice(VALUES),
        lambda: dict.fromkeys(NAMES, plain),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kinds that are deprecated
        value = rng.choice(choices)()
        if path.name.endswith(".pth.tar"):
            state = torch.load(path, weights_only=True)["state_dict"]
            state[rng.choice([*state, *NAMES])] = value
            value = rng.choice(({"state_dict": state}, {"state_dict": value}, value))
        old = rng.random() < 0.3
        try:
            torch.save(value, path, _use_new_zipfile_serialization=not old)
        except Exception:  # kinds that this PyTorch does not save
            path.write_bytes(pickle.dumps(VALUES[:5]))


def hdf5_objects(rng: random.Random, path: Path) -> str:
    """Add an object that is not a plain data set, or replace a video with it."""
    kind = rng.choice(_HDF5)
    with h5py.File(path, "a") as file:
        name = rng.choice(("victim", "group/victim", "more")).encode()
        if name == b"victim":
            del file["victim"]
        with contextlib.suppress(ValueError, TypeError, OSError, RuntimeError):  # what h5py does not write
            _HDF5_KINDS[kind](rng, file, name)
    return kind


def _declared(rng: random.Random, file: h5py.File, name: bytes) -> None:
    shape = rng.choice(((2**33, 10), (10, 2**33), (20, 10), (2**40,), (0, 10), ()))
    dtype = rng.choice(("f4", "f8", "i1", "c8", "S9", "?", "f2", "O", [("a", "f4")]))
    dtype = h5py.string_dtype() if dtype == "O" else np.dtype(dtype)
    chunked = bool(shape) and 0 not in shape and rng.random() < 0.6
    chunks = tuple(min(rng.choice((1, 64, 2**28)), 2**28) for _ in shape) if chunked else None
    limits = tuple(None for _ in shape) if chunks else None
    if chunks and np.prod([float(length) for length in chunks]) * dtype.itemsize >= 2**32:
        chunks = limits = None
    compression = "gzip" if chunks and rng.random() < 0.5 else None
    file.create_dataset(name, shape, dtype, chunks=chunks, maxshape=limits, compression=compression)


def _virtual(rng: random.Random, file: h5py.File, name: bytes) -> None:
    layout = h5py.VirtualLayout((20, 10), np.float32)
    layout[:] = h5py.VirtualSource(rng.choice((".", "nowhere.h5")), rng.choice((name.decode(), "good")), (20, 10))
    file.create_virtual_dataset(name.decode(), layout)


def _external(rng: random.Random, file: h5py.File, name: bytes) -> None:
    file.create_dataset(name, (20, 10), np.float32, external=[("/etc/passwd", 0, 800)])


def _time_type(rng: random.Random, file: h5py.File, name: bytes) -> None:
    h5py.h5d.create(file.id, name.rpartition(b"/")[2], h5py.h5t.UNIX_D64BE, h5py.h5s.create_simple((20, 10)))


def _link(rng: random.Random, file: h5py.File, name: bytes) -> None:
    target = rng.choice(("/" + name.decode(), "/nowhere", "/", "/good", "/group"))
    external = h5py.ExternalLink(rng.choice(("nowhere.h5", "/etc/passwd", "/dev/zero")), "/x")
    file[name] = rng.choice((h5py.SoftLink(target), external))


def _named(rng: random.Random, file: h5py.File, name: bytes) -> None:
    odd = rng.choice(NAMES).replace("/", "_").encode("utf-8", "surrogateescape")
    file[rng.choice((odd, b"group/" + odd, odd + b"/" + odd, odd + b"/features"))] = np.ones((20, 10), np.float32)


def _group_cycle(rng: random.Random, file: h5py.File, name: bytes) -> None:
    file.require_group("group")["cycle"] = file["/"]


_HDF5_KINDS: dict[str, Callable[[random.Random, h5py.File, bytes], None]] = {
    "declared": _declared,
    "virtual": _virtual,
    "external": _external,
    "time type": _time_type,
    "link": _link,
    "named": _named,
    "cycle": _group_cycle,
}
_HDF5 = [*_HDF5_KINDS, "declared", "declared", "named"]


def safetensors_header(rng: random.Random, path: Path) -> None:
    """Change the header of a safetensors file: the configuration in its metadata, or names, shapes and offsets."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    (kind, facts), *_ = header["__metadata__"].items()
    if rng.random() < 0.75:
        tree = json.loads(facts)
        for _ in range(rng.choice((1, 1, 2))):
            tree = mutate_tree(rng, tree) if rng.random() < 0.5 else _larger(rng, tree)
        header["__metadata__"][kind] = dump(tree)
    else:
        header = mutate_tree(rng, header)
    text = dump(header).encode("utf-8", "surrogateescape")
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def _larger(rng: random.Random, tree: Any) -> Any:
    """Another value of the right type for a setting."""
    sections = [value for value in tree.values() if isinstance(value, dict)] if isinstance(tree, dict) else []
    section = rng.choice(sections or [{}])
    if isinstance(section.get("config"), dict):
        return _larger(rng, section["config"]) and tree
    for name in rng.sample(sorted(section), min(2, len(section))):
        if type(section[name]) is int:
            section[name] = rng.choice((1, 2, 3, 100, 1000, 4096, 10**5, 10**7, 2**31 - 1))
        elif type(section[name]) is float:
            section[name] = rng.choice((0.0, 1e-308, 1e-9, 1e9, 1e308, -1.0, 0.5))
        elif type(section[name]) is bool:
            section[name] = not section[name]
    return tree


def safetensors_weights(rng: random.Random, path: Path) -> None:
    """Change values only: NaN, infinity and others."""
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    for _ in range(rng.choice((1, 50))):
        at = 8 + length + 4 * rng.randrange((len(content) - 8 - length) // 4)
        content[at : at + 4] = struct.pack("<f", rng.choice((np.nan, np.inf, 3e38, -3e38, 1e-40, 0.0)))
    path.write_bytes(content)


def class_score_arrays(rng: random.Random, path: Path) -> None:
    arrays: dict[str, Any] = {
        "scores": rng.choice(
            (np.ones((2, 2)), np.full((2, 2), np.nan), np.ones(2), np.ones((2, 2), complex), -np.ones((2, 2)))
        ),
        "videos": rng.choice(
            (np.array(["a", "b"]), np.array(["a", "a"]), np.arange(2), np.array([NAMES[0], NAMES[1]]))
        ),
        "labels": rng.choice((np.array(["x", "y"]), np.array("x"), np.array([b"x", b"y"]), np.ones((2, 2)))),
    }
    for name in rng.sample(sorted(arrays), rng.choice((0, 0, 1, 2))):
        del arrays[name]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(buffer.getvalue())
