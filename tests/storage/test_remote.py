"""Features at addresses: a web server on this machine that fails on demand, and the memory of fsspec."""

from __future__ import annotations

import errno
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.layouts import LAYOUTS, hdf5_each, npy
from helpers.web import Web, serving

from bcnet_fast.data.features import FeatureSequence, ReadLimits, iterate, open_features
from bcnet_fast.data.hdf5 import is_hdf5
from bcnet_fast.errors import InputError
from bcnet_fast.storage import remote
from bcnet_fast.storage.address import Address, place_of, shown_address
from bcnet_fast.storage.files import read_json
from bcnet_fast.storage.remote import local_copy

fsspec = pytest.importorskip("fsspec", reason="needs fsspec, of the extra remote")
C = 6
VIDEOS = {f"v{n}": np.arange((9 + n) * C, dtype=np.float32).reshape(-1, C) - n for n in range(7)}


@pytest.fixture
def web(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp", reason="needs aiohttp, of the extra remote")
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.001)
    with serving(tmp_path) as server:
        yield server


@pytest.fixture
def memory(tmp_path):
    """A function that copies a file or folder to a new address."""
    fs = fsspec.filesystem("memory")

    def upload(path: Path) -> str:
        target = f"/{tmp_path.name}/{path.name}"
        for file in path.iterdir() if path.is_dir() else [path]:
            fs.pipe_file(f"{target}/{file.name}" if path.is_dir() else target, file.read_bytes())
        return f"memory:/{target}"

    yield upload
    fs.rm("/", recursive=True)


def files(folder: Path, suffix: str = ".npy") -> Path:
    (folder / "files").mkdir()
    for name, array in VIDEOS.items():
        (folder / "files" / f"{name}{suffix}").write_bytes(npy(array))
    return folder / "files"


def csv(folder: Path) -> Path:
    (folder / "csv").mkdir()
    for name, array in VIDEOS.items():
        np.savetxt(folder / "csv" / f"{name}.csv", array, delimiter=",")
    return folder / "csv"


def failures(address: str, limits: ReadLimits | None = None, workers: int = 0) -> dict[str, str]:
    """Lines about the videos that cannot be read; the others must be good."""
    archive = open_features(address, feature_dim=C, limits=limits or ReadLimits())
    assert archive.ids == sorted(VIDEOS)
    found = {}
    for video, loaded in iterate(pickle.loads(pickle.dumps(archive)), archive.ids, workers=workers):
        if isinstance(loaded, FeatureSequence):
            np.testing.assert_array_equal(loaded.features, VIDEOS[video])
        else:
            found[video] = str(loaded)
    return found


@pytest.mark.parametrize("layout", ["files", "csv", *LAYOUTS])
def test_every_layout_is_read_from_a_storage(tmp_path, memory, layout):
    made = {"files": files, "csv": csv}.get(layout)
    address = memory(made(tmp_path) if made else LAYOUTS[layout](tmp_path, VIDEOS))
    archive = open_features(address, feature_dim=C)
    versions = archive.versions()
    assert all(size > 0 and time > 1e18 for version in versions.values() for size, time in version)
    assert not failures(address, workers=2 if layout in ("files", "nested") else 0)


@pytest.mark.parametrize("layout", ["tars", "folder_of_fixed", "hdf5_each"])
def test_large_files_are_read_in_parts_from_a_web_server(tmp_path, web, layout):
    path = LAYOUTS[layout](tmp_path, VIDEOS)
    assert not failures(web.address(f"{path.name}/"), workers=2 if layout == "tars" else 0)
    assert web.ranges


def test_a_server_without_ranges_is_one_line_for_large_files_and_fine_for_small_ones(tmp_path, web):
    hdf5_each(tmp_path, {"large": np.zeros((60_000, C), np.float32)})
    web.faults = {"each/large.h5": ["whole"] * 9}
    with pytest.raises(InputError, match=r"/large\.h5: its server sends whole files"):
        open_features(web.address("each/large.h5"), feature_dim=C)
    files(tmp_path)
    web.faults = {f"files/{video}.npy": ["whole"] * 9 for video in VIDEOS}
    assert not failures(web.address("files/"))


@pytest.mark.parametrize("faults", [[500], [503, 502, 500], ["cut"], [429, "cut", 500, "cut"]])
def test_what_passes_is_tried_again(tmp_path, web, faults):
    files(tmp_path)
    web.faults = {"files/v2.npy": list(faults)}
    assert not failures(web.address("files/"))
    assert web.faults["files/v2.npy"] == []


@pytest.mark.parametrize(
    ("fault", "text"), [(500, "tried 5 times"), (403, "403"), ("cut", "tried 5 times"), (404, "exist")]
)
def test_what_does_not_pass_is_the_failure_of_its_video(tmp_path, web, fault, text):
    files(tmp_path)
    web.faults = {"files/v2.npy": [fault] * 99}
    found = failures(web.address("files/"))
    assert list(found) == ["v2"] and text in found["v2"] and web.address("files/v2.npy") in found["v2"]
    assert web.requests["files/v2.npy"] <= 7 if fault in (500, "cut") else web.requests["files/v2.npy"] <= 3


@pytest.mark.parametrize(
    ("kind", "tries"),
    [("ClientConnectionError", 1), (OSError, 5), (EOFError, 5)],
    ids=["tried by gcsfs", "not tried by gcsfs", "cut answer"],
)
def test_what_the_library_of_google_has_tried_is_not_tried_again(monkeypatch, kind, tries):
    pytest.importorskip("gcsfs")
    error = (getattr(pytest.importorskip("aiohttp"), kind) if isinstance(kind, str) else kind)("no route")
    calls = []

    class Storage:
        def info(self, path):
            calls.append(path)
            raise error

    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(remote, "_filesystem", lambda address: (Storage(), address.whole))
    with pytest.raises(InputError, match=f"gs://b/a.npy cannot be reached .{error}"):
        open_features("gs://b/a.npy", feature_dim=C)
    assert len(calls) == tries


def test_a_silent_server_is_left_after_a_time(tmp_path, web, monkeypatch):
    monkeypatch.setattr(remote, "_SILENT_S", 0.1)
    files(tmp_path)
    web.faults = {"files/v2.npy": ["silent"]}
    assert not failures(web.address("files/"))
    assert web.faults["files/v2.npy"] == []


def test_sizes_are_checked_before_they_are_read(tmp_path, web, memory):
    path = files(tmp_path)
    with open(path / "v2.npy", "ab") as file:
        file.truncate(5 << 20)
    for address in (web.address("files/"), memory(path)):
        web.requests.clear()
        found = failures(address, ReadLimits(max_video_gib=1 / 1024))
        assert list(found) == ["v2"] and "--max-video-gib" in found["v2"]
    assert web.requests["files/v2.npy"] == 0


def test_secrets_are_used_and_never_said(tmp_path, web):
    files(tmp_path)
    np.save(tmp_path / "one.npy", VIDEOS["v1"])
    (tmp_path / "bad.json").write_text("{")
    user, query = "me:hunter2@", "?X-Amz-Signature=abc&token=xyz"
    archive = open_features(web.address(f"one.npy{query}", user), feature_dim=C)
    np.testing.assert_array_equal(archive.load("one").features, VIDEOS["v1"])
    said = [archive.load("one").path, str(archive.path), repr(archive.path), f"{archive.path}"]
    web.faults = {name: [500] * 99 for name in ("gone.npy", "files/v1.npy", "one.npy")}
    for action in (
        lambda: archive.load("one"),
        lambda: open_features(web.address(f"gone.npy{query}", user), feature_dim=C),
        lambda: open_features(web.address(f"nothing/{query}", user), feature_dim=C),
        lambda: open_features(web.address(f"files/{query}", user), feature_dim=C).load("v1"),
        lambda: read_json(web.address(f"bad.json{query}", user)),
        lambda: read_json(f"https://{user}127.0.0.1:1/x.json{query}"),
        lambda: read_json(f"nothing://{user}server/x.json"),
    ):
        with pytest.raises(InputError) as error:
            action()
        said += [str(error.value), repr(error.value.__cause__)]
    for text in said:
        assert not any(secret in text for secret in ("hunter2", "abc", "xyz", "Signature")), text


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://bucket/a/b.npy", "s3://bucket/a/b.npy"),
        ("https://me:pass@host:80/a/b?sig=1#x", "https://host:80/a/b"),
        ("https://token@host/a", "https://host/a"),
        ("https://host?sig=1", "https://host"),
        ("s3://key:secret@bucket/a?versionId=3", "s3://bucket/a"),
        ("abfs://container@account/a", "abfs://container@account/a"),
        ("hf://datasets/me/data@main/a.parquet", "hf://datasets/me/data@main/a.parquet"),
        ("s3://bucket/what?.npy", "s3://bucket/what?.npy"),
        ("features/a.npy", "features/a.npy"),
    ],
)
def test_addresses_are_shown_without_users_and_signatures(address, shown):
    assert shown_address(address) == shown == f"{place_of(address)}"


def test_addresses_name_files_as_paths_do():
    address = Address("https://host/a%20b/c.d.npy?sig=1")
    assert (address.name, address.stem, address.suffix) == ("c.d.npy", "c.d", ".npy")
    assert (address.parent / "e f.npy").whole == "https://host/a%20b/e%20f.npy?sig=1"
    assert pickle.loads(pickle.dumps(Address("s3://b/c", (3, 4)))).facts == (3, 4)
    assert place_of("file:///folder/x%20y") == Path("/folder/x y")
    assert local_copy_name("https://host/..%2F..%2Fetc") == "copy"


@pytest.mark.parametrize("address", ["file://[x", "file://host/x"])
def test_local_addresses_name_no_other_machine(address):
    assert place_of("file://localhost/x") == Path("/x")
    with pytest.raises(
        InputError, match=f"^{re.escape(repr(address))} names no file of this machine, expected file:///PATH"
    ):
        place_of(address)


@pytest.mark.parametrize("protocol", ["github", "reference", "jlab", "dir", "generic", "dbfs", "zip", "tar"])
def test_protocols_that_need_more_than_an_address_are_refused_in_one_line(protocol):
    with pytest.raises(InputError, match=f"^{protocol}://x(:| cannot be opened)") as error:
        open_features(f"{protocol}://x", feature_dim=C)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_file_that_fails_while_it_is_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.npy").write_bytes(b"x")
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(InputError, match=r"a\.npy cannot be read \(.*Input/output error\)"):
        is_hdf5(tmp_path / "a.npy")


def local_copy_name(address: str) -> str:
    return remote._file_name(Address(address))


def test_a_local_copy_is_made_once_and_is_whole(tmp_path, web):
    (tmp_path / "a.json").write_text('{"x": 1}')
    web.faults = {"a.json": ["cut", 500]}
    address = Address(web.address("a.json"))
    assert read_json(address) == {"x": 1}
    before = web.requests["a.json"]
    assert read_json(address) == {"x": 1} and web.requests["a.json"] == before
    assert local_copy(address, "").name == "a.json"


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("hf", "huggingface_hub")])
def test_a_missing_package_is_one_line_that_names_it(monkeypatch, protocol, package):
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)  # as in a new process
    with pytest.raises(InputError, match=rf"^{protocol}://bucket/x: .* needs {package}: pip install {package}$"):
        open_features(f"{protocol}://bucket/x", feature_dim=C)


@pytest.mark.parametrize("address", ["zip://a.npy::s3://bucket/a.zip", "what://a/b"])
def test_other_addresses_are_one_line(address):
    with pytest.raises(InputError, match=r"^(zip|what)://"):
        open_features(address, feature_dim=C)


def test_without_fsspec_an_address_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(InputError, match=r"pip install 'bcnet_fast\[remote\]'"):
        open_features("s3://bucket/x", feature_dim=C)


def test_what_cannot_be_reached_is_not_taken_for_missing(tmp_path, web):
    """A result that seems to be missing would be made again, and replaced."""
    for fault, address in ((500, web.address("x.npy")), (0, "http://127.0.0.1:1/x.npy")):
        web.faults = {"x.npy": [fault] * 99}
        with pytest.raises(InputError, match="cannot be reached"):
            remote.exists(Address(address))
    assert not remote.exists(Address(web.address("missing.npy")))


def test_an_empty_or_missing_folder_is_one_line(tmp_path, web):
    (tmp_path / "empty").mkdir()
    for address in (web.address("empty/"), web.address("nothing/"), "memory://nothing/here"):
        with pytest.raises(InputError, match="does not exist or has no file"):
            open_features(address, feature_dim=C)


def test_a_web_server_is_not_asked_for_more_than_it_must(tmp_path, web):
    files(tmp_path)
    assert not failures(web.address("files/"))
    assert isinstance(web, Web) and all(web.requests[f"files/{video}.npy"] == 2 for video in VIDEOS)  # size, content
