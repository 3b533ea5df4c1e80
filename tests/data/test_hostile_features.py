"""Feature files that are damaged or made to do harm: each is one line about its own video, and the others are read."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.sweeps import sweep

from bcnet_fast.data import features as features_module
from bcnet_fast.data.annotations import read_annotations
from bcnet_fast.data.class_scores import read_class_scores
from bcnet_fast.data.features import FeatureSequence, ReadLimits, iterate, open_features
from bcnet_fast.errors import InputError
from bcnet_fast.results.reader import read_results
from bcnet_fast.storage import files

C = 6
GOOD = np.arange(9 * C, dtype=np.float32).reshape(9, C)
DEFAULT = ReadLimits()
TINY = ReadLimits(max_video_gib=1 / 1024)  # 1 MiB


def with_header(text: str, values: bytes = bytes(GOOD.nbytes)) -> bytes:
    """An .npy file with a header of one's own."""
    header = text.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + values


NPY = {
    "token": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (9, 6), "),
    "token-of-python-2": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (9L, 6L), \\"),
    "overflow": with_header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9, 10**30), }".replace("10**30", "9" * 30)
    ),
    "negative": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-9, 6), }"),
    "type": with_header("{'descr': ['<f4'], 'fortran_order': False, 'shape': (9, 6), }"),
    "recursion": with_header("(" * 4000 + ")" * 4000),
    "names": with_header("{'descr': __import__, 'fortran_order': False, 'shape': (9, 6), }"),
    "void": with_header("{'descr': '|V0', 'fortran_order': False, 'shape': (9, 6), }"),
}


def encrypted(path: Path) -> None:
    np.savez(path, feats=GOOD)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)


def unknown_method(path: Path) -> None:
    np.savez(path, feats=GOOD)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(signature) + offset] = 77
    path.write_bytes(content)


def odd_tensors() -> dict[str, object]:
    plain = torch.from_numpy(GOOD)
    odd = {
        "meta": plain.to("meta"),
        "sparse": plain.to_sparse(),
        "complex": torch.complex(plain, plain).conj(),
    }
    if hasattr(torch, "float4_e2m1fn_x2"):
        odd["float4"] = torch.zeros(9, C, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both kinds are deprecated
        odd["quantized"] = torch.quantize_per_tensor(plain, 0.1, 0, torch.quint8)
        odd["nested"] = torch.nested.nested_tensor([plain, plain])
    return odd


def hdf5_with_time_type(file: h5py.File, name: bytes) -> None:
    space = h5py.h5s.create_simple((9, C))
    h5py.h5d.create(file.id, name, h5py.h5t.UNIX_D32LE, space)


def require_one_failure(path: Path, bad: str, limits: ReadLimits = DEFAULT) -> str:
    """Reads all videos; returns the line about the bad one."""
    archive = open_features(path, feature_dim=C, limits=limits)
    loaded = dict(iterate(archive, archive.ids))
    assert bad in loaded and len(loaded) > 1
    for video, found in loaded.items():
        if video != bad:
            assert isinstance(found, FeatureSequence), found
            np.testing.assert_array_equal(found.features, GOOD)
    error = loaded[bad]
    assert isinstance(error, InputError) and "\n" not in str(error) and str(path) in str(error)
    with pytest.raises(InputError):
        archive.load(bad)
    try:
        archive.stored(bad)  # shapes may be known all the same
    except InputError as stored:
        assert str(path) in str(stored)
    return str(error)


@pytest.mark.parametrize("content", NPY.values(), ids=NPY)
def test_an_npy_header_that_does_not_parse_is_one_failure(tmp_path, content):
    np.save(tmp_path / "good.npy", GOOD)
    (tmp_path / "bad.npy").write_bytes(content)
    require_one_failure(tmp_path, "bad")


@pytest.mark.parametrize("damage", [encrypted, unknown_method])
def test_an_npz_that_cannot_be_opened_is_one_failure(tmp_path, damage):
    np.savez(tmp_path / "good.npz", feats=GOOD)
    damage(tmp_path / "bad.npz")
    require_one_failure(tmp_path, "bad")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", odd_tensors())
def test_a_tensor_that_is_no_plain_array_is_one_failure(tmp_path, kind):
    torch.save(torch.from_numpy(GOOD), tmp_path / "good.pt")
    torch.save(odd_tensors()[kind], tmp_path / "bad.pt")
    require_one_failure(tmp_path, "bad")


def test_a_negated_view_is_read(tmp_path):
    negated = torch.complex(torch.zeros(9, C), torch.from_numpy(GOOD)).conj().imag
    assert negated.is_neg()
    torch.save(negated, tmp_path / "a.pt")
    np.testing.assert_array_equal(open_features(tmp_path / "a.pt", feature_dim=C).load("a").features, -GOOD)


def test_an_hdf5_time_type_is_one_failure(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["good"] = GOOD
        hdf5_with_time_type(file, b"bad")
    require_one_failure(tmp_path / "a.h5", "bad")


def test_a_name_that_is_not_utf8_is_a_video_like_any_other(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[b"caf\xe9"] = GOOD
        file[b"group\xff/v\xe9"] = GOOD
        file["good"] = GOOD
        file["bad"] = GOOD[:1]
    require_one_failure(tmp_path / "a.h5", "bad")
    assert open_features(tmp_path / "a.h5", feature_dim=C).ids == ["bad", "caf\udce9", "good", "v\udce9"]


def test_links_pipes_and_folders_named_like_features_are_listed(tmp_path):
    np.save(tmp_path / "good.npy", GOOD)
    (tmp_path / "dangling.npy").symlink_to("nowhere")
    (tmp_path / "loop.npy").symlink_to("loop.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "folder.npy").mkdir()
    archive = open_features(tmp_path, feature_dim=C)
    loaded = dict(iterate(archive, archive.ids))
    assert {video: str(found) for video, found in loaded.items() if video != "good"} == {
        "dangling": f"{tmp_path}/dangling.npy is a link to nothing, expected a .npy array of numbers",
        "loop": f"{tmp_path}/loop.npy is a link to nothing, expected a .npy array of numbers",
        "pipe": f"{tmp_path}/pipe.npy is a device, expected a .npy array of numbers",
        "folder": f"{tmp_path}/folder.npy is a folder, expected a .npy array of numbers",
    }
    np.testing.assert_array_equal(loaded["good"].features, GOOD)


@pytest.mark.parametrize("suffix", ["parquet", "tar", "h5", "npy", "csv"])
def test_a_pipe_in_place_of_an_archive_is_one_line_and_is_not_waited_for(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    for path in (tmp_path, tmp_path / f"pipe.{suffix}"):
        with pytest.raises(InputError, match=rf"pipe\.{suffix} is a device, expected "):
            open_features(path, feature_dim=C).load("pipe")


def test_running_out_of_memory_is_one_failure(tmp_path, monkeypatch):
    np.save(tmp_path / "good.npy", GOOD)
    np.save(tmp_path / "bad.npy", GOOD[:5])
    read = features_module._read

    def exhausted(array, *rest):
        if array.shape[0] == 5:
            raise MemoryError
        return read(array, *rest)

    monkeypatch.setattr(features_module, "_read", exhausted)
    assert "MemoryError" in require_one_failure(tmp_path, "bad")


def declared_hdf5(path: Path, shape: tuple[int, int], **options) -> None:
    with h5py.File(path, "w") as file:
        file["good"] = GOOD
        file.create_dataset("bad", shape, np.float32, **options)


def bombs(folder: Path) -> dict[str, Path]:
    """Small files that stand for 2 MiB and more."""
    rows = 2**20
    paths = {}
    for kind in ("npy", "npz", "pt", "csv"):
        (folder / kind).mkdir()
        paths[kind] = folder / kind
    np.save(paths["npy"] / "good.npy", GOOD)
    with open(paths["npy"] / "bad.npy", "wb") as file:
        file.write(with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 6), }}", b""))
        file.truncate(2**25)
    np.savez(paths["npz"] / "good.npz", feats=GOOD)
    np.savez_compressed(paths["npz"] / "bad.npz", feats=np.zeros((rows, C), np.float32))
    torch.save(torch.from_numpy(GOOD), paths["pt"] / "good.pt")
    torch.save(torch.zeros(1).expand(rows, C), paths["pt"] / "bad.pt")
    np.savetxt(paths["csv"] / "good.csv", GOOD, delimiter=",")
    (paths["csv"] / "bad.csv").write_text("1,1,1,1,1,1\n" * 100_000)
    for kind, options in {
        "contiguous": {},
        "chunked": {"chunks": (64, C), "compression": "gzip"},
        "large-chunk": {"chunks": (rows, C), "maxshape": (None, C)},
    }.items():
        paths[kind] = folder / f"{kind}.h5"
        declared_hdf5(paths[kind], (9, C) if kind == "large-chunk" else (rows, C), **options)
    return paths


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "csv", "contiguous", "chunked", "large-chunk"])
def test_a_video_above_the_limit_is_refused_before_it_is_allocated(tmp_path, kind):
    path = bombs(tmp_path)[kind]
    tracemalloc.start()
    message = require_one_failure(path, "bad", TINY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "(--max-video-gib)" in message and peak < 2**21


def test_a_pt_file_with_packed_values_is_refused_before_it_is_allocated(tmp_path):
    torch.save(torch.from_numpy(GOOD), tmp_path / "good.pt")
    torch.save(torch.zeros(2**20, C), tmp_path / "stored.pt")
    with zipfile.ZipFile(tmp_path / "stored.pt") as stored:
        with zipfile.ZipFile(tmp_path / "bad.pt", "w", zipfile.ZIP_DEFLATED) as packed:
            for name in stored.namelist():
                packed.writestr(name, stored.read(name))
    (tmp_path / "stored.pt").unlink()
    assert (tmp_path / "bad.pt").stat().st_size < 2**18
    assert "(--max-video-gib)" in require_one_failure(tmp_path, "bad", TINY)


def test_a_pt_file_with_a_large_record_beside_its_tensors_is_refused_before_it_is_unpacked(tmp_path):
    torch.save(torch.from_numpy(GOOD), tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as stored, zipfile.ZipFile(tmp_path / "bad.pt", "w") as packed:
        for name in stored.namelist():
            content = bytes(65 << 20) if name.endswith("/version") else stored.read(name)
            packed.writestr(name, content, zipfile.ZIP_DEFLATED)
    message = require_one_failure(tmp_path, "bad")
    assert "/version has 65 MiB, expected at most 64 MiB of what is no tensor" in message


def test_a_pickle_that_asks_for_memory_by_a_number_is_refused(tmp_path):
    torch.save(torch.from_numpy(GOOD), tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as file:
        file.writestr("bad/data.pkl", b"\x80\x02cbuiltins\nbytearray\nJ\x00\x94\x35\x77\x85R.")
    assert "has a bytearray, which may have any size" in require_one_failure(tmp_path, "bad")
    # The format that PyTorch wrote before zip archives.
    (tmp_path / "bad.pt").write_bytes(b"\x80\x02cbuiltins\nbytearray\nJ\x00\x94\x35\x77\x85R.")
    assert "has a bytearray, which may have any size" in require_one_failure(tmp_path, "bad")


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_packing_that_is_undone_as_a_whole_is_refused(tmp_path, suffix):
    if suffix == "npz":
        np.savez(tmp_path / "good.npz", feats=GOOD)
    else:
        torch.save(torch.from_numpy(GOOD), tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / f"good.{suffix}") as stored:
        with zipfile.ZipFile(tmp_path / f"bad.{suffix}", "w", zipfile.ZIP_BZIP2) as packed:
            for name in stored.namelist():
                packed.writestr(name, stored.read(name))
    assert "compression method 12, expected deflate or none" in require_one_failure(tmp_path, "bad")


def test_a_long_header_is_refused_before_it_is_unpacked(tmp_path):
    np.savez(tmp_path / "good.npz", feats=GOOD)
    header = b"\x93NUMPY\x02\x00" + (2**26).to_bytes(4, "little")
    with zipfile.ZipFile(tmp_path / "bad.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("feats.npy", header + b" " * 2**26)
    tracemalloc.start()
    message = require_one_failure(tmp_path, "bad")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "the header is too long" in message and peak < 2**22


@pytest.mark.parametrize("facts", ['"fps": 1%s, "duration": 4' % ("0" * 400), '"fps": 1e300, "duration": 1e300'])
def test_impossible_numbers_of_a_sidecar_are_one_failure(tmp_path, facts):
    np.save(tmp_path / "good.npy", GOOD)
    np.save(tmp_path / "bad.npy", GOOD)
    (tmp_path / "bad.json").write_text(f'{{"bcnet_fast_features": 1, {facts}, "rows": 9, "recipe": {{}}}}')
    with pytest.raises(InputError, match=r"bad.json: fps is 1\S+, expected a positive number"):
        open_features(tmp_path, feature_dim=C).sidecar("bad")


def test_two_streams_with_a_large_chunk_are_refused_before_they_are_read(tmp_path):
    for stream in ("flow", "rgb"):
        with h5py.File(tmp_path / f"{stream}_val.h5", "w") as file:
            options = {"chunks": (64, 2**18), "maxshape": (None, None), "compression": "gzip"}
            file.create_dataset("bad", data=np.zeros((64, 3), np.float32), **options)
    with pytest.raises(InputError, match="--max-video-gib"):
        open_features(tmp_path, feature_dim=C, limits=TINY, every=1).load("bad")


def test_the_limit_is_for_one_video_and_can_be_raised(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2**16, C), np.float32))
    assert len(open_features(tmp_path, feature_dim=C).load("a").features) == 2**16
    with pytest.raises(
        InputError, match=r"has shape \[65536, 6\], 0\.0014\d* GiB in memory, expected at most 0.0009\d* "
    ):
        open_features(tmp_path, feature_dim=C, limits=TINY).load("a")
    with pytest.raises(InputError, match="--max-video-gib is nan, expected a positive number"):
        ReadLimits(max_video_gib=float("nan"))


@pytest.mark.parametrize("read", [read_results, read_annotations, read_class_scores])
def test_a_packed_text_is_unpacked_up_to_a_limit(tmp_path, monkeypatch, read):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b'{"results": {"a": [' + b" " * 2**24 + b"]}}"))
    monkeypatch.setattr(files, "LARGEST_TEXT", 2**20)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.json\.gz has more than 1 MiB of text"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_a_text_that_is_packed_more_than_real_ones_is_refused(tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * (65 << 20)))
    with pytest.raises(InputError, match=r"a\.json\.gz has more than 64 MiB of text"):
        read_results(path)


def test_class_scores_have_the_limits_of_arrays(tmp_path):
    path = tmp_path / "scores.npy"
    path.write_bytes(with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 101), }"))
    with pytest.raises(InputError, match=r"scores\.npy"):
        read_class_scores(path)
    np.savez_compressed(tmp_path / "scores.npz", scores=np.zeros((2, 2)), videos=["a", "b"], labels=["x", "y"])
    assert read_class_scores(tmp_path / "scores.npz").videos == ("a", "b")
    names = np.zeros(2**24 + 1, "S1")  # 16 MiB, and a GiB as texts
    np.savez_compressed(tmp_path / "scores.npz", scores=np.zeros((1, 1)), videos=names, labels=["x"])
    with pytest.raises(InputError, match=r"scores\.npz has 1 GiB of scores, expected at most 1 GiB"):
        read_class_scores(tmp_path / "scores.npz")


def test_an_npy_that_shrinks_while_it_is_read_is_one_failure(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4096, C), np.float32))
    archive = open_features(tmp_path / "a.npy", feature_dim=C)
    array = archive._source.open("a")
    os.truncate(tmp_path / "a.npy", 200)
    with pytest.raises(ValueError):  # a map of the file would end the process by SIGBUS
        array[(slice(0, 4096), slice(None))]


def virtual(path: Path) -> None:
    layout = h5py.VirtualLayout((9, C), np.float32)
    layout[:] = h5py.VirtualSource(".", "bad", (9, C))
    with h5py.File(path, "w") as file:
        file["good"] = GOOD
        file.create_virtual_dataset("bad", layout)


def external(path: Path) -> None:
    (path.parent / "secret").write_bytes(bytes(GOOD.nbytes))
    with h5py.File(path, "w") as file:
        file["good"] = GOOD
        file.create_dataset("bad", (9, C), np.float32, external=[(str(path.parent / "secret"), 0, GOOD.nbytes)])


def linked(path: Path) -> None:
    with h5py.File(path.parent / "other.h5", "w") as file:
        file["there"] = GOOD
    with h5py.File(path, "w") as file:
        file["good"] = GOOD
        file["bad"] = h5py.ExternalLink("other.h5", "/there")


@pytest.mark.parametrize("make", [virtual, external, linked])
def test_hdf5_that_refers_to_other_files_is_refused(tmp_path, make):
    path = tmp_path / "a.h5"
    make(path)
    assert "(--trust-hdf5-links)" in require_one_failure(path, "bad")
    if make is not virtual:  # which refers to itself, and would end the process
        trusted = open_features(path, feature_dim=C, limits=ReadLimits(trust_hdf5_links=True))
        assert trusted.load("bad").features.shape == (9, C)


@sweep("every", [7, 1])
@sweep("chunks", [(300_000, 2), (1000, C), (500_000, C)], keep=2, ids=str)
def test_every_chunk_of_hdf5_is_unpacked_once(tmp_path, rng, chunks, every):
    array = rng.standard_normal((500_000, C)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=array, chunks=chunks, compression="gzip", compression_opts=1)
    np.save(tmp_path / "a.npy", array)
    seconds = {}
    for path in (tmp_path / "a.npy", tmp_path / "a.h5"):
        archive = open_features(path, feature_dim=C, every=every)
        began = time.process_time()
        found = archive.load("a").features
        seconds[path.suffix] = time.process_time() - began
        np.testing.assert_array_equal(found, array[::every])
    assert seconds[".h5"] < seconds[".npy"] + 1  # read block by block, one chunk of all takes 7 s


def test_old_pytorch_reads_no_pickles(tmp_path, monkeypatch):
    torch.save(torch.from_numpy(GOOD), tmp_path / "a.pt")
    archive = open_features(tmp_path / "a.pt", feature_dim=C)
    for version in ("2.5.1", "2.9.1+cu130", "2.10.0rc1"):
        monkeypatch.setattr(torch, "__version__", version)
        expected = rf"a\.pt: PyTorch {version.replace('+', '.')} may run code .*CVE-2026-24747.*expected 2\.10 or later"
        with pytest.raises(InputError, match=expected):
            archive.load("a")
    monkeypatch.setattr(torch, "__version__", "2.10.0+cpu")
    np.testing.assert_array_equal(archive.load("a").features, GOOD)


def test_an_npy_of_python_2_is_read_without_a_warning(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (20L, 10L), }"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(800)
    (tmp_path / "old.npy").write_bytes(content)
    code = "import sys; from pathlib import Path; from bcnet_fast.storage.arrays import open_npy"
    code += "; print(open_npy(Path(sys.argv[1])).shape)"
    command = [sys.executable, "-c", code, str(tmp_path / "old.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(20, 10)\n", "")


def test_zeros_are_no_text_before_a_parser_copies_them(tmp_path):
    path = tmp_path / "results.csv"
    path.write_bytes(gzip.compress(bytes(1 << 20)))
    with pytest.raises(InputError, match=r"results.csv has a zero byte, as no text has, expected .*CSV"):
        read_results(path)
