"""`python -m bcnet_fast.infer` as a user runs it: archives in, submission JSON out, one clear line for bad input."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.infer import LENGTHS, MAP_MODELS, map_checkpoint, map_config, results_of, run

from bcnet_fast import infer
from bcnet_fast.errors import BackendError, InputError
from bcnet_fast.results import fusion
from bcnet_fast.results.subtitles import write_subtitles


def test_output_is_a_complete_submission_best_first_and_inside_the_video(checkpoint, features):
    code, output = run(checkpoint, features)
    content = json.loads(output.read_text())
    assert code == 0
    assert content.keys() == {"version", "results", "external_data"}
    assert list(content["results"]) == sorted(LENGTHS)
    for video, proposals in content["results"].items():
        assert proposals
        scores = [p["score"] for p in proposals]
        assert scores == sorted(scores, reverse=True)
        # 5 video frames a snippet, 25 frames a second
        assert all(0 <= p["segment"][0] < p["segment"][1] <= LENGTHS[video] * 5 / 25 for p in proposals)
    assert not list(features.parent.glob("*.partial"))


@pytest.mark.parametrize("more", [("--batch-size", 1), ("--batch-size", 3), ("--batch-size", 64), ("--workers", 2)])
def test_results_do_not_depend_on_batches_or_workers(checkpoint, features, more):
    expected = run(checkpoint, features)[1].read_bytes()
    assert run(checkpoint, features, *more)[1].read_bytes() == expected


def test_an_hdf5_file_gives_what_the_folder_gives(checkpoint, features):
    archive = features.parent / "features.h5"
    with h5py.File(archive, "w") as file:
        for video in reversed(LENGTHS):
            file[video] = np.load(features / f"{video}.npy")
    expected = results_of(run(checkpoint, features)[1])
    assert results_of(run(checkpoint, archive)[1]) == expected
    assert results_of(run(checkpoint, features / "d.npy")[1]) == {"d": expected["d"]}


def test_one_bad_video_does_not_lose_the_others(checkpoint, features, capsys):
    expected = results_of(run(checkpoint, features)[1])
    np.save(features / "b.npy", np.full((24, 10), np.nan, np.float32))
    (features / "e.npy").write_bytes(b"not an array")
    code, output = run(checkpoint, features)
    assert code == 1
    del expected["b"]
    assert results_of(output) == expected
    errors = capsys.readouterr().err
    assert "failed: b: " in errors and "b.npy" in errors and "failed: e: " in errors


def test_an_archive_of_bad_videos_only_writes_nothing(checkpoint, features):
    for video in LENGTHS:
        np.save(features / f"{video}.npy", np.zeros((20, 3), np.float32))
    output = features.parent / "out.json"
    with pytest.raises(
        InputError, match=r"a.npy has shape \[20, 3\], expected 10 channels \(and 3 other videos failed\)"
    ):
        run(checkpoint, features)
    assert not output.exists() and not list(features.parent.glob("*.partial"))


def test_release_protocol_rounds_and_the_default_does_not(checkpoint, features):
    rounded = results_of(run(checkpoint, features, "--protocol", "release")[1])
    for proposals in rounded.values():
        for p in proposals:
            assert [p["score"], *p["segment"]] == [round(p["score"], 6), *(round(t, 1) for t in p["segment"])]
    exact = results_of(run(checkpoint, features)[1])
    assert any(p["score"] != round(p["score"], 6) for proposals in exact.values() for p in proposals)


@pytest.mark.parametrize("system", MAP_MODELS)
def test_maps_give_complete_submissions_with_any_backend_and_batch(tmp_path, features, system, capsys):
    weights = map_checkpoint(tmp_path, map_config(system))
    code, output = run(weights, features, "--model", system, "--plot", tmp_path / "pictures", "--precision", "fp64")
    assert code == 0 and {path.stem for path in (tmp_path / "pictures").iterdir()} == set(LENGTHS)
    content, expected = json.loads(output.read_text()), results_of(output)
    assert f"{system}, preset small, checkpoint {system}.safetensors, fp64, " in content["external_data"]["details"]
    for video, proposals in expected.items():
        # Windows of 24 every 12 snippets, 20 proposals of each, 50 of a video; a window of 7 snippets has 28 cells.
        assert len(proposals) == {"a": 50, "b": 20, "c": 20, "d": 40}[video]
        scores = [p["score"] for p in proposals]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= p["segment"][0] < p["segment"][1] <= LENGTHS[video] * 5 / 25 for p in proposals)
    for more in (("--backend", "reference"), ("--batch-size", 1)):
        found = results_of(run(weights, features, "--precision", "fp64", *more)[1])
        for video, proposals in expected.items():
            assert [p["segment"] for p in found[video]] == [p["segment"] for p in proposals]
            np.testing.assert_allclose(*([p["score"] for p in r[video]] for r in (found, expected)), rtol=1e-9)


def test_the_release_is_that_of_the_model(tmp_path, features):
    """G-TAD's rounds nothing, looks at padding, and never reaches the end of a window."""
    weights = map_checkpoint(tmp_path, map_config("gtad"))
    released, default = (results_of(run(weights, features, "--protocol", name)[1]) for name in ("release", "default"))
    assert any(p["score"] != round(p["score"], 6) for p in released["a"])
    assert max(p["segment"][1] for p in released["c"]) > LENGTHS["c"] * 5 / 25
    assert all(p["segment"][1] < 24 * 5 / 25 for p in released["b"])
    assert any(p["segment"][1] == 24 * 5 / 25 for p in default["b"])


def test_bmn_s_release_counts_whole_snippets_and_needs_the_number_of_frames(tmp_path, features):
    weights = map_checkpoint(tmp_path, map_config("bmn", rescale=True, stride=16.0))
    table, output = tmp_path / "times.csv", tmp_path / "out.json"
    arguments = ["--checkpoint", weights, "--features", features / "c.npy", "--output", output, "--times", table]
    arguments += ["--overwrite"]

    def segments(*more: object) -> np.ndarray:
        assert infer.main([str(part) for part in [*arguments, *more]]) == 0
        return np.array([p["segment"] for p in results_of(output)["c"]])

    table.write_text("video,duration,frames\nc,10,100\n")
    released, default = segments("--protocol", "release"), segments()
    assert default.max() == 10.0
    # 6 of 16 frames; the last of 24 boundaries is the end of the video, which no proposal of the release reaches.
    assert released.max() == pytest.approx(9.6 * 23 / 24)
    table.write_text("video,duration\nc,10\n")
    with pytest.raises(InputError, match=r"video 'c' has no known number of frames, .* a column frames") as error:
        segments("--protocol", "release")
    assert "\n" not in str(error.value)
    assert np.array_equal(segments(), default)


def test_random_weights_are_those_of_the_model_that_is_asked_for(features, capsys):
    output = features.parent / "out.json"
    arguments = ["--features", features / "c.npy", "--output", output, "--duration", 9, "--feature-dim", 10]
    arguments += ["--preset", "activitynet13", "--model", "gtad", "--overwrite"]
    assert infer.main([str(part) for part in arguments]) == 0
    assert "gtad, preset activitynet13, random weights" in json.loads(output.read_text())["external_data"]["details"]
    assert "warning: without --checkpoint" in capsys.readouterr().err
    with pytest.raises(InputError, match="precision is 'int8'"):
        infer.main([str(part) for part in [*arguments, "--precision", "int8"]])


def test_labels_turn_proposals_into_detections(checkpoint, features):
    plain = results_of(run(checkpoint, features)[1])
    scores = features.parent / "classes.json"
    scores.write_text(json.dumps({video: {"run": 0.5, "jump": 0.25, "sit": 0.1} for video in LENGTHS}))
    detections = results_of(run(checkpoint, features, "--labels", scores, "--top-k", 2)[1])
    for video, proposals in plain.items():
        both = [(name, p["score"] * s, p["segment"]) for p in proposals for name, s in (("run", 0.5), ("jump", 0.25))]
        found = [(d["label"], d["score"], d["segment"]) for d in detections[video]]
        assert found == sorted(both, key=lambda detection: -detection[1])
    root = results_of(run(checkpoint, features, "--labels", scores, "--fusion", "sqrt")[1])
    assert root["a"][0]["score"] == pytest.approx((plain["a"][0]["score"] * 0.5) ** 0.5)


def test_a_video_without_class_scores_is_reported(checkpoint, features, capsys):
    scores = features.parent / "classes.json"
    scores.write_text(json.dumps({video: {"run": 0.5} for video in "abc"}))
    code, output = run(checkpoint, features, "--labels", scores)
    assert code == 1 and set(results_of(output)) == set("abc")
    assert "failed: d: " in capsys.readouterr().err


def test_a_stray_file_among_the_features_is_reported(checkpoint, features, capsys):
    (features / "notes.csv").write_text("camera,1\n")
    code, output = run(checkpoint, features)
    assert code == 1 and set(results_of(output)) == set(LENGTHS)
    assert "failed: notes: " in capsys.readouterr().err


def test_a_video_with_more_detections_than_its_file_may_have_fails_alone(checkpoint, features, capsys, monkeypatch):
    scores = features.parent / "classes.json"
    scores.write_text(json.dumps({video: {"run": 0.5, "jump": 0.25} for video in LENGTHS}))
    counts = {video: len(proposals) for video, proposals in results_of(run(checkpoint, features)[1]).items()}
    monkeypatch.setattr(fusion, "MOST_DETECTIONS", 2 * min(counts.values()))
    code, output = run(checkpoint, features, "--labels", scores, "--top-k", 300_000)
    assert code == 1 and set(results_of(output)) == {video for video in counts if counts[video] == min(counts.values())}
    most = max(counts, key=counts.__getitem__)
    assert f"classes.json: {most!r} has {counts[most]:,} proposals with 2 classes each, exp" in capsys.readouterr().err
    # A single class makes no more detections than there are proposals.
    assert run(checkpoint, features, "--labels", scores)[0] == 0


def test_pictures_and_subtitles(checkpoint, features):
    truth = features.parent / "truth.json"
    instance = {"segment": [1.0, 3.0], "label": "run"}
    truth.write_text(json.dumps({"database": {"a": {"duration": 12.0, "fps": 25, "annotations": [instance]}}}))
    folder = features.parent / "shown"
    run(checkpoint, features, "--plot", folder, "--srt", folder, "--best", 3, "--ground-truth", truth)
    assert {p.name for p in folder.iterdir()} == {f"{v}{s}" for v in LENGTHS for s in (".png", ".srt")}
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "a.srt").read_text().count(" --> ") == 3


def test_subtitles_follow_the_format(tmp_path):
    segments, scores = np.array([[3661.0, 3662.5], [0.25, 2.0]]), np.array([0.9, 0.5])
    write_subtitles(tmp_path / "x.srt", segments, scores, ["run", "jump"])
    assert (tmp_path / "x.srt").read_text() == (
        "1\n00:00:00,250 --> 00:00:02,000\n#2 jump 0.500\n\n2\n01:01:01,000 --> 01:01:02,500\n#1 run 0.900\n\n"
    )


def test_time_comes_from_a_table_and_flags_go_before_it(checkpoint, features):
    table = features.parent / "times.csv"
    table.write_text("video,fps,stride\n" + "".join(f"{video},50,5\n" for video in LENGTHS))
    output = features.parent / "out.json"
    arguments = ["--checkpoint", checkpoint, "--features", features, "--output", output, "--times", table]
    arguments += ["--overwrite"]
    infer.main([str(a) for a in arguments])
    halved = results_of(output)
    seconds = results_of(run(checkpoint, features)[1])
    for video in LENGTHS:
        at_50, at_25 = (np.array([p["segment"] for p in r[video]]) for r in (halved, seconds))
        np.testing.assert_allclose(at_50 * 2, at_25)
    infer.main([str(a) for a in [*arguments, "--fps", 25]])
    assert results_of(output) == seconds


def test_random_weights_need_a_preset_and_say_so(features, capsys):
    output = features.parent / "out.json"
    arguments = ["--features", str(features / "c.npy"), "--output", str(output), "--fps", "25"]
    with pytest.raises(InputError, match="--checkpoint is required, or --preset for random weights"):
        infer.main(arguments)
    assert infer.main([*arguments, "--preset", "synthetic", "--feature-dim", "10", "--stride", "5"]) == 0
    assert "warning: without --checkpoint the weights are random" in capsys.readouterr().err
    assert "random weights" in json.loads(output.read_text())["external_data"]["details"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "out.json"], "--features is required"),
        (["--features", "nowhere", "--output", "x.json"], "nowhere does not exist"),
        (["--nonsense", "1"], "unknown flag --nonsense; see --help"),
        (["--batch-size", "0"], "--batch-size is 0, expected at least 1"),
        (["--workers", "1025"], "--workers is 1025, expected at most 1024"),
        (["--decoder-threads", "1025"], "--decoder-threads is 1025, expected at most 1024"),
        (["--cpus-per-worker", "1025"], "--cpus-per-worker is 1025, expected at most 1024"),
        (["--preset", "thumos14"], "--preset is thumos14, expected small to fit .*small.safetensors"),
        (["--feature-dim", "11"], "--feature-dim is 11, expected 10 to fit"),
        (["--model", "gtad"], "--model is gtad, expected bcnet to fit"),
        (["--fps", "-1"], "--fps is -1.0, expected a positive number"),
        (["--times", "gone.csv"], "gone.csv does not exist"),
        (["--labels", "gone.json"], "gone.json does not exist"),
        (["--output", "."], "is a folder, expected a file name to write to"),
        (["--output", "/dev/null"], "/dev/null is a device, expected a file name to write to"),
        (["--output", "features/a.npy/out.json"], r"features/a\.npy/out\.json is not writable"),
        (["--plot", "features/a.npy"], r"features/a\.npy/picture\.png is not writable"),
        (["--plot", "./one.png"], r"--plot \./one\.png is one picture, expected a folder for 4 videos"),
        (["--plot", "one.jpg"], r"--plot one\.jpg has suffix '\.jpg', expected \.png, \.svg, \.pdf or a folder"),
        (["--plot-format", "svg"], "--plot-format is svg, expected --plot with it"),
        (["--srt", "features/a.npy/below"], "is not writable"),
        (["--feature-dim", "0"], "--feature-dim is 0, expected at least 1"),
        (["--device", "meta"], "--device is 'meta', expected auto, cpu or cuda"),
        (["--ground-truth", "other.json"], "other.json has 1 video, expected some of the 4 in .*features, such as 'a'"),
        (["--labels", "scores.json"], "scores.json has 1 video, expected some of the 4 in .*features, such as 'a'"),
        pytest.param(
            ["--device", "cuda"],
            "sees 0 CUDA devices here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device"),
        ),
    ],
)
def test_bad_input_is_one_clear_line(checkpoint, features, flags, message, monkeypatch):
    monkeypatch.chdir(features.parent)
    Path("other.json").write_text('{"database": {"elsewhere": {"annotations": []}}}')
    Path("scores.json").write_text('{"elsewhere": {"run": 0.5}}')
    arguments = {"--checkpoint": checkpoint, "--features": features, "--output": "out.json", "--fps": 25}
    if flags[0] == "--output" and len(flags) == 2 and flags[1] == "out.json":
        arguments = {}
    arguments |= dict(zip(flags[::2], flags[1::2], strict=True))
    with pytest.raises(InputError, match=message) as error:
        infer.main([str(part) for pair in arguments.items() for part in pair])
    assert "\n" not in str(error.value)
    assert not (features.parent / "out.json").exists()


def test_frames_per_second_are_asked_for_before_any_work(checkpoint, features):
    arguments = ["--checkpoint", checkpoint, "--features", features, "--output", features.parent / "out.json"]
    with pytest.raises(InputError, match="--fps or --times is required"):
        infer.main([str(a) for a in arguments])


def test_annotations_of_other_videos_are_refused(checkpoint, features):
    table = features.parent / "times.csv"
    table.write_text("video,fps\nelsewhere,25\n")
    with pytest.raises(
        InputError, match=r"times.csv has 1 video, such as 'elsewhere', expected some of the 4 in .*features"
    ):
        run(checkpoint, features, "--times", table)


def test_an_unusable_backend_is_refused(checkpoint, features):
    with pytest.raises(BackendError, match="backend 'triton' cannot be used: "):
        run(checkpoint, features, "--backend", "triton")


def test_the_environment_chooses_the_backend_where_no_flag_does(checkpoint, features, monkeypatch):
    monkeypatch.setenv("BCNET_FAST_BACKEND", "abacus")
    with pytest.raises(BackendError, match="backend is 'abacus', expected auto, "):
        run(checkpoint, features)


def test_odd_names_can_be_drawn(checkpoint, features):
    (features / "a.npy").rename(features / "a$x_{$.npy")
    (features / "b.npy").rename(features / "視頻.npy")
    code, _ = run(checkpoint, features, "--plot", features.parent / "pictures")
    assert code == 0 and len(list((features.parent / "pictures").glob("*.png"))) == 4


def test_an_assumed_stride_is_said(checkpoint, features, capsys):
    run(checkpoint, features)
    assert "note: without --stride, assuming 5 video frames between rows" in capsys.readouterr().err
    run(checkpoint, features, "--stride", 8)
    assert "note:" not in capsys.readouterr().err


@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-9), ("fp32", 1e-4)])
def test_engine_and_reference_give_the_same_proposals(checkpoint, features, precision, tolerance):
    automatic = results_of(run(checkpoint, features, "--precision", precision)[1])
    reference = results_of(run(checkpoint, features, "--precision", precision, "--backend", "reference")[1])
    for video in LENGTHS:
        assert [p["segment"] for p in automatic[video]] == [p["segment"] for p in reference[video]]
        scores = ([p["score"] for p in found[video]] for found in (automatic, reference))
        np.testing.assert_allclose(*scores, rtol=tolerance)


def test_profile_names_the_stages_and_writes_a_trace(checkpoint, features, tmp_path, capsys):
    trace = tmp_path / "trace.json"
    code, _ = run(checkpoint, features, "--profile", "--trace", str(trace))
    assert code == 0
    printed = capsys.readouterr().out
    for stage in ("network", "clips: difference", "window proposals", "video proposals"):
        assert stage in printed
    events = json.loads(trace.read_text())["traceEvents"]
    assert {"network", "video proposals"} <= {event["name"] for event in events}
    assert all(event["dur"] >= 0 for event in events)


def test_int8_gives_proposals_and_bf16_on_a_cpu_is_said_to_be_slower(checkpoint, features, capsys):
    for precision in ("int8", "bf16"):
        code, output = run(checkpoint, features, "--precision", precision)
        assert code == 0 and all(results_of(output)[video] for video in LENGTHS)
    assert "warning: precision bf16 has no kernels of its own on a CPU" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_module_exits_with_code_2_and_one_line(features, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["infer.py", "--features", str(features), "--output", "x.json"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("bcnet_fast.infer", run_name="__main__")
    errors = capsys.readouterr().err
    assert errors.startswith("error: --checkpoint is required") and errors.count("\n") == 1
