"""One archive in every layout for many videos: Parquet, tars, HDF5 files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Videos = dict[str, np.ndarray]
FLOATS = pa.list_(pa.float32())


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes, **about) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in about.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def parquet(path: Path, videos: Videos, features: pa.Array, **more) -> Path:
    pq.write_table(pa.table({"id": list(videos), "features": features, **more}), path, row_group_size=3)
    return path


def lists(arrays: Iterable[np.ndarray], inner: pa.DataType = FLOATS) -> pa.Array:
    """The array layout of Hugging Face datasets and pandas."""
    return pa.array([array.tolist() for array in arrays], pa.list_(inner))


def nested(folder: Path, videos: Videos) -> Path:
    return parquet(folder / "nested.parquet", videos, lists(videos.values()))


def folder_of_fixed(folder: Path, videos: Videos) -> Path:
    """Two files of rows of fixed length, in another order than that of the ids."""
    (folder / "fixed").mkdir()
    names, width = sorted(videos, reverse=True), next(iter(videos.values())).shape[1]
    for number in range(2):
        chosen = {name: videos[name] for name in names[number::2]}
        fixed = pa.list_(pa.float32(), width)
        parquet(folder / "fixed" / f"train-{number:05d}.parquet", chosen, lists(chosen.values(), fixed))
    return folder / "fixed"


def flat(folder: Path, videos: Videos) -> Path:
    values = pa.array([array.ravel() for array in videos.values()], FLOATS)
    return parquet(folder / "flat.parquet", videos, values, shape=[list(array.shape) for array in videos.values()])


def ray_tensors(folder: Path, videos: Videos) -> Path:
    """Ray's layout for arrays of different shapes."""
    rows = [{"data": array.ravel().tolist(), "shape": list(array.shape)} for array in videos.values()]
    kind = pa.struct({"data": FLOATS, "shape": pa.list_(pa.int64())})
    return parquet(folder / "ray.parquet", videos, pa.array(rows, kind))


def tars(folder: Path, videos: Videos) -> Path:
    """Two tars with other members beside the features."""
    (folder / "tars").mkdir()
    for number in range(2):
        with tarfile.open(folder / "tars" / f"train-{number:06d}.tar", "w") as tar:
            for name in sorted(videos, reverse=True)[number::2]:
                add(tar, f"./{name}.features.npy", npy(videos[name]))
                add(tar, f"./{name}.label.npy", npy(np.zeros(1)))
                add(tar, f"./{name}.json", b"{}")
    return folder / "tars"


def plain_tar(folder: Path, videos: Videos) -> Path:
    with tarfile.open(folder / "plain.tar", "w") as tar:
        for name, array in videos.items():
            add(tar, f"{name}.npy", npy(array))
    return folder / "plain.tar"


def hdf5_each(folder: Path, videos: Videos) -> Path:
    (folder / "each").mkdir()
    for name, array in videos.items():
        with h5py.File(folder / "each" / f"{name}.h5", "w") as file:
            file["feats"], file["others"] = array, np.zeros(3)
    return folder / "each"


LAYOUTS: dict[str, Callable[[Path, Videos], Path]] = {
    made.__name__: made for made in (nested, folder_of_fixed, flat, ray_tensors, tars, plain_tar, hdf5_each)
}
