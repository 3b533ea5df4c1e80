"""A full disk: one line, no half-written file under a final name, and finished work is kept for a later run."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.disks import FULL, PLENTY, Disk, limited, mounted
from helpers.networks import SMALL
from helpers.training import EASY, arguments

from bcnet_fast import convert, infer, train
from bcnet_fast.config import BMNConfig, Config, DataConfig
from bcnet_fast.data.synthetic import make_videos, write_dataset
from bcnet_fast.errors import InputError
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.storage.checkpoint import save_checkpoint
from bcnet_fast.storage.output import write_json

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="disks and limits as on Linux")


@pytest.fixture(params=[mounted, limited], ids=["disk", "limit"])
def disk(request, tmp_path) -> Iterator[tuple[Path, Disk]]:
    folder = tmp_path / "disk"
    folder.mkdir()
    with request.param(folder) as resize:
        yield folder, resize


PAGE = 4096


def refused(main: Callable[[list[str]], int], flags: list[str]) -> None:
    with pytest.raises(InputError, match=FULL) as caught:
        main(flags)
    assert "cannot be written" in str(caught.value) and "\n" not in str(caught.value)


def test_inference_keeps_what_is_finished(tmp_path, disk, capsys):
    folder, resize = disk
    config = Config("small", model=SMALL, data=DataConfig(window_stride=12))
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "net.safetensors", NETWORKS["bcnet"](SMALL).state_dict(), config)
    (tmp_path / "features").mkdir()
    for video in "abcd":
        rows = np.random.default_rng(ord(video)).standard_normal((200, 10)).astype(np.float32)
        np.save(tmp_path / "features" / f"{video}.npy", rows)
    flags = ["--checkpoint", str(tmp_path / "net.safetensors"), "--features", str(tmp_path / "features")]
    flags += ["--fps", "25", "--device", "cpu", "--output"]
    expected, output = tmp_path / "expected.json", folder / "out.json"
    assert infer.main([*flags, str(expected)]) == 0
    size = expected.stat().st_size
    resize(size * 6 // 10)
    refused(infer.main, [*flags, str(output)])
    assert [path.name for path in folder.iterdir()] == ["out.json.partial"]
    resize(PLENTY)
    capsys.readouterr()
    assert infer.main([*flags, str(output), "--resume"]) == 0
    assert 1 <= int(capsys.readouterr().out.partition("resumed: ")[2][0]) <= 3
    assert output.read_bytes() == expected.read_bytes() and len(list(folder.iterdir())) == 1


def test_a_result_that_does_not_fit_leaves_the_old_one_and_the_partial_file(tmp_path, disk):
    folder, resize = disk
    path = folder / "x.json"
    write_json(path, "old")
    resize(8192)
    with pytest.raises(InputError, match=FULL):
        write_json(path, "new" * 10_000)
    assert path.read_text() == '"old"\n' and list(folder.iterdir()) == [path]


def test_training_goes_on_after_its_last_whole_epoch(tmp_path, disk, capsys, request):
    folder, resize = disk
    subsets = (("training", 4), ("validation", 2))
    videos = [v for name, count in subsets for v in make_videos(count, seed=1, subset=name, config=EASY)]
    write_dataset(tmp_path, videos)
    train.main(arguments(tmp_path, tmp_path / "expected", model="gtad"))
    sizes = [path.stat().st_size for path in (tmp_path / "expected").iterdir()]
    fits = request.node.callspec.params["disk"] is mounted  # the first epoch; a file that is too large never fits
    resize(sum(-(-size // PAGE) * PAGE for size in sizes) + 4 * PAGE if fits else max(sizes) // 2)
    flags = arguments(tmp_path, folder / "run", "--resume", model="gtad")
    refused(train.main, flags)
    assert not [path.name for path in folder.rglob(".*")]
    resize(PLENTY)
    capsys.readouterr()
    train.main(flags)
    assert ("resumed: 1 of 2 epochs" in capsys.readouterr().out) == fits
    for name in ("log.csv", "best.safetensors", "last.safetensors", "state.safetensors"):
        assert (folder / "run" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name


def test_conversion_leaves_nothing(tmp_path, disk):
    folder, resize = disk
    state = NETWORKS["bmn"](BMNConfig()).state_dict()
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "bmn.pth.tar")
    resize(1 << 20)
    flags = ["--bmn", str(tmp_path / "bmn.pth.tar"), "--preset", "activitynet13", "--output"]
    refused(convert.main, [*flags, str(folder / "out.safetensors")])
    assert not list(folder.iterdir())


@pytest.mark.parametrize("at", ["file", "folder"])
def test_a_disk_that_fails_when_the_file_is_brought_to_it_keeps_the_old_file(tmp_path, monkeypatch, at):
    path, sync = tmp_path / "x.json", os.fsync
    write_json(path, "old")

    def failing(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir() == (at == "folder"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    if at == "file":
        with pytest.raises(InputError, match=r"x\.json cannot be written: No space left on device"):
            write_json(path, "new")
    else:  # some file systems do not support it
        write_json(path, "new")
    assert path.read_text() == ('"old"\n' if at == "file" else '"new"\n') and list(tmp_path.iterdir()) == [path]
