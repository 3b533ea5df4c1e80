"""`python -m bcnet_fast.inspect`: what it finds, the flags it gives, and its exit codes."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from bcnet_fast.cli.parser import run
from bcnet_fast.errors import InputError
from bcnet_fast.inspect import main
from bcnet_fast.presets import PRESETS
from bcnet_fast.storage.checkpoint import save_checkpoint

C = 2048  # of the preset thumos14


def _folder(path: Path, rows: dict[str, int], channels: int = C, dtype: str = "float16") -> Path:
    path.mkdir(exist_ok=True)
    for video, count in rows.items():
        np.save(path / f"{video}.npy", np.ones((count, channels), dtype))
    return path


def _times(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def _flags(output: str, command: str = "infer") -> str:
    """The line of flags for a command."""
    return output.split(f"flags for python -m bcnet_fast.{command}\n")[1].splitlines()[0].strip()


def test_consistent_archive_gives_the_flags_that_were_used(tmp_path, capsys):
    folder = _folder(tmp_path / "x", {"a": 300, "b": 60})
    times = _times(tmp_path / "t.csv", "video,fps,stride,duration\na,25,4,48.2\nb,25,4,9.5\nc,25,4,7\n")
    assert main([str(folder), "--preset", "thumos14", "--times", times]) == 0
    output = capsys.readouterr().out
    lines = [line.split() for line in output.splitlines()]
    assert ["a", "300", "300", "[T,", "C]", "float16", "0.1600", "48.0", "48.2", "2"] in lines
    assert ["b", "60", "60", "[T,", "C]", "float16", "0.1600", "9.6", "9.5", "1"] in lines
    assert "rows: 60 to 300; snippets: 60 to 300; windows in total: 3" in output
    assert "they differ in 0 of 2 videos" in output
    assert f"{times}: has 2 of 2 videos; it has 1 more, without features" in output
    assert _flags(output) == f"--features {folder} --preset thumos14 --times {times}"
    assert "note:" not in output


def test_row_for_each_frame_is_told(tmp_path, capsys):
    folder = _folder(tmp_path / "x", {"a": 300, "b": 601})
    times = _times(tmp_path / "t.csv", "video,fps,duration\na,30,10\nb,30,20\n")
    assert main([str(folder), "--preset", "thumos14", "--times", times]) == 0
    output = capsys.readouterr().out
    assert output.count("one row per video frame") == 2
    assert _flags(output) == f"--features {folder} --preset thumos14 --times {times} --every 5 --stride 1"
    # With the suggested flags, `inspect` has no complaint.
    assert main([str(folder), "--preset", "thumos14", "--times", times, "--every", "5", "--stride", "1"]) == 0
    output = capsys.readouterr().out
    assert "one of every 5 rows used" in output and "with remarks: 0 videos" in output and "note:" not in output


def test_wrong_stride_is_told_and_mended(tmp_path, capsys):
    folder = _folder(tmp_path / "x", {"a": 100, "b": 200})
    times = _times(tmp_path / "t.csv", "video,fps,duration\na,25,32.5\nb,25,64.6\n")
    assert main([str(folder), "--preset", "thumos14", "--times", times]) == 0
    output = capsys.readouterr().out
    assert output.count("rows of 5 frames contradict the stated duration") == 2
    assert "they differ in 2 of 2 videos" in output
    assert "note: 2 videos (a, b): the stated durations fit 8 frames per row: --stride 8" in output
    assert _flags(output).endswith("--stride 8")
    assert main([str(folder), "--preset", "thumos14", "--times", times, "--stride", "8"]) == 0
    assert "note:" not in capsys.readouterr().out


def test_part_of_a_last_row_is_no_difference(tmp_path, capsys):
    folder = _folder(tmp_path / "x", {"a": 14})
    arguments = [str(folder), "--preset", "thumos14", "--fps", "25", "--stride", "64", "--duration"]
    assert main([*arguments, "33.5"]) == 0
    assert "they differ in 0 of 1 video" in capsys.readouterr().out
    assert main([*arguments, "33.2"]) == 0
    assert "they differ in 1 of 1 video" in capsys.readouterr().out


def test_rescaled_features_are_told(tmp_path, capsys):
    folder = _folder(tmp_path / "x", {"a": 100, "b": 100, "c": 100})
    times = _times(tmp_path / "t.csv", "video,fps,duration\na,25,32\nb,25,64\nc,25,300\n")
    assert main([str(folder), "--preset", "thumos14", "--times", times]) == 0
    assert "all 3 videos have 100 rows, regardless of duration: they look rescaled" in capsys.readouterr().out


def test_unrelated_durations_are_told(tmp_path, capsys):
    folder = _folder(tmp_path / "x", {"a": 100, "b": 110, "c": 120})
    times = _times(tmp_path / "t.csv", "video,fps,duration\na,25,32\nb,25,64\nc,25,300\n")
    assert main([str(folder), "--preset", "thumos14", "--times", times]) == 0
    assert "3 videos (a, b, c): no common stride fits the stated durations" in capsys.readouterr().out


def test_what_is_still_missing_is_told(tmp_path, capsys):
    folder = _folder(tmp_path / "x", {"a": 30})
    assert main([str(folder), "--preset", "thumos14"]) == 0
    output = capsys.readouterr().out
    assert "note: 1 video (a): 5 frames per row is the value of the preset, and nothing confirms it" in output
    assert "note: missing: video 'a' has no known frame rate; give --fps" in output
    assert main([str(folder), "--preset", "thumos14", "--fps", "30", "--stride", "4", "--offset", "8"]) == 0
    output = capsys.readouterr().out
    assert _flags(output) == f"--features {folder} --preset thumos14 --fps 30 --stride 4 --offset 8"
    assert "time per row: 0.1333 s" in output and "note:" not in output


def test_bad_videos_are_listed_and_exit_with_1(tmp_path, capsys):
    folder = _folder(tmp_path / "x", {"a": 30, "b": 1})
    array = np.ones((C, 40), np.float32)
    array[7, 3] = np.nan
    np.save(folder / "c.npy", array)
    array[:, 3] = 0
    np.save(folder / "d.npy", array)
    for workers in ("0", "2"):
        assert main([str(folder), "--preset", "thumos14", "--fps", "30", "--stride", "5", "--workers", workers]) == 1
        output = capsys.readouterr().out
        assert f"unusable: 2 videos\n  {folder / 'b.npy'} has 1 snippet, expected at least 2" in output
        assert f"{folder / 'c.npy'} has 1 NaN and 0 infinite values, the first at row 3" in output
        assert "1 of 40 snippets are all zero" in output
        assert "stored as: [T, C] float16 (1 video), [C, T] float32 (1 video)" in output


def test_wrong_width_exits_with_2_and_names_the_width_that_fits(tmp_path, capsys):
    folder = _folder(tmp_path / "x", {"a": 30, "b": 40, "c": 50}, channels=400)
    _folder(folder, {"d": 60}, channels=300)
    assert main([str(folder), "--preset", "thumos14"]) == 2
    output, errors = capsys.readouterr()
    assert f"unusable: 4 videos\n  {folder / 'a.npy'} has shape [30, 400], expected 2048 channels" in errors
    assert "usable" not in output
    assert "3 of 4 videos have an axis of length 400" in output
    assert f"python -m bcnet_fast.inspect {folder} --preset activitynet13" in output


@pytest.mark.parametrize("arguments", [[], ["--preset", "thumos14"]])
def test_videos_without_rows_exit_with_2_and_nothing_is_guessed(tmp_path, capsys, arguments):
    folder = _folder(tmp_path / "x", {"a": 0, "b": 0})
    assert main([str(folder), *arguments]) == 2
    output, errors = capsys.readouterr()
    assert f"unusable: 2 videos\n  {folder / 'a.npy'} has " in errors
    assert "axis" not in output and "feature-dim" not in output
    np.save(folder / "c.npy", np.ones((30, C), np.float32))
    assert main([str(folder), *arguments]) == 1
    assert "unusable: 2 videos" in capsys.readouterr().out


def test_nan_in_every_video_leads_to_no_guess_of_the_width(tmp_path, capsys):
    folder = tmp_path / "x"
    folder.mkdir()
    np.save(folder / "a.npy", np.full((30, C), np.nan, np.float32))
    assert main([str(folder), "--preset", "thumos14"]) == 2
    output, errors = capsys.readouterr()
    assert "unusable: 1 video" in errors and "61440 NaN" in errors and "axis" not in output


def test_features_of_another_width_than_a_released_network_get_flags_for_training(tmp_path, capsys):
    folder = _folder(tmp_path / "x", {"a": 30}, channels=28)
    assert main([str(folder), "--feature-dim", "28", "--fps", "30", "--stride", "5"]) == 0
    start = f"--preset small --features {folder} --fps 30 --stride 5"
    assert _flags(capsys.readouterr().out, "train") == f"{start} --annotations FILE --set model.feature_dim=28"
    assert main([str(folder), "--preset", "thumos14", "--feature-dim", "28", "--fps", "30", "--stride", "5"]) == 0
    output = capsys.readouterr().out
    note = "these flags run random weights; useful output needs a --checkpoint trained on 28 channels"
    assert f"note: {note}" in output and _flags(output).endswith("--feature-dim 28")


def test_the_table_gives_the_width_and_the_stride_of_own_features(tmp_path, capsys):
    folder = _folder(tmp_path / "my x", {"a": 100, "b": 200}, channels=28)
    database = {
        name: {"duration": duration, "fps": 25, "annotations": [{"segment": [1, 9], "label": "run"}]}
        for name, duration in (("a", 64.3), ("b", 128.1))
    }
    table = _times(tmp_path / "truth.json", json.dumps({"database": database}))
    for preset in ([], ["--preset", "small"]):
        assert main([str(folder), "--times", table, *preset]) == 0
        output = capsys.readouterr().out
        assert f"{table}: has 2 of 2 videos" in output and "with remarks: 0 videos" in output
        assert "note: 2 videos (a, b): the stated durations fit 16 frames per row: --stride 16" in output
        flags = f"--preset small --features '{folder}' --stride 16 --annotations {table}"
        assert _flags(output, "train") == flags


@pytest.mark.parametrize("times", [False, True])
def test_a_stride_that_nothing_states_is_missing_and_not_guessed(tmp_path, capsys, times):
    folder = _folder(tmp_path / "x", {"a": 100, "b": 90}, channels=28)
    table = ["--times", _times(tmp_path / "t.csv", "video,fps\na,25\nb,30\n")] if times else []
    assert main([str(folder), "--preset", "small", *table]) == 0
    output = capsys.readouterr().out
    assert "note: missing: --stride, the video frames from one row to the next, of 2 videos (a, b)" in output
    assert "time per row: unknown" in output and "--stride" not in _flags(output, "train")
    assert ("has no known frame rate" in output) != times


def test_the_suggested_command_repeats_the_table(tmp_path, capsys):
    folder = _folder(tmp_path / "x", {"a": 28, "b": 28}, channels=400)
    table = _times(tmp_path / "my t.csv", "video,fps,duration\na,25,9\nb,25,9\n")
    assert main([str(folder), "--times", table, "--every", "2"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "python -m bcnet_fast.inspect" in line]
    start = f"python -m bcnet_fast.inspect {folder}"
    assert f"{start} --feature-dim 28 --every 2 --times '{table}'" in lines
    assert f"{start} --preset activitynet13 --every 2 --times '{table}'" in lines


def test_shapes_alone_need_no_width(tmp_path, capsys):
    folder = _folder(tmp_path / "my features", {f"{n:02d}": 30 + n for n in range(12)}, channels=28)
    assert main([str(folder)]) == 0
    output = capsys.readouterr().out
    assert "[39, 28]" in output and "[41, 28]" not in output and "... and 2 more (--all lists them)" in output
    assert "12 of 12 videos have an axis of length 28. If it holds the channels:\n" in output
    assert f"python -m bcnet_fast.inspect '{folder}' --feature-dim 28" in output
    assert main([str(folder), "--all"]) == 0
    assert "[41, 28]" in capsys.readouterr().out
    (folder / "00.npy").write_bytes(b"x")
    assert main([str(folder), "--videos", "3"]) == 1
    output = capsys.readouterr().out
    assert "12 videos, reading the first 3" in output and "unusable: 1 video" in output
    assert main([str(folder), "--videos", "1"]) == 2


def test_two_stream_layout_needs_only_the_fps(tmp_path, capsys):
    for stream in ("flow", "rgb"):
        with h5py.File(tmp_path / f"{stream}_val.h5", "w") as file:
            file["video_validation_0000051"] = np.ones((1500, 1024), np.float32)
    assert main([str(tmp_path), "--preset", "thumos14", "--fps", "30", "--duration", "50"]) == 0
    output = capsys.readouterr().out
    assert "two-stream folder" in output and "one of every 5 rows used" in output
    row = next(line.split() for line in output.splitlines() if line.startswith("video_validation"))
    assert row[1:] == ["1500", "300", "[T,", "C]", "float32", "0.0333", "50.0", "50.0", "2"]
    assert "note:" not in output


def test_activitynet_preset_drops_the_prefix_and_rescales(tmp_path, capsys):
    folder = _folder(tmp_path / "x", {"v_a": 100, "v_b": 77}, channels=400)
    times = _times(tmp_path / "t.csv", "video,duration\na,50\nb,77\n")
    assert main([str(folder), "--preset", "activitynet13", "--times", times]) == 0
    output = capsys.readouterr().out
    assert "windows in total: 2" in output and "time per row: 0.5000 to 1.0000 s" in output and "note:" not in output
    with pytest.raises(InputError, match="they agree without the prefix v_, which --preset activitynet13 removes"):
        main([str(folder), "--feature-dim", "400", "--times", times])


def test_checkpoint_brings_its_own_numbers(tmp_path, capsys):
    config = PRESETS["bcnet"]["thumos14"]
    config = replace(config, preset="mine", model=replace(config.model, feature_dim=28, window=64))
    save_checkpoint(tmp_path / "net.safetensors", {"w": torch.zeros(1)}, config)
    folder = _folder(tmp_path / "x", {"a": 64, "b": 65}, channels=28)
    weights = str(tmp_path / "net.safetensors")
    assert main([str(folder), "--checkpoint", weights, "--fps", "25", "--stride", "5"]) == 0
    output = capsys.readouterr().out
    assert "preset mine, 28 channels" in output and "windows in total: 3" in output and "note:" not in output
    assert _flags(output) == f"--features {folder} --checkpoint {weights} --fps 25 --stride 5"
    with pytest.raises(InputError, match=r"--feature-dim is 30, expected 28 to fit .*net\.safetensors"):
        main([str(folder), "--checkpoint", weights, "--feature-dim", "30"])


def test_the_systems_of_a_data_set_read_features_alike():
    """So the flags that are found hold for any --model of infer."""
    for name, config in PRESETS["bcnet"].items():
        for presets in PRESETS.values():
            other = presets[name]
            assert other.data == config.data
            assert (other.model.feature_dim, other.model.window) == (config.model.feature_dim, config.model.window)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: nowhere does not exist, expected a file or folder of features"),
        ([".", "--feature-dim", "0"], "error: --feature-dim is 0, expected at least 1"),
        (["x", "--fps", "0"], "error: --fps is 0.0, expected a positive number"),
        (["x", "--videos", "0"], "error: --videos is 0, expected at least 1"),
        (["x", "--workers", "-1"], "error: --workers is -1, expected at least 0"),
        (["x", "--workers", "1025"], "error: --workers is 1025, expected at most 1024"),
        (["x", "--times", "gone.csv"], "error: gone.csv does not exist, expected ground truth"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    _folder(tmp_path / "x", {"a": 30}, channels=4)
    with pytest.raises(SystemExit, match="2"):
        run(lambda: main(arguments))
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith(message) and output.err.count("\n") == 1


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_runs_as_a_module(tmp_path, monkeypatch, capsys):
    _folder(tmp_path / "x", {"a": 30}, channels=4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["inspect.py", "x"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("bcnet_fast.inspect", run_name="__main__")
    found = capsys.readouterr()
    assert "[30, 4]" in found.out and found.err == ""


def test_real_features(shared, capsys):
    folder, table = shared / "data/salads50/features", shared / "data/salads50/annotations_knife.json"
    assert main([str(folder), "--feature-dim", "28", "--times", str(table)]) == 0
    output = capsys.readouterr().out
    assert "they differ in 0 of 50 videos" in output and "time per row: 1.0000 s" in output
