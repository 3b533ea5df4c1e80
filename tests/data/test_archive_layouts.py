"""Layouts for large archives: Parquet, tars and HDF5 files, good ones, damaged ones and those made to do harm."""

from __future__ import annotations

import gzip
import pickle
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.layouts import FLOATS, LAYOUTS, add, lists, npy, parquet

from bcnet_fast.data import parquet as parquet_module
from bcnet_fast.data.features import FeatureArchive, FeatureSequence, ReadLimits, iterate, open_features
from bcnet_fast.errors import InputError

C = 6
VIDEOS = {f"v{n}": np.arange((9 + n) * C, dtype=np.float32).reshape(-1, C) - n for n in range(7)}
GOOD = VIDEOS["v0"]


def opened(path: Path, **more) -> FeatureArchive:
    return open_features(path, feature_dim=C, **more)


def failures(path: Path, limits: ReadLimits | None = None) -> dict[str, str]:
    """Lines about the videos that cannot be read; the others must be good."""
    archive = opened(path, limits=limits or ReadLimits())
    found = {}
    for video, loaded in iterate(archive, archive.ids):
        if isinstance(loaded, FeatureSequence):
            np.testing.assert_array_equal(loaded.features, GOOD)
        else:
            found[video] = str(loaded)
            assert "\n" not in found[video] and str(path) in found[video]
    return found


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        opened(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_arrays_in_this_process_and_in_others(tmp_path, layout):
    archive = opened(LAYOUTS[layout](tmp_path, VIDEOS))
    assert archive.ids == sorted(VIDEOS)
    assert archive.stored("v1").shape == (10, C)
    order = archive.reading_order(archive.ids)
    assert sorted(order) == archive.ids
    for videos, workers in ((archive.ids, 0), (order, 2)):
        for video, found in iterate(pickle.loads(pickle.dumps(archive)), videos, workers=workers):
            np.testing.assert_array_equal(found.features, VIDEOS[video])
    assert all(len(version) == 1 for version in archive.versions().values())
    assert [list(version) for version in archive.versions()["v3"]] == archive.version("v3")


def test_rows_in_reading_order_unpack_each_row_group_once(tmp_path, monkeypatch):
    archive = opened(LAYOUTS["folder_of_fixed"](tmp_path, VIDEOS))
    groups = []
    real = parquet_module._unpacked_bytes
    monkeypatch.setattr(parquet_module, "_unpacked_bytes", lambda *args: groups.append(1) or real(*args))
    for video in archive.reading_order(archive.ids):
        archive.load(video)
    assert len(groups) == 3  # 2 files with 4 and 3 rows, 3 in a row group


def test_a_tensor_type_states_the_shape(tmp_path):
    fixed = pa.list_(pa.float32(), 9 * C)
    storage = pa.array([GOOD.ravel()] * 2, fixed)
    of_arrow = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (9, C)), storage)
    parquet(tmp_path / "arrow.parquet", dict.fromkeys("ab"), of_arrow)
    assert not failures(tmp_path / "arrow.parquet")
    about = {b"ARROW:extension:name": b"ray.data.arrow_tensor_v2", b"ARROW:extension:metadata": f"[9, {C}]".encode()}
    schema = pa.schema([pa.field("id", pa.string()), pa.field("features", fixed, metadata=about)])
    pq.write_table(pa.Table.from_arrays([pa.array(["a", "b"]), storage], schema=schema), tmp_path / "ray.parquet")
    assert not failures(tmp_path / "ray.parquet")


def test_a_bad_row_is_the_failure_of_its_video(tmp_path):
    rows = [GOOD.tolist() for _ in range(6)]
    rows[1], rows[2], rows[3], rows[4] = None, [[1.0] * C, [1.0]], [[1.0] * C, [None] * C], [[1.0] * C, None]
    path = parquet(tmp_path / "a.parquet", dict.fromkeys("abcdef"), pa.array(rows, pa.list_(FLOATS)))
    found = failures(path)
    assert sorted(found) == ["b", "c", "d", "e"]
    for video, text in (("b", "is null"), ("c", "rows of one length"), ("d", "null values"), ("e", "null rows")):
        assert text in found[video]
    wrong = pa.array([GOOD.ravel()] * 3, FLOATS)
    path = parquet(tmp_path / "b.parquet", dict.fromkeys("abc"), wrong, shape=[[9, C], [8, C], [-9, -C]])
    assert sorted(failures(path)) == ["b", "c"]


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"name": ["a"], "features": lists([GOOD])}, "has the columns name, features, expected one of ids"),
        ({"id": ["a"], "array": lists([GOOD])}, "has the columns id, array"),
        ({"id": [1], "features": lists([GOOD])}, "column id has type int64, expected text"),
        ({"id": ["a"], "features": [[["1", "2"]]]}, "expected lists of rows of numbers"),
        ({"id": ["a"], "features": [[[[1.0]]]]}, "expected lists of rows of numbers"),
        ({"id": ["a"], "features": [{"x": [1.0]}]}, "expected lists of rows of numbers"),
        ({"id": ["a"], "features": [[1.0, 2.0]]}, "has flat lists"),
        ({"id": ["a"], "features": [[1.0, 2.0]], "shape": ["1x2"]}, "has flat lists"),
        ({"id": ["a", None], "features": lists([GOOD] * 2)}, "1 rows without an id"),
        ({"id": ["a", "a"], "features": lists([GOOD] * 2)}, "a row of video 'a', expected one for each"),
        ({"id": ["a" * 5000], "features": lists([GOOD])}, "has an id of 5000 bytes"),
    ],
)
def test_columns_that_do_not_fit_are_one_line(tmp_path, columns, text):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert text in refused(tmp_path / "a.parquet")


def test_a_row_group_is_no_larger_than_a_video_may_be(tmp_path):
    """8 MB of zeros take some hundred bytes; ids that repeat a long text take none but once."""
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2_000_000 // C * C, np.float32)), C)
    bomb = pa.ListArray.from_arrays(pa.array([0, len(zeros)], pa.int32()), zeros)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a"], "features": bomb}), path, compression="zstd")
    assert path.stat().st_size < 50_000
    text = failures(path, ReadLimits(max_video_gib=0.005))["a"]
    assert "has a row group of" in text and "--max-video-gib" in text
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(9_000, np.int32)), pa.array(["a" * 1_000_000]))
    pq.write_table(pa.table({"id": ids, "features": lists([GOOD[:0]] * 9_000)}), path, compression="zstd")
    assert "has an id of 1000000 bytes" in refused(path)


@pytest.mark.parametrize("cut", [4, 500, -20])
def test_a_damaged_parquet_file_is_one_line(tmp_path, cut):
    path = LAYOUTS["nested"](tmp_path, VIDEOS)
    path.write_bytes(path.read_bytes()[:cut])
    refused(path)


def write_tar(path: Path, fill) -> Path:
    with tarfile.open(path, "w") as tar:
        add(tar, "good.npy", npy(GOOD))
        fill(tar)
        add(tar, "late.npy", npy(GOOD))
    return path


@pytest.mark.parametrize(
    ("about", "text"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is a link"),
        ({"type": tarfile.LNKTYPE, "linkname": "good.npy"}, "is a link"),
        ({"type": tarfile.CHRTYPE}, "is a device"),
        ({"type": tarfile.FIFOTYPE}, "is a device"),
    ],
)
def test_a_member_that_is_no_file_is_the_failure_of_its_video(tmp_path, about, text):
    path = write_tar(tmp_path / "a.tar", lambda tar: add(tar, "bad.npy", b"", **about))
    found = failures(path)
    assert sorted(found) == ["bad"] and text in found["bad"]


def test_members_are_read_where_they_are_whatever_their_names_say(tmp_path):
    def fill(tar):
        for name in ("../../up.npy", "/root.npy", "x" * 300 + "/long.npy", "./.hidden.npy", "._good.npy", "dir.npy/"):
            add(tar, name, npy(GOOD))
        add(tar, "folder.npy", b"", type=tarfile.DIRTYPE)

    path = write_tar(tmp_path / "a.tar", fill)
    assert not failures(path)
    assert opened(path).ids == ["good", "late", "long", "root", "up"]
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_members_are_failures_of_their_videos(tmp_path):
    huge = npy(GOOD).replace(b"(9, 6), ", b"(999999999, 6), ".ljust(8))
    contents = {"cut": npy(GOOD)[:-8], "object": npy(np.array([{}], object)) + b"x", "text": b"text", "huge": huge}

    def fill(tar):
        for name, content in contents.items():
            add(tar, f"{name}.npy", content)

    found = failures(write_tar(tmp_path / "a.tar", fill))
    assert sorted(found) == ["cut", "huge", "object", "text"]


def sparse(tar: tarfile.TarFile) -> None:
    headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1", "GNU.sparse.size": "999"}
    add(tar, "bad.npy", b"x", pax_headers=headers)


def test_a_sparse_member_is_the_failure_of_its_video(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "good.npy", npy(GOOD))
        sparse(tar)
    assert "is sparse" in failures(path)["bad"]


def with_size(path: Path, field: bytes) -> Path:
    """The size of the second member, in its header, with a checksum that fits."""
    content = bytearray(write_tar(path, lambda tar: add(tar, "bad.npy", npy(GOOD))).read_bytes())
    begin = content.index(b"bad.npy\0")
    content[begin + 124 : begin + 136] = field
    content[begin + 148 : begin + 156] = b" " * 8
    content[begin + 148 : begin + 156] = b"%06o\0 " % sum(content[begin : begin + 512])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "field",
    [b"77777777777\0", b"\x80" + b"\0" * 3 + b"\xff" * 8, b"\xff" * 11 + b"\x00", b"\xff" * 8 + b"\xff\xff\xf0\x00"],
    ids=["beyond the end", "beyond 2**63", "negative", "back to the first member"],
)
def test_a_size_that_lies_ends_in_one_line(tmp_path, field):
    refused(with_size(tmp_path / "a.tar", field))


def test_a_header_that_asks_for_memory_is_refused(tmp_path):
    """The names of a member may be a separate block, here of 8 GiB in a file of holes."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "good.npy", npy(GOOD))
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    with open(path, "r+b") as file:
        file.seek(512 + -(-len(npy(GOOD)) // 512) * 512)
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(9 << 30)
    assert "a header has 8589934592 bytes" in refused(path)


@pytest.mark.parametrize("cut", [100, 600, 1024, 1500])
def test_a_cut_tar_is_refused_because_its_videos_are_unknown(tmp_path, cut):
    path = LAYOUTS["plain_tar"](tmp_path, VIDEOS)
    path.write_bytes(path.read_bytes()[:cut])
    refused(path)


def test_damage_between_members_is_refused(tmp_path):
    path = LAYOUTS["plain_tar"](tmp_path, VIDEOS)
    content = bytearray(path.read_bytes())
    content[content.index(b"v3.npy") + 150] ^= 1
    path.write_bytes(content)
    assert "is damaged or cut at byte 3072" in refused(path)


def test_packed_and_joined_tars_are_refused(tmp_path):
    plain = LAYOUTS["plain_tar"](tmp_path, VIDEOS).read_bytes()
    for name in ("a.tar.gz", "a.tgz", "b.tar"):
        (tmp_path / name).write_bytes(gzip.compress(plain))
        assert "is compressed (gzip), expected a plain tar" in refused(tmp_path / name)
    (tmp_path / "joined.tar").write_bytes(plain + bytes(1 << 20) + plain)
    assert "has data after its end" in refused(tmp_path / "joined.tar")


def test_one_video_in_two_members_is_one_line(tmp_path):
    path = write_tar(tmp_path / "a.tar", lambda tar: add(tar, "x/good.npy", npy(GOOD)))
    assert "member of video 'good', expected one for each" in refused(path)


def test_an_hdf5_file_of_a_folder_has_one_video(tmp_path):
    for name, content in (("good", {"anything": GOOD}), ("bad", {"a": GOOD, "b": GOOD}), ("late", {"feats": GOOD})):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            for key, value in content.items():
                file[key] = value
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("feats", (1 << 30, C), "f4", chunks=(1 << 16, C), compression="gzip")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["feats"] = h5py.ExternalLink("good.h5", "anything")
    (tmp_path / "text.h5").write_bytes(b"text")
    found = failures(tmp_path)
    assert sorted(found) == ["bad", "bomb", "link", "text"]
    assert "has the arrays a, b" in found["bad"] and "--max-video-gib" in found["bomb"] and "link" in found["link"]


def test_a_folder_of_two_kinds_is_one_line(tmp_path):
    LAYOUTS["nested"](tmp_path, VIDEOS)
    LAYOUTS["plain_tar"](tmp_path, VIDEOS)
    assert "expected one kind" in refused(tmp_path)


def test_without_pyarrow_parquet_is_one_line_that_names_its_extra(tmp_path, monkeypatch):
    path = LAYOUTS["nested"](tmp_path, VIDEOS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"pip install 'bcnet_fast\[parquet\]'"):
        opened(path)


def test_a_part_of_a_member_ends_with_it(tmp_path):
    """Behind a member that is too short lies the next one, whose bytes must not be taken."""
    short = npy(GOOD)[: -4 * C]
    path = write_tar(tmp_path / "a.tar", lambda tar: add(tar, "short.npy", short))
    assert sorted(failures(path)) == ["short"]


def test_a_tar_whose_members_share_very_many_headers_is_refused(tmp_path):
    headers = {f"x{number}": "y" for number in range(1_001)}
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT, pax_headers=headers) as tar:
        add(tar, "a.npy", npy(np.zeros((9, C), np.float32)))
    with pytest.raises(InputError, match=r"x.tar has 1001 global headers, expected a tar with .npy members"):
        open_features(tmp_path / "x.tar", feature_dim=C)
