"""`infer --shard` and `merge` as a user runs them: the shards of an archive, joined, are the single run to the byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.infer import CONFIG, flags, run
from helpers.networks import SMALL

from bcnet_fast import infer, merge
from bcnet_fast.errors import InputError
from bcnet_fast.networks.reference.bcnet import BCNet
from bcnet_fast.results.parts import parts_in
from bcnet_fast.storage.checkpoint import save_checkpoint


@pytest.fixture
def archive(features, rng):
    """16 videos of different lengths."""
    for number in range(12):
        np.save(features / f"more_{number}.npy", rng.standard_normal((20 + 7 * number, 10)).astype(np.float32))
    return features


def shards(checkpoint, features, count, *more, only=None) -> list[int]:
    """Exit codes of the runs of all shards, or of one."""
    output = features.parent / "parts"
    chosen = range(count) if only is None else [only]
    return [
        infer.main(flags(checkpoint, features, "--shard", f"{index}/{count}", *more, output=output)) for index in chosen
    ]


def merged(features, *more) -> tuple[int, bytes]:
    output = features.parent / "merged.json"
    arguments = [features.parent / "parts", "--output", output, "--overwrite", "--features", features, *more]
    return merge.main([str(argument) for argument in arguments]), output.read_bytes()


def test_shards_give_the_bytes_of_one_run_and_need_no_work_twice(checkpoint, archive, capsys):
    expected = run(checkpoint, archive)[1].read_bytes()
    assert shards(checkpoint, archive, 3, "--part-videos", 2) == [0, 0, 0]
    assert merged(archive) == (0, expected)
    before = {path: path.stat().st_mtime_ns for path in parts_in(archive.parent / "parts")}
    capsys.readouterr()
    assert shards(checkpoint, archive, 3, "--resume") == [0, 0, 0]
    # A run with another number of shards takes over the existing parts.
    assert shards(checkpoint, archive, 2, "--resume") == [0, 0]
    assert "resumed: 0 of" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in parts_in(archive.parent / "parts")} == before


def test_detections_are_joined_as_well(checkpoint, archive, tmp_path):
    labels = tmp_path / "scores.json"
    videos = [path.stem for path in archive.iterdir()]
    labels.write_text(json.dumps({video: {"run": 0.5, 'say "ü"': 0.25} for video in videos}))
    more = ("--labels", labels, "--top-k", 2)
    expected = run(checkpoint, archive, *more)[1].read_bytes()
    assert shards(checkpoint, archive, 2, *more) == [0, 0]
    assert merged(archive) == (0, expected)


def test_a_bad_video_is_told_until_it_is_repaired(checkpoint, archive, capsys):
    expected = run(checkpoint, archive)[1].read_bytes()
    good = (archive / "more_3.npy").read_bytes()
    (archive / "more_3.npy").write_bytes(b"nothing")
    assert sorted(shards(checkpoint, archive, 2)) == [0, 1]
    assert "failed: more_3: " in capsys.readouterr().err
    assert merged(archive)[0] == 1
    assert "failed: more_3: " in capsys.readouterr().err
    assert sorted(shards(checkpoint, archive, 2, "--resume")) == [0, 1]  # told again, and not done again
    assert sorted(shards(checkpoint, archive, 2, "--resume", "--retry-failed")) == [0, 1]
    (archive / "more_3.npy").write_bytes(good)  # which --resume notices
    assert shards(checkpoint, archive, 2, "--resume") == [0, 0]
    assert merged(archive) == (0, expected)


def test_a_shard_that_did_not_run_is_missed(checkpoint, archive, tmp_path, capsys):
    shards(checkpoint, archive, 3, only=1)
    capsys.readouterr()
    todo = tmp_path / "todo.jsonl"
    assert merged(archive, "--unfinished", todo)[0] == 1
    output, errors = capsys.readouterr()
    missing = [json.loads(line)["video"] for line in todo.read_text().splitlines()]
    assert f"; {len(missing)} missing" in output and f"missing: {missing[0]}\n" in errors
    code = merge.main([str(tmp_path / "parts"), "--output", str(tmp_path / "other.json")])
    assert code == 1 and f"; {len(missing)} missing" in capsys.readouterr().out  # known without the archive
    found = json.loads((tmp_path / "other.json").read_text())["results"]
    assert sorted([*found, *missing]) == sorted(path.stem for path in archive.iterdir())


def test_ids_of_the_archive_can_be_a_list(checkpoint, archive, tmp_path, capsys):
    expected = run(checkpoint, archive)[1].read_bytes()
    shards(checkpoint, archive, 2)
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"{path.stem}\n" for path in sorted(archive.iterdir())))
    arguments = [tmp_path / "parts", "--output", tmp_path / "merged.json", "--videos", ids]
    assert merge.main([str(argument) for argument in arguments]) == 0
    assert (tmp_path / "merged.json").read_bytes() == expected
    with pytest.raises(InputError, match="exists; replace it with --overwrite"):
        merge.main([str(argument) for argument in arguments])


def test_the_shard_is_that_of_the_scheduler(checkpoint, archive, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    output = archive.parent / "parts"
    assert infer.main(flags(checkpoint, archive, "--shard", "auto", output=output)) == 0
    assert [path.name for path in output.iterdir()] == ["part-002-of-004-0000.jsonl"]


def test_other_settings_are_refused_before_any_work(checkpoint, archive):
    shards(checkpoint, archive, 1)
    with pytest.raises(InputError, match=r"part-000-of-001-0000.jsonl is from a run with other values of precision"):
        shards(checkpoint, archive, 1, "--resume", "--precision", "bf16")
    with pytest.raises(InputError, match=r"has parts such as part-000-of-001-0000.jsonl; continue with --resume"):
        shards(checkpoint, archive, 1)


def test_a_video_that_left_the_archive_leaves_the_result(checkpoint, archive):
    shards(checkpoint, archive, 2)
    (archive / "a.npy").unlink()
    expected = run(checkpoint, archive)[1].read_bytes()
    assert shards(checkpoint, archive, 2, "--resume") == [0, 0]
    assert merged(archive) == (0, expected)


@pytest.mark.parametrize(
    "more, message",
    [
        (("--shard", "2/2"), "--shard is '2/2', expected I/N with I from 0 to N - 1, or auto"),
        (("--retry-failed",), "--retry-failed needs --shard"),
        (("--part-videos", 10), "--part-videos needs --shard"),
        (("--shard", "0/1", "--retry-failed"), "--retry-failed needs --resume"),
        (("--shard", "0/1", "--part-videos", 0), "--part-videos is 0, expected at least 1"),
        (("--shard", "0/1", "--resume", "--overwrite"), "give one of the two"),
        (("--shard", "0/1", "--page", "out.html"), "--page needs the results of all shards, expected no --shard"),
    ],
)
def test_flags_that_do_not_fit_are_refused(checkpoint, features, more, message):
    with pytest.raises(InputError, match=message):
        infer.main(flags(checkpoint, features, *more, output=features.parent / "parts"))
    assert not (features.parent / "parts").exists()


def test_a_file_is_no_folder_of_parts(checkpoint, features, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file, expected a folder for the parts"):
        infer.main(flags(checkpoint, features, "--shard", "0/1", output=tmp_path / "file"))
    for parts in (tmp_path / "gone", tmp_path / "file", features):
        with pytest.raises(InputError, match="expected a folder of parts that `infer --shard` wrote"):
            merge.main([str(parts), "--output", str(tmp_path / "out.json")])
    with pytest.raises(InputError, match=r"expected a name that ends with .json or .parquet"):
        merge.main([str(features), "--output", str(tmp_path / "out.csv")])
    assert not list(tmp_path.glob("out.*"))


def test_a_signal_leaves_what_is_finished_as_a_part(checkpoint, archive, capsys, monkeypatch):
    from bcnet_fast.results.part_writer import PartWriter

    added = PartWriter.add

    def add(self, *columns):
        added(self, *columns)
        if len(self.done) == 5:
            threading.Thread(target=signal.raise_signal, args=(signal.SIGINT,)).start()
            time.sleep(1)

    monkeypatch.setattr(PartWriter, "add", add)
    with pytest.raises(KeyboardInterrupt):
        shards(checkpoint, archive, 1)
    assert "has 5 finished videos of shard 0/1; continue with --resume" in capsys.readouterr().err
    monkeypatch.undo()
    expected = run(checkpoint, archive)[1].read_bytes()
    capsys.readouterr()
    assert shards(checkpoint, archive, 1, "--resume") == [0]
    assert "resumed: 5 of 16 videos of shard 0/1" in capsys.readouterr().out
    assert merged(archive) == (0, expected)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_archive(tmp_path):
    """Features of 320 videos have 250 MB, which a run that kept them would need beside the 1.2x."""
    wide = replace(SMALL, feature_dim=4096)
    torch.manual_seed(0)
    checkpoint = tmp_path / "wide.safetensors"
    save_checkpoint(checkpoint, BCNet(wide).state_dict(), replace(CONFIG, model=wide))
    np.save(tmp_path / "one.npy", np.random.default_rng(0).standard_normal((48, 4096)).astype(np.float32))
    peaks = []
    for videos in (20, 320):
        archive, parts = tmp_path / f"features_{videos}", tmp_path / f"parts_{videos}"
        archive.mkdir()
        for number in range(videos):
            (archive / f"{number:03d}.npy").hardlink_to(tmp_path / "one.npy")
        words = flags(checkpoint, archive, "--shard", "0/1", "--part-videos", 16, "--device", "cpu", output=parts)
        process = subprocess.Popen(
            [sys.executable, "-m", "bcnet_fast.infer", *words], env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0 and len(parts_in(parts)) == videos // 16 + bool(videos % 16)
        peaks.append(usage.ru_maxrss)
    assert peaks[1] <= 1.2 * peaks[0]
