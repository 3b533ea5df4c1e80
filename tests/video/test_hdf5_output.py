"""`extract --output features.h5`: the same as a folder, in one file that is whole at any time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.videos import write_video

from bcnet_fast import extract
from bcnet_fast.data.features import open_features
from bcnet_fast.errors import InputError
from bcnet_fast.storage.lock import Lock
from bcnet_fast.video import run as extraction

RECIPE = ("--backbone", "frame-index", "--stride", "8")


@pytest.fixture
def clips(tmp_path) -> Path:
    for number, name in enumerate(("a", "b.c", "d")):
        write_video(tmp_path / "clips" / f"{name}.mp4", 40 + 8 * number)
    return tmp_path / "clips"


def run(*arguments: object, flags: tuple[str, ...] = RECIPE) -> int:
    return extract.main([str(argument) for argument in (*arguments, *flags)])


def contents(path: Path) -> dict[str, tuple[list[list[float]], str]]:
    with h5py.File(path) as file:
        return {name: (data[()].tolist(), data.attrs["bcnet_fast_features"]) for name, data in file.items()}


def test_the_file_holds_what_the_folder_holds(clips, tmp_path, capsys) -> None:
    assert run(clips, "--output", tmp_path / "folder") == 0
    assert run(clips, "--output", tmp_path / "features.h5") == 0
    assert "features.h5: 3 videos, 15 rows of 16 channels" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "features.h5", "folder"]
    one, other = (open_features(tmp_path / name, feature_dim=16) for name in ("folder", "features.h5"))
    assert one.ids == other.ids == ["a", "b.c", "d"]
    for video in one.ids:
        assert np.array_equal(one.load(video).features, other.load(video).features)
        assert one.sidecar(video) == other.sidecar(video) is not None
    _, text = contents(tmp_path / "features.h5")["a"]
    assert json.loads(text) == json.loads((tmp_path / "folder" / "a.json").read_text())


def test_the_same_command_adds_what_is_missing_and_replaces_what_changed(clips, tmp_path, capsys) -> None:
    file = tmp_path / "features.h5"
    assert run(clips / "a.mp4", clips / "d.mp4", "--output", file) == 0
    before = contents(file)
    write_video(clips / "d.mp4", 80)
    assert run(clips, "--output", file) == 0
    assert "2 videos, 14 rows of 16 channels, 1 video already there" in capsys.readouterr().out
    after = contents(file)
    assert after["a"] == before["a"] and len(after["d"][0]) == 9 and sorted(after) == ["a", "b.c", "d"]
    version = file.stat().st_mtime_ns
    assert run(clips, "--output", file) == 0 and file.stat().st_mtime_ns == version
    with pytest.raises(InputError, match=r"features.h5: a has other features \(stride 8 instead of 4\)"):
        run(clips, "--output", file, flags=("--backbone", "frame-index", "--stride", "4"))
    assert contents(file) == after
    assert run(clips, "--output", file, "--overwrite", flags=("--backbone", "frame-index", "--stride", "4")) == 0
    assert len(contents(file)["a"][0]) == 7


def test_an_interrupted_run_leaves_the_old_file_and_goes_on(clips, tmp_path, monkeypatch, capsys) -> None:
    file = tmp_path / "features.h5"
    run(clips / "d.mp4", "--output", file)
    before = file.read_bytes()
    with monkeypatch.context() as patch:  # after the first video
        patch.setattr(extraction._Run, "_count", lambda self, *facts: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run(clips, "--output", file)
    assert file.read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "features.h5.parts").iterdir()) == ["a.json", "a.npy"]

    def fail(temporary: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:  # while the new file is written
        patch.setattr(
            "bcnet_fast.storage.output.move_into_place",
            lambda *paths: None if paths[1].suffix != ".h5" else fail(*paths),
        )
        with pytest.raises(InputError, match=r"features.h5 cannot be written: No space left on device"):
            run(clips / "a.mp4", "--output", file)
    assert file.read_bytes() == before
    capsys.readouterr()
    assert run(clips, "--output", file) == 0
    assert "1 video, 5 rows of 16 channels, 2 videos already there" in capsys.readouterr().out
    assert sorted(contents(file)) == ["a", "b.c", "d"] and not (tmp_path / "features.h5.parts").exists()


def test_bad_videos_are_listed_and_the_others_are_in_the_file(clips, tmp_path, capsys) -> None:
    (clips / "text.mp4").write_text("hello")
    write_video(clips / "short.mp4", 10)
    assert run(clips, "--output", tmp_path / "features.h5") == 1
    failed = capsys.readouterr().err
    assert "text.mp4 is no video" in failed and "short.mp4 has 10 frames" in failed
    assert sorted(contents(tmp_path / "features.h5")) == ["a", "b.c", "d"]
    with pytest.raises(InputError, match=r"text.mp4 is no video"):
        run(clips / "text.mp4", "--output", tmp_path / "none.h5")
    assert not (tmp_path / "none.h5").exists() and not (tmp_path / "none.h5.parts").exists()


def test_files_of_others_are_never_replaced(clips, tmp_path, monkeypatch) -> None:
    file = tmp_path / "features.h5"
    with h5py.File(file, "w") as others:
        others["a"] = np.zeros((9, 4))
    before = file.read_bytes()
    for more in ([], ["--overwrite"]):
        with pytest.raises(InputError, match=r"features.h5 holds data of another origin, expected an HDF5 file that"):
            run(clips, "--output", file, *more)
    assert file.read_bytes() == before and not (tmp_path / "features.h5.parts").exists()
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(InputError, match=r"text.h5 is no HDF5 file, expected"):
        run(clips, "--output", tmp_path / "text.h5")
    (tmp_path / "held.h5.parts").mkdir()
    lock = Lock(tmp_path / "held.h5.parts" / ".lock")
    with pytest.raises(InputError, match=r"held.h5 is in use by another run"):
        run(clips, "--output", tmp_path / "held.h5")
    lock.release()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"new.h5: writing HDF5 needs h5py: pip install 'bcnet_fast\[hdf5\]'"):
        run(clips, "--output", tmp_path / "new.h5")


def test_a_damaged_attribute_fails_its_own_video(clips, tmp_path) -> None:
    file = tmp_path / "features.h5"
    run(clips, "--output", file)
    with h5py.File(file, "a") as opened:
        opened["a"].attrs["bcnet_fast_features"] = '{"bcnet_fast_features": 1, "fps": -3}'
        opened["new"] = np.zeros((4, 16))
    archive = open_features(file, feature_dim=16)
    with pytest.raises(InputError, match=r"features.h5: a: fps is -3, expected a positive number"):
        archive.sidecar("a")
    assert archive.sidecar("new") is None and archive.sidecar("d").rows == 6
    with pytest.raises(InputError, match=r"features.h5: a: fps is -3"):  # its attributes cannot be kept
        run(clips, "--output", file)


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
def test_names_keep_their_bytes(tmp_path) -> None:
    video = write_video(tmp_path / "plain.mp4", 40)
    named = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    os.rename(video, named)
    assert run(os.fsdecode(named), "--output", tmp_path / "features.h5") == 0
    assert run(write_video(tmp_path / "b.mp4", 40), "--output", tmp_path / "features.h5") == 0
    archive = open_features(tmp_path / "features.h5", feature_dim=16)
    name = os.fsdecode(b"caf\xe9")
    assert archive.ids == ["b", name] and archive.load(name).features.shape == (4, 16)
    assert archive.sidecar(name) is not None


@pytest.mark.slow
def test_a_killed_run_leaves_no_file_and_is_completed(tmp_path) -> None:
    for number in range(12):
        write_video(tmp_path / "clips" / f"{number:02}.mp4", 400)
    file, parts = tmp_path / "features.h5", tmp_path / "features.h5.parts"
    command = [sys.executable, "-m", "bcnet_fast.extract", str(tmp_path / "clips"), *RECIPE, "--output", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(parts.glob("*.npy")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert list(parts.glob("*.npy")) and not file.exists()
    assert run(tmp_path / "clips", "--output", file) == 0
    assert sorted(contents(file)) == [f"{number:02}" for number in range(12)] and not parts.exists()
