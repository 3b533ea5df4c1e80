"""Readers of feature files: every layout gives the same array, and every damaged file one clear line."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.sweeps import sweep
from torch.utils.data import DataLoader

from bcnet_fast.data import features as features_module
from bcnet_fast.data.features import FeatureArchive, FeatureSequence, iterate, open_features
from bcnet_fast.data.workers import read_in_order
from bcnet_fast.errors import InputError

C = 6


def _write(path: Path, array: np.ndarray) -> None:
    """Write one array in the format of the suffix; an HDF5 file gets it as dataset `a`."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, feats=array)
    elif path.suffix == ".csv":
        np.savetxt(path, array, delimiter=",", fmt="%.9g")
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(array.astype(array.dtype.newbyteorder("="))), path)
    else:
        with h5py.File(path, "w") as file:
            file["a"] = array


def _two_stream(folder: Path, videos: dict[str, int], rng: np.random.Generator, subset: str = "test") -> dict:
    """The public THUMOS14 files: a row for each frame, flow one frame shorter than RGB."""
    arrays = {}
    with h5py.File(folder / f"flow_{subset}.h5", "w") as flow, h5py.File(folder / f"rgb_{subset}.h5", "w") as rgb:
        for video, frames in videos.items():
            arrays[video] = rng.standard_normal((frames - 1, C)), rng.standard_normal((frames, C))
            flow[video], rgb[video] = (array.astype(np.float32) for array in arrays[video])
    return {
        video: np.concatenate([flow, rgb[: len(flow)]], axis=1)[::5].astype(np.float32)
        for video, (flow, rgb) in arrays.items()
    }


@pytest.fixture
def archive(tmp_path: Path, rng: np.random.Generator) -> FeatureArchive:
    """An HDF5 archive of twelve videos, of which `v05` has a NaN."""
    with h5py.File(tmp_path / "archive.h5", "w") as file:
        for number in range(12):
            array = rng.standard_normal((20 + number, C)).astype(np.float32)
            if number == 5:
                array[3, 2] = np.nan
            file[f"v{number:02d}"] = array
    return open_features(tmp_path / "archive.h5", feature_dim=C)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", ">f4"])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".pt", ".h5"])
def test_every_format_gives_the_stored_values(tmp_path: Path, rng: np.random.Generator, suffix: str, dtype: str):
    array = (10 * rng.standard_normal((9, C))).astype(dtype)
    _write(tmp_path / f"a{suffix}", array)
    archive = open_features(tmp_path / f"a{suffix}", feature_dim=C)
    sequence = archive.load("a")
    assert archive.ids == ["a"]
    assert sequence.features.dtype == np.float32 and sequence.features.flags.c_contiguous
    np.testing.assert_array_equal(sequence.features, array.astype(np.float32))
    assert (sequence.orientation, sequence.rows_in_file, sequence.note) == ("[T, C]", 9, None)
    assert sequence.path.startswith(str(tmp_path / f"a{suffix}"))
    told = "float32" if suffix == ".csv" or (suffix, dtype) == (".pt", ">f4") else dtype
    assert sequence.dtype == told
    assert archive.stored("a").shape == (9, C)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("suffix", [".npy", ".h5"])
def test_every_nth_row_in_either_orientation(tmp_path, rng, monkeypatch, suffix, every):
    monkeypatch.setattr(features_module, "_BLOCK_ROWS", 4)  # several blocks, the last one short
    array = rng.standard_normal((32, C)).astype(np.float32)
    for stored, orientation in ((array, "[T, C]"), (array.T, "[C, T]"), (array[None], "[T, C]")):
        path = tmp_path / f"a{suffix}"
        _write(path, stored)
        sequence = open_features(path, feature_dim=C, every=every).load("a")
        np.testing.assert_array_equal(sequence.features, array[::every])
        assert (sequence.orientation, sequence.rows_in_file) == (orientation, 32)


def test_square_array_is_taken_as_rows_of_snippets_and_says_so(tmp_path, rng):
    array = rng.standard_normal((C, C)).astype(np.float32)
    np.save(tmp_path / "a.npy", array)
    sequence = open_features(tmp_path / "a.npy", feature_dim=C).load("a")
    np.testing.assert_array_equal(sequence.features, array)
    assert sequence.note == "both axes have length 6; using [T, C]"


def test_folder_lists_sorted_ids_and_ignores_other_files(tmp_path, rng):
    for name in ("b", "a.1", "v_c"):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((4, C)))
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".hidden.npy").write_text("x")
    assert open_features(tmp_path, feature_dim=C).ids == ["a.1", "b", "v_c"]
    stripped = open_features(tmp_path, feature_dim=C, strip_prefix=True)
    assert stripped.ids == ["a.1", "b", "c"]
    assert stripped.load("c").path == str(tmp_path / "v_c.npy")


@pytest.mark.parametrize("header", ["f0,f1,f2,f3,f4,f5\n", "0,1,2,3,4,5\n", "\ufefff0,f1,f2,f3,f4,f5\n", "# x\n"])
def test_csv_header_is_no_row(tmp_path, header):
    (tmp_path / "a.csv").write_text(header + "1,2,3,4,5,6\n 7,8,9,1e1,-1,0\n", encoding="utf-8")
    sequence = open_features(tmp_path / "a.csv", feature_dim=C).load("a")
    np.testing.assert_array_equal(sequence.features, [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, -1, 0]])


def test_pt_may_be_bfloat16_and_a_dict_with_other_things(tmp_path, rng):
    tensor = torch.from_numpy(rng.standard_normal((5, C))).bfloat16()
    torch.save({"features": tensor, "mask": torch.ones(5), "fps": 30.0}, tmp_path / "a.pt")
    sequence = open_features(tmp_path / "a.pt", feature_dim=C).load("a")
    np.testing.assert_array_equal(sequence.features, tensor.float().numpy())


def test_hdf5_groups_are_subsets_or_videos(tmp_path, rng):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["plain"] = rng.standard_normal((4, C))
        file["val/inside"] = rng.standard_normal((5, C))
        file["own/features"] = rng.standard_normal((6, C))
        file["own/labels"] = np.zeros(6)
    archive = open_features(tmp_path / "a.hdf5", feature_dim=C)
    assert archive.ids == ["inside", "own", "plain"]
    assert [len(archive.load(video).features) for video in archive.ids] == [5, 6, 4]


def test_two_stream_layout_takes_every_fifth_row_flow_first(tmp_path, rng):
    expected = _two_stream(tmp_path, {"video_test_0000004": 101, "video_test_0000006": 106}, rng)
    expected |= _two_stream(tmp_path, {"video_validation_0000051": 33}, rng, "val")
    archive = open_features(tmp_path, feature_dim=2 * C)
    assert archive.ids == sorted(expected)
    assert (archive.every, archive.row_stride) == (5, 1.0)
    for video, array in expected.items():
        sequence = archive.load(video)
        np.testing.assert_array_equal(sequence.features, array)
    assert sequence.rows_in_file == 32
    every_frame = open_features(tmp_path, feature_dim=2 * C, every=1).load("video_test_0000004")
    assert every_frame.features.shape == (100, 2 * C)


def test_two_stream_layout_reports_what_is_missing(tmp_path, rng):
    _two_stream(tmp_path, {"a": 50, "b": 50}, rng)
    with h5py.File(tmp_path / "rgb_test.h5", "a") as file:
        del file["b"]
    archive = open_features(tmp_path, feature_dim=2 * C)
    loaded = dict(iterate(archive, archive.ids))
    assert isinstance(loaded["a"], FeatureSequence)
    assert str(loaded["b"]) == f"{tmp_path / 'rgb_test.h5'}: b does not exist, expected a dataset of features"
    with pytest.raises(InputError, match=r"flow_test.h5 \+ rgb_test.h5: a has shape \[49, 12\], expected 99 channels"):
        open_features(tmp_path, feature_dim=99).load("a")

    _two_stream(tmp_path, {"a": 50}, rng, "val")
    with pytest.raises(InputError, match="video 'a' is in val and test, expected one subset"):
        open_features(tmp_path, feature_dim=2 * C)
    (tmp_path / "rgb_val.h5").unlink()
    with pytest.raises(InputError, match=r"has flow_val.h5 but not rgb_val.h5, expected both"):
        open_features(tmp_path, feature_dim=2 * C)


def _with(value: float, positions: list[int]) -> np.ndarray:
    array = np.ones((9, C))
    array.flat[positions] = value
    return array


def _refused(path: Path, video: str | None = None) -> str:
    """The one line with which opening or loading fails."""
    with pytest.raises(InputError) as caught:
        archive = open_features(path, feature_dim=C)
        archive.load(video or archive.ids[0])
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".pt", ".h5"])
@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((9, C + 1)), "has shape [9, 7], expected 6 channels"),
        (np.zeros((1, C)), "has 1 snippet, expected at least 2"),
        (_with(np.nan, [20]), "has 1 NaN and 0 infinite values, the first at row 3, channel 2"),
        (_with(-np.inf, [51, 52, 53]), "has 0 NaN and 3 infinite values, the first at row 8, channel 3"),
    ],
    ids=["width", "one-snippet", "nan", "inf"],
)
def test_unusable_values_are_refused(tmp_path, suffix, array, found):
    _write(tmp_path / f"a{suffix}", array)
    assert found in _refused(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".h5"])
@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros(C), "has shape [6], expected [T, C] or [C, T]"),
        (np.zeros((2, 5, C)), "has shape [2, 5, 6], expected [T, C] or [C, T]"),
        (np.zeros((1, 1, C)), "has shape [1, 1, 6], expected [T, C] or [C, T]"),
        (np.zeros((0, C)), "has 0 snippets, expected at least 2"),
        (np.zeros((4, C), complex), "has dtype complex128, expected real numbers"),
        (np.full((4, C), 1e60), "has 0 NaN and 24 infinite values"),
    ],
    ids=["rank-1", "rank-3", "single-row-rank-3", "no-rows", "complex", "beyond-float32"],
)
def test_unusable_arrays_are_refused(tmp_path, suffix, array, found):
    _write(tmp_path / f"a{suffix}", array)
    assert found in _refused(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".pt", ".h5"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing", "folder"])
def test_damaged_files_are_refused(tmp_path, rng, suffix, damage):
    path = tmp_path / f"a{suffix}"
    _write(path, rng.standard_normal((50, C)))
    content = path.read_bytes()
    if damage == "truncated":
        # A text file that ends inside a row.
        path.write_bytes(content[: content.rindex(b",")] if suffix == ".csv" else content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(rng.bytes(4000))
    else:
        path.unlink()
    if damage == "folder":
        path.mkdir()
    message = _refused(path)
    if damage == "missing":
        assert message == f"{path} does not exist, expected a file or folder of features"


def test_position_of_a_bad_value_counts_rows_of_the_file(tmp_path):
    np.save(tmp_path / "a.npy", _with(np.nan, [6 * C + 1]))
    with pytest.raises(InputError, match="has 1 NaN and 0 infinite values, the first at row 6, channel 1"):
        open_features(tmp_path / "a.npy", feature_dim=C, every=3).load("a")
    assert len(open_features(tmp_path / "a.npy", feature_dim=C, every=4).load("a").features) == 3


def test_pickled_code_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", feats=np.array([Bomb()], dtype=object))
    torch.save({"feats": Bomb()}, tmp_path / "a.pt")
    for suffix in (".npy", ".npz", ".pt"):
        _refused(tmp_path / f"a{suffix}")
    assert not (tmp_path / "exploded").exists()


def test_broken_csv_names_the_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,2,3,4,5,6\n1,2,x,4,5,6\n")
    assert "row 1" in _refused(path)
    path.write_text("1,x,3,4,5,6\n1,2,3,4,5,6\n1,2,3,4,5,6\n")  # no header: it has numbers
    assert "'x'" in _refused(path)
    path.write_text("f0,f1,f2,f3,f4,f5\n")
    assert "has no row of numbers" in _refused(path)


def test_several_arrays_need_a_known_name(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, C)), y=np.zeros((4, C)))
    torch.save({"x": torch.zeros(4, C), "y": torch.zeros(4, C)}, tmp_path / "b.pt")
    torch.save([torch.zeros(4, C)], tmp_path / "c.pt")
    expected = "has the arrays x, y, expected one, or one named feats or features"
    assert expected in _refused(tmp_path / "a.npz")
    assert expected in _refused(tmp_path / "b.pt")
    assert "has a list, expected a dense tensor or a dict with one" in _refused(tmp_path / "c.pt")


def test_a_stray_file_of_another_kind_fails_alone(tmp_path):
    for video in "ab":
        np.save(tmp_path / f"{video}.npy", np.zeros((3, C)))
    np.savetxt(tmp_path / "c.csv", np.zeros((4, C)), delimiter=",")
    (tmp_path / "notes.csv").write_text("camera 1,\nbroken\n")
    archive = open_features(tmp_path, feature_dim=C)
    assert archive.kind == "folder of .csv and .npy files" and archive.ids == ["a", "b", "c", "notes"]
    assert [len(archive.load(video).features) for video in "abc"] == [3, 3, 4]
    with pytest.raises(InputError, match=r"notes\.csv .*, expected a \.csv file of numbers"):
        archive.load("notes")


def test_archives_that_cannot_be_listed_are_refused(tmp_path):
    assert "has no file of features, expected .npy, .npz, .csv, .pt" in _refused(tmp_path)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = file["y"] = np.zeros((3, C))
    assert "an archive of several videos is read when its own path is given" in _refused(tmp_path, "a")
    np.save(tmp_path / "a.npy", np.zeros((3, C)))
    (tmp_path / "a.csv").write_text("1\n")
    assert "has a.csv and a.npy, expected one file per video" in _refused(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert "has suffix '.txt', expected .npy, .npz, .csv, .pt, .h5, .parquet or .tar" in _refused(
        tmp_path / "notes.txt"
    )
    with h5py.File(tmp_path / "twice.h5", "w") as file:
        file["train/x"] = file["val/x"] = np.zeros((3, C))
    assert "has train/x and val/x, expected one dataset per video" in _refused(tmp_path / "twice.h5")
    with h5py.File(tmp_path / "none.h5", "w"):
        pass
    assert "no video in this HDF5 file" in _refused(tmp_path / "none.h5")
    with h5py.File(tmp_path / "prefix.h5", "w") as file:
        file["x"] = file["v_x"] = np.zeros((3, C))
    with pytest.raises(InputError, match="video 'x' occurs with and without the prefix v_"):
        open_features(tmp_path / "prefix.h5", feature_dim=C, strip_prefix=True)
    with pytest.raises(InputError, match=re.escape("--every is 0, expected at least 1")):
        open_features(tmp_path / "prefix.h5", feature_dim=C, every=0)


def test_hdf5_things_that_are_no_features_are_refused(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["text"] = "hello"
        file["null"] = h5py.Empty("f4")
        file["gone"] = h5py.SoftLink("/nowhere")
        file["outer/inner/deep"] = np.zeros((3, C))
        file["broken"] = np.zeros((3, C))
    for video, found in {
        "text": "has dtype object",
        "null": "is an empty dataset",
        "gone": "component not found",
        "inner": "is a group",
    }.items():
        assert found in _refused(path, video)
    assert len(open_features(path, feature_dim=C).load("broken").features) == 3


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_iterating_keeps_order_and_survives_a_bad_video(archive, workers):
    archive.load("v00")  # the file is open in this process when the workers start
    videos = [*reversed(archive.ids), "nowhere"]
    loaded = list(iterate(archive, videos, workers=workers))
    assert [video for video, _ in loaded] == videos
    for video, sequence in loaded:
        if video in ("v05", "nowhere"):
            assert isinstance(sequence, InputError) and ("NaN" if video == "v05" else video) in str(sequence)
        else:
            np.testing.assert_array_equal(sequence.features, archive.load(video).features)


def test_iterating_does_not_touch_the_global_random_state(archive):
    state = torch.get_rng_state()
    list(iterate(archive, archive.ids, workers=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_iterating_reads_only_a_little_ahead(archive, monkeypatch):
    read = []
    load = FeatureArchive.load
    monkeypatch.setattr(FeatureArchive, "load", lambda self, video: (read.append(video), load(self, video))[1])
    videos = iterate(archive, archive.ids, workers=0, prefetch=2)
    next(videos)
    videos.close()
    assert len(read) <= 3


def test_archive_can_be_pickled_while_it_is_open(archive):
    before = archive.load("v00").features
    copy = pickle.loads(pickle.dumps(archive))
    archive.close()
    np.testing.assert_array_equal(copy.load("v00").features, before)
    np.testing.assert_array_equal(archive.load("v00").features, before)


def _load_sum(archive: FeatureArchive, video: str) -> float:
    return float(archive.load(video).features.sum())


@sweep("method", ["fork", "spawn"])
def test_archive_works_in_another_process_while_it_is_open_here(archive, method):
    expected = _load_sum(archive, "v01")
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_load_sum, (archive, "v01")) == expected


def test_real_features_of_every_kind(shared: Path):
    salads = open_features(shared / "data" / "salads50" / "features", feature_dim=28)
    assert len(salads.ids) == 50
    assert salads.load("salads_01_1").features.shape == (325, 28)
    anet = shared / "data" / "anet_samples" / "features"
    npy = open_features(anet / "v_4Lu8ECLHvK4.npy", feature_dim=400, strip_prefix=True)
    csv = open_features(anet / "v_4Lu8ECLHvK4.csv", feature_dim=400, strip_prefix=True)
    assert npy.ids == csv.ids == ["4Lu8ECLHvK4"]
    np.testing.assert_allclose(npy.load(npy.ids[0]).features, csv.load(csv.ids[0]).features, rtol=2e-3, atol=1e-3)
    mixed = open_features(shared / "data" / "i3d_sample" / "features", feature_dim=2048)
    loaded = dict(iterate(mixed, mixed.ids))
    assert loaded["long_jump_i3d"].features.shape == (14, 2048)
    assert str(loaded["long_jump_vggish"]).endswith("has shape [36, 128], expected 2048 channels")


def test_more_workers_than_cores_are_no_warning_of_ours():
    def loader(items, careful):
        return DataLoader(items, batch_size=None, num_workers=(os.cpu_count() or 1) + 1)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "This DataLoader will create")
        assert list(read_in_order([1, 2, 3], loader)) == [1, 2, 3]
    with pytest.warns(UserWarning, match="This DataLoader will create"):
        loader([1], False)  # other loaders of a program keep theirs
