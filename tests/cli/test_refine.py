"""`python -m bcnet_fast.refine`: the same detections from every kind of input, and its messages for bad ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.refine import (
    FRAMES,
    LABELS,
    RATE,
    WIDE,
    checkpoint,
    make_features,
    make_list,
    make_results,
    results_of,
    run,
    segments_of,
)
from helpers.second_stage import SEED, STAGE2, listed
from helpers.second_stage import rows_of as golden_rows
from support import seeded_second_stage

import bcnet_fast
from bcnet_fast import convert
from bcnet_fast.config import DetectionConfig, FeatureRows, PGCNConfig
from bcnet_fast.data.annotations import THUMOS14_CLASSES
from bcnet_fast.errors import InputError
from bcnet_fast.geometry.proposal_graph import neighbour_slots
from bcnet_fast.geometry.proposal_windows import inference_ticks, pooled_rows, relative_segments
from bcnet_fast.inference.model import demo_checkpoint
from bcnet_fast.inference.refine import _Run
from bcnet_fast.networks.range_maxima import proposal_features
from bcnet_fast.proposals.second_stage import StreamScores, detect, stream_scores


@pytest.fixture
def files(tmp_path):
    """Features, a proposal list, the same as a result file, and a checkpoint."""
    return {
        "features": make_features(tmp_path / "features"),
        "list": make_list(tmp_path / "list.txt"),
        "results": make_results(tmp_path / "proposals.json"),
        "pgcn": checkpoint(tmp_path / "pgcn.safetensors"),
        "muses": checkpoint(tmp_path / "muses.safetensors", "muses"),
        "output": tmp_path / "out.json",
    }


def refined(files, system="pgcn", proposals="list", *more) -> dict[str, list[dict]]:
    assert run(files[proposals], files["features"], files[system], files["output"], "--overwrite", *more) == 0
    return results_of(files["output"])


@pytest.mark.parametrize("system", ["pgcn", "muses"])
def test_a_list_and_a_result_file_give_the_same_detections(files, system):
    expected = refined(files, system)
    assert sorted(expected) == sorted(FRAMES)
    for name, found in expected.items():
        scores = [entry["score"] for entry in found]
        assert scores == sorted(scores, reverse=True) and len(scores) > 3
        assert {entry["label"] for entry in found} <= set(LABELS)
        assert all(0 <= e["segment"][0] < e["segment"][1] <= FRAMES[name] / RATE for e in found)
    times = ["--fps", RATE, "--stride", 8]
    found = refined(files, system, "results", *times)
    # Without a stated length, the features say how long a video is, which these do exactly.
    assert found == expected


@pytest.mark.parametrize("system", ["pgcn", "muses"])
def test_rows_of_another_distance_are_refined_alike(files, system):
    """Rows every 16 frames of a video at twice the frame rate show the same at the same seconds."""
    found = refined(files, system, "results", "--fps", 2 * RATE, "--stride", 16)
    assert found == refined(files, system)


def test_detections_are_those_of_the_network_by_hand(files):
    found = refined(files)["two"]
    model = bcnet_fast.load(files["pgcn"], device="cpu")
    features, segments = torch.from_numpy(np.load(files["features"] / "two.npy")), segments_of("two")
    rows = pooled_rows(inference_ticks(segments, 320), 320, len(features), FeatureRows())
    output = model(*proposal_features(features, torch.from_numpy(rows)), neighbour_slots(segments))
    expected = detect(
        stream_scores(output, model.config.regression), relative_segments(segments, 320), DetectionConfig()
    )
    order = np.argsort(-expected.scores, kind="stable")
    order = order[expected.segments[order, 0] < expected.segments[order, 1]]
    assert [entry["score"] for entry in found] == expected.scores[order].tolist()
    np.testing.assert_allclose([e["segment"] for e in found], expected.segments[order] * 320 / RATE, atol=1e-12)
    assert [entry["label"] for entry in found] == [LABELS[code] for code in expected.classes[order]]


def test_the_release_protocol_gives_the_golden_detections(tmp_path, capsys):
    """With the public neighbour draw, in the order of the list, and without the video that has no instances."""
    stats = np.load(STAGE2 / "pgcn_train.npz")["thumos_reg_stats"]
    source = seeded_second_stage.release_file(
        tmp_path / "best.pth.tar", seeded_second_stage.state(STAGE2 / "keys.json", "pgcn", SEED), stats
    )
    convert.main(["--pgcn", str(source), "--output", str(tmp_path / "pgcn.safetensors")])
    (tmp_path / "features").mkdir()
    videos, output = listed("thumos_test"), tmp_path / "out.json"
    used = [videos[0], videos[1], videos[12]]
    for video in used:
        features = seeded_second_stage.features(video.name, golden_rows(video), SEED)
        np.save(tmp_path / f"features/{video.name}.npy", features)
    # In the arithmetic of the goldens: detections of this video have equal scores, whose order rounding would change.
    more = ["--protocol", "release", "--fps", 30, "--backend", "reference"]
    assert run(STAGE2 / "thumos_test.txt", tmp_path / "features", tmp_path / "pgcn.safetensors", output, *more) == 1
    found, known = results_of(output), np.load(STAGE2 / "pgcn_forward.npz")
    assert sorted(found) == sorted(video.name for video in used[:2])
    scores = StreamScores(known["act_02"], known["comp_02"], known["reg_02"])
    expected = detect(scores, relative_segments(videos[1].proposals, videos[1].frames), DetectionConfig())
    order = np.argsort(-expected.scores, kind="stable")
    entries = found[videos[1].name]
    np.testing.assert_allclose([e["score"] for e in entries], expected.scores[order], rtol=1e-3)
    assert [e["label"] for e in entries] == [list(THUMOS14_CLASSES)[code] for code in expected.classes[order]]
    np.testing.assert_allclose([e["segment"] for e in entries], expected.segments[order] * 100 / 30, atol=1e-4)
    errors = capsys.readouterr().err
    assert "note: 1 video without instances left out, as in the public code" in errors
    assert "failed: video_test_9000003: " in errors and "expected its features in" in errors


def test_neighbours_are_drawn_for_each_video_alone(files):
    alike = refined(files)
    drawn = refined(files, "pgcn", "list", "--draw", 3)
    assert drawn != alike and drawn != refined(files, "pgcn", "list", "--draw", 4)
    only = make_list(files["list"].with_name("only.txt"), {"three": segments_of("three")})
    assert run(only, files["features"], files["pgcn"], files["output"], "--overwrite", "--draw", 3) == 0
    assert results_of(files["output"])["three"] == drawn["three"]


def test_two_streams_are_fused_by_their_weights(files, tmp_path):
    other, second = make_features(tmp_path / "second", seed=1), checkpoint(tmp_path / "second.safetensors", seed=1)
    both = [files["features"], other], [files["pgcn"], second]
    weights = ("--stream-weights", 1.2, 1)
    assert run(files["list"], *both, files["output"], *weights) == 0
    expected = results_of(files["output"])
    assert expected != refined(files)
    (tmp_path / "joined").mkdir()
    for name in FRAMES:
        parts = [np.load(folder / f"{name}.npy") for folder in both[0]]
        np.save(tmp_path / f"joined/{name}.npy", np.concatenate(parts, axis=1))
    assert run(files["list"], tmp_path / "joined", both[1], files["output"], "--overwrite", *weights) == 0
    assert results_of(files["output"]) == expected
    assert run(files["list"], *both, files["output"], "--overwrite", *weights, "--workers", 1) == 0
    assert results_of(files["output"]) == expected
    assert run(files["list"], both[0], both[1], files["output"], "--overwrite", "--stream-weights", 1, 0) == 0
    alone = results_of(files["output"])["one"]
    more = ["--nms-threshold", 0.32]  # that of two streams
    assert alone == refined(files, "pgcn", "list", *more)["one"]


def test_class_scores_multiply(files, tmp_path):
    rows = [f"{name},{label},{score}" for name in FRAMES for label, score in (("cut", 0.5), ("peel", 0))]
    (tmp_path / "scores.csv").write_text("\n".join(["video,label,score", *rows]))
    plain, found = refined(files), refined(files, "pgcn", "list", "--labels", tmp_path / "scores.csv")
    best = [max(entry["score"] for entry in one["one"] if entry["label"] == "cut") for one in (plain, found)]
    assert best[1] == pytest.approx(0.5 * best[0])
    assert max(entry["score"] for entry in found["one"] if entry["label"] != "cut") == 0


def test_odd_videos_are_refined_counted_and_named(files, tmp_path, capsys):
    """No proposal, one, those outside, no features, features of zeros, and features that no proposal asks for."""
    inside = np.array([[30, 90]])
    proposals = {"one": inside, "two": np.zeros((0, 2), int), "three": np.array([[5, 50], [900, 950], [20, 20]])}
    listed = make_list(tmp_path / "odd.txt", proposals)
    listed.write_text(listed.read_text() + "# 3\nnowhere\n100\n1\n0\n0\n")
    for name in ("unasked", "three"):
        np.save(files["features"] / f"{name}.npy", np.zeros((22, 6), np.float32))
    assert run(listed, files["features"], files["pgcn"], files["output"]) == 1
    found, said = results_of(files["output"]), capsys.readouterr()
    assert sorted(found) == ["one", "three", "two"] and not found["two"]
    assert len(found["one"]) == len(found["three"]) == len(LABELS)
    assert "3 videos, 2 proposals refined, 6 detections" in said.out
    for line in (
        "note: 2 proposals left out: empty, or after the end of the video",
        "note: 1 video without proposals, so without detections",
        "note: 1 proposal whose features are all 0, so without neighbours",
        "note: 1 video with features, but without proposals (unasked)",
        f"failed: nowhere: {listed} has proposals of video 'nowhere', expected its features in {files['features']}",
    ):
        assert line in said.err, line


def test_one_bad_video_does_not_stop_the_others(files, capsys):
    np.save(files["features"] / "two.npy", np.full((33, 6), np.nan, np.float32))
    assert run(files["list"], files["features"], files["pgcn"], files["output"]) == 1
    assert sorted(results_of(files["output"])) == ["one", "three"]
    assert "failed: two: " in capsys.readouterr().err
    make_features(files["features"].with_name("new"))
    (files["features"] / "two.npy").write_bytes((files["features"].with_name("new") / "two.npy").read_bytes())
    assert run(files["list"], files["features"], files["pgcn"], files["output"], "--resume") == 0
    assert "resumed: 2 of 3 videos are already done" in capsys.readouterr().out
    done = results_of(files["output"])
    assert done == refined(files)


def test_a_network_whose_scores_overflow_fails_for_each_video_by_name(files):
    weights = checkpoint(files["pgcn"], std=1e38)
    with pytest.raises(
        InputError, match=r"video 'one': the network's scores have NaN or infinity.* 2 other videos failed"
    ):
        run(files["list"], files["features"], weights, files["output"])
    assert not files["output"].exists()


@pytest.mark.parametrize("protocol", ["default", "release"])
def test_an_interrupted_run_goes_on_to_the_same_detections(files, protocol, monkeypatch, capsys):
    more = ("--protocol", protocol)
    whole = refined(files, "pgcn", "list", *more)
    original, seen = _Run._video, []

    def video(run, name, *rest, **options):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(name)
        original(run, name, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_video", video)
        with pytest.raises(KeyboardInterrupt):
            run(files["list"], files["features"], files["pgcn"], files["output"], "--overwrite", *more)
    assert "holds 2 finished videos; continue with --resume" in capsys.readouterr().err
    again = ("--resume", *more)
    assert run(files["list"], files["features"], files["pgcn"], files["output"], *again) == 0
    assert results_of(files["output"]) == whole
    with pytest.raises(InputError, match="other values of nms_threshold"):
        run(files["list"], files["features"], files["pgcn"], files["output"], "--resume", *more, "--nms-threshold", 0.1)


def test_pictures_show_the_classes(files, tmp_path):
    assert refined(files, "pgcn", "list", "--plot", tmp_path / "pictures", "--srt", tmp_path / "srt", "--best", 3)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {f"{name}.png" for name in FRAMES}
    assert (tmp_path / "srt" / "one.srt").read_text().count("-->") == 3


def test_an_existing_output_is_kept(files):
    files["output"].write_text("mine")
    with pytest.raises(InputError, match="exists; replace it with --overwrite, or complete it with --resume"):
        run(files["list"], files["features"], files["pgcn"], files["output"])
    assert files["output"].read_text() == "mine"


def refusal(files, **changes) -> str:
    given = {name: changes.pop(name, files[name]) for name in ("list", "features", "pgcn", "output")}
    with pytest.raises(InputError) as error:
        run(*given.values(), *changes.pop("more", ()))
    assert not files["output"].exists() and not list(files["output"].parent.glob("*.partial"))
    return str(error.value)


def test_what_does_not_fit_is_one_line(files, tmp_path):
    others = checkpoint(tmp_path / "other.safetensors", labels=("a", "b", "c"))
    assert "expected cut, peel, stir in this order, as" in refusal(files, pgcn=[files["pgcn"], others])
    more = checkpoint(tmp_path / "more.safetensors", model=PGCNConfig(classes=4, feature_dim=6, hidden=5), labels=None)
    assert "more.safetensors has 4 classes, expected 3 as" in refusal(files, pgcn=[files["pgcn"], more])
    assert "--classes is required" in refusal(files, pgcn=more)
    (tmp_path / "names.txt").write_text("a\nb\n")
    assert "names.txt has 2 classes, expected 4" in refusal(
        files, pgcn=more, more=["--classes", tmp_path / "names.txt"]
    )
    wide = checkpoint(tmp_path / "wide.safetensors", model=WIDE)
    assert "has shape [43, 6], expected 10 channels" in refusal(files, pgcn=wide)
    assert "expected 16 (6 + 10) channels" in refusal(files, pgcn=[files["pgcn"], wide])
    unknown = checkpoint(tmp_path / "unknown.safetensors", regression=None)
    assert "unknown.safetensors has no regression statistics" in refusal(files, pgcn=unknown)
    assert run(files["list"], files["features"], unknown, files["output"], "--no-regression") == 0
    files["output"].unlink()
    results = files["results"]
    assert "--fps or --times is required" in refusal(files, list=results)
    assert "--stream-weights has 2 numbers" in refusal(files, more=["--stream-weights", 1, 2])
    (tmp_path / "elsewhere.txt").write_text("# 0\nv\n4\n25\n0\n1\n0 0 0 5 9\n")
    assert "has 1 video, such as 'v', expected some of the 3" in refusal(files, list=tmp_path / "elsewhere.txt")
    (tmp_path / "strange.csv").write_text("a,b\n1,2\n")
    assert "strange.csv" in refusal(files, list=tmp_path / "strange.csv")
    demo = demo_checkpoint()
    assert "has weights of bcnet, expected a network of pgcn or muses" in refusal(files, pgcn=demo)


def test_labels_of_a_result_file_are_not_used(files, tmp_path, capsys):
    times = ["--fps", RATE]
    plain = refined(files, "pgcn", "results", *times)
    twice = {name: np.repeat(segments_of(name), 2, axis=0) for name in FRAMES}
    labelled = make_results(tmp_path / "labelled.json", twice, label="any")
    assert run(labelled, files["features"], files["pgcn"], files["output"], "--overwrite", *times) == 0
    assert results_of(files["output"]) == plain
    assert "has labels, which are not used" in capsys.readouterr().err
