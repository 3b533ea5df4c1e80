"""The package without the extras: the parts that work, and one line for those that do not."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from bcnet_fast.data.features import open_features
from bcnet_fast.errors import InputError
from bcnet_fast.progress import progress

# None in `sys.modules` makes an import fail, as for a package that is not installed.
NAMES = ("fsspec", "h5py", "pyarrow", "ray", "triton", "tqdm", "tensorboard")
BLOCKED = f"import sys; sys.modules.update(dict.fromkeys({NAMES}))\n"


@pytest.fixture
def archive(tmp_path) -> Path:
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        file["a"] = np.ones((9, 4), np.float32)
    return path


def test_inference_needs_no_extra(tmp_path):
    """A video through the bundled network and back, pictures included."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32))
    code = BLOCKED + (
        "from importlib import resources\n"
        "from bcnet_fast import infer\n"
        "weights = str(resources.files('bcnet_fast') / 'assets' / 'demo.safetensors')\n"
        "flags = '--features a.npy --output out.json --fps 25 --plot pictures --device cpu'.split()\n"
        "assert infer.main(['--checkpoint', weights, *flags]) == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.json").exists() and (tmp_path / "pictures" / "a.png").exists()


def test_a_missing_h5py_is_one_line_that_names_its_extra(archive, monkeypatch):
    named = archive.rename(archive.with_name("features.mat"))  # known by its content
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError) as error:
        open_features(named, feature_dim=4)
    assert str(error.value) == f"{named}: reading HDF5 needs h5py: pip install 'bcnet_fast[hdf5]'"


@pytest.mark.parametrize("block", [0, 512, 1024, 4096])
def test_hdf5_is_recognised_behind_a_user_block(tmp_path, block):
    path = tmp_path / "features.bin"
    with h5py.File(path, "w", userblock_size=block) as file:
        file["a"] = np.ones((9, 4), np.float32)
    assert open_features(path, feature_dim=4).ids == ["a"]


@pytest.mark.parametrize("content", [b"", b"\x89HDF", b"text" * 400])
def test_what_is_not_hdf5_is_not_taken_for_it(tmp_path, content):
    path = tmp_path / "features.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"features\.bin has suffix"):
        open_features(path, feature_dim=4)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_one_line_that_is_redrawn(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "40")
    assert list(progress(range(3), 3, "videos", lambda: "x" * 50)) == [0, 1, 2]
    drawn = sys.stderr.getvalue()
    lines = drawn.split("\r")[1:]
    assert lines[0].startswith("1/3 videos  33 %") and lines[-1].startswith("3/3 videos  100 %")
    assert all(len(line.rstrip("\n")) == 39 for line in lines) and drawn.count("\n") == 1


def test_progress_in_a_log_file_is_ten_lines_of_long_work_and_none_of_short(capsys, monkeypatch):
    assert list(progress(range(40), 40, "videos")) == list(range(40))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("bcnet_fast.progress._LOGGED_S", 0.0)
    assert list(progress(range(40), 40, "videos")) == list(range(40))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" %")[0] for line in lines] == [f"{4 * n}/40 videos  {10 * n}" for n in range(1, 11)]
