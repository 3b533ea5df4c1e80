"""From videos to proposals: sidecars, a checkpoint that knows its recipe, and the commands that take videos."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from helpers.infer import results_of
from helpers.refine import checkpoint as second_stage
from helpers.training import SIZES, SMALL
from helpers.videos import write_video
from helpers.view import data_of

from bcnet_fast import extract, infer, inspect, refine, train
from bcnet_fast.config import Config, PGCNConfig, SecondStageConfig
from bcnet_fast.data.annotations import read_annotations
from bcnet_fast.data.features import open_features
from bcnet_fast.data.timing import TimeFlags, TimeResolver
from bcnet_fast.errors import InputError
from bcnet_fast.presets import PRESETS
from bcnet_fast.storage.checkpoint import read_any_config, read_config
from bcnet_fast.storage.lock import Lock
from bcnet_fast.training.dataset import fitted_sizes

RECIPE = "clip = 8\nstride = 2\nfps = 12.5\noffset = 4\n"
FRAMES = 120  # 4.8 s; 60 of them are sampled, for 27 rows


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six videos, two of them to validate on, with annotations that state neither frame rate nor stride."""
    folder = tmp_path_factory.mktemp("data")
    database = {}
    for number in range(6):
        name = f"video_{number}"
        write_video(folder / "clips" / f"{name}.mp4", FRAMES)
        start = 0.8 + 0.4 * number
        database[name] = {
            "subset": "training" if number < 4 else "validation",
            "annotations": [{"segment": [start, start + 1], "label": "act"}],
        }
    (folder / "annotations.json").write_text(json.dumps({"database": database}))
    (folder / "mine.toml").write_text(RECIPE)
    return folder


def network(data: Path) -> list[str]:
    return ["--recipe", str(data / "mine.toml"), "--backbone", "frame-index"]


def training(data: Path, output: Path, *more: object) -> list[str]:
    settings = [*SMALL, *SIZES["bmn"], "train.epochs=1", "train.batch_size=8"]
    flags = [
        "--preset",
        "synthetic",
        "--model",
        "bmn",
        "--annotations",
        data / "annotations.json",
        "--output",
        output,
        "--device",
        "cpu",
    ]
    return [str(flag) for flag in (*flags, *more, "--set", *settings)]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """The run folder of a training on videos."""
    output = tmp_path_factory.mktemp("run")
    train.main(training(data, output, *network(data), "--videos", data / "clips"))
    return output


def propose(output: Path, *arguments: object) -> int:
    flags = (*arguments, "--output", output, "--device", "cpu", "--overwrite")
    return infer.main([str(flag) for flag in flags])


def test_a_training_on_videos_needs_no_times_and_remembers_the_recipe(data, trained) -> None:
    config = read_config(trained / "best.safetensors")
    assert config.trained_on is not None and config.recipe is not None
    assert (config.trained_on.fps, config.trained_on.row_stride, config.trained_on.offset) == (12.5, 2, 4)
    assert (config.recipe.name, config.recipe.clip, config.recipe.backbone) == ("mine", 8, "frame-index")
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_video_and_its_features_give_the_same_proposals(data, trained, tmp_path, capsys) -> None:
    checkpoint = trained / "best.safetensors"
    clip, found = data / "clips" / "video_5.mp4", tmp_path / "out.json"
    assert propose(found, clip, "--checkpoint", checkpoint, "--keep-features", tmp_path / "kept") == 0
    kept = np.load(tmp_path / "kept" / "video_5.npy")
    assert kept.shape == (27, 8) and np.array_equal(kept[1], np.arange(2, 10) * 2)
    assert propose(tmp_path / "memory.json", clip, "--checkpoint", checkpoint) == 0
    assert propose(tmp_path / "again.json", "--features", tmp_path / "kept", "--checkpoint", checkpoint) == 0
    expected = results_of(found)
    assert list(expected) == ["video_5"] and len(expected["video_5"]) > 0
    assert results_of(tmp_path / "memory.json") == results_of(tmp_path / "again.json") == expected
    assert max(one["segment"][1] for one in expected["video_5"]) <= FRAMES / 25
    assert "note" not in capsys.readouterr().err


def test_a_second_run_with_the_same_kept_features_is_refused_but_for_shards(data, trained, tmp_path) -> None:
    kept = tmp_path / "kept"
    flags = (data / "clips" / "video_5.mp4", "--checkpoint", trained / "best.safetensors", "--keep-features", kept)
    kept.mkdir()
    lock = Lock(kept / ".lock")
    with pytest.raises(InputError, match="kept is in use by another run"):
        propose(tmp_path / "out.json", *flags)
    assert [path.name for path in kept.iterdir()] == [".lock"] and not list(tmp_path.glob("out.json*"))
    assert propose(tmp_path / "parts", *flags, "--shard", "0/1") == 0
    lock.release(remove=True)
    assert propose(tmp_path / "out.json", *flags) == 0
    assert sorted(path.name for path in kept.iterdir()) == ["video_5.json", "video_5.npy"]


def test_the_page_of_videos_plays_them_and_refine_reads_their_features_again(data, trained, tmp_path) -> None:
    flags = (data / "clips" / "video_5.mp4", "--checkpoint", trained / "best.safetensors")
    assert propose(tmp_path / "out.json", *flags, "--page", tmp_path / "page.html") == 0
    (shown,) = data_of(tmp_path / "page.html")["videos"]
    assert (tmp_path / unquote(shown["source"]["link"])).resolve() == (data / "clips" / "video_5.mp4").resolve()
    model = PGCNConfig(classes=3, feature_dim=8, hidden=5)
    second = second_stage(tmp_path / "second.safetensors", model=model, std=1e-4)
    with pytest.raises(InputError, match="--refine reads the features again, expected --keep-features DIR"):
        propose(tmp_path / "out.json", *flags, "--refine", second)
    kept = ("--refine", second, "--keep-features", tmp_path / "kept")
    assert propose(tmp_path / "out.json", *flags, *kept) == 0
    assert all("label" in one for one in results_of(tmp_path / "out.json")["video_5"])


def test_features_of_a_training_on_files_are_those_of_the_videos(data, trained, tmp_path) -> None:
    features = tmp_path / "features"
    assert extract.main([str(data / "clips"), *network(data), "--output", str(features)]) == 0
    train.main(training(data, tmp_path / "run", "--features", features))
    mine, other = (read_config(run / "best.safetensors") for run in (tmp_path / "run", trained))
    assert (mine.trained_on, mine.recipe) == (other.trained_on, other.recipe)
    assert (tmp_path / "run" / "log.csv").read_text() == (trained / "log.csv").read_text()


def test_one_hdf5_file_says_what_a_folder_says(data, trained, tmp_path, capsys) -> None:
    pytest.importorskip("h5py", reason="needs h5py: pip install bcnet_fast[hdf5]")
    file, clip = tmp_path / "features.h5", data / "clips" / "video_5.mp4"
    assert extract.main([str(clip), *network(data), "--output", str(file)]) == 0
    flags = ("--checkpoint", trained / "best.safetensors")
    assert propose(tmp_path / "one.json", "--features", trained / "features", *flags) == 0
    assert propose(tmp_path / "other.json", "--features", file, *flags) == 0
    assert results_of(tmp_path / "other.json")["video_5"] == results_of(tmp_path / "one.json")["video_5"]
    with pytest.raises(InputError, match=r"--keep-features is .*features.h5, expected a folder"):
        propose(tmp_path / "new.json", clip, *flags, "--keep-features", file)
    capsys.readouterr()
    assert inspect.main([str(file), "--preset", "small", "--feature-dim", "8"]) == 0
    assert re.search(r"video_5 +27 +27 .* 0\.1600 +4\.3 +4\.8", capsys.readouterr().out)


@pytest.mark.slow
def test_processes_that_read_videos_change_nothing(data, trained, tmp_path, capsys) -> None:
    flags = [data / "clips", "--checkpoint", trained / "best.safetensors"]
    assert propose(tmp_path / "one.json", *flags) == 0
    (tmp_path / "bad.mp4").write_text("hello")
    for more in ([], ["--keep-features", tmp_path / "kept"]):
        assert propose(tmp_path / "two.json", tmp_path / "bad.mp4", *flags, "--workers", 2, *more) == 1
        assert results_of(tmp_path / "two.json") == results_of(tmp_path / "one.json")
        assert "bad.mp4 is no video that FFmpeg reads" in capsys.readouterr().err
    assert len(list((tmp_path / "kept").glob("*.npy"))) == 6


def test_inspect_takes_times_from_the_sidecars(data, trained, capsys) -> None:
    assert inspect.main([str(trained / "features"), "--preset", "small"]) == 0  # nor the width, 8 or 27 by the shapes
    out = capsys.readouterr().out
    assert re.search(r"video_0 +27 +27 .* 0\.1600 +4\.3 +4\.8", out)
    assert "missing" not in out and "--fps" not in out


def test_bad_videos_do_not_stop_the_others(data, trained, tmp_path, capsys) -> None:
    (tmp_path / "bad.mp4").write_text("hello")
    clips = [data / "clips" / "video_4.mp4", tmp_path / "bad.mp4", "http://example.org/a.mp4"]
    assert propose(tmp_path / "out.json", *clips, "--checkpoint", trained / "best.safetensors") == 1
    assert list(results_of(tmp_path / "out.json")) == ["video_4"]
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed")]
    assert len(failed) == 2 and any("bad.mp4 is no video that FFmpeg reads" in line for line in failed)


def test_a_recipe_that_does_not_fit_the_checkpoint_is_refused(data, trained, tmp_path) -> None:
    checkpoint = trained / "best.safetensors"
    other = tmp_path / "other.toml"
    other.write_text(RECIPE.replace("stride = 2", "stride = 4"))
    clip = data / "clips" / "video_5.mp4"
    with pytest.raises(InputError, match=r"recipe other does not fit the checkpoint, .* on stride 2 instead of 4"):
        propose(tmp_path / "out.json", clip, "--checkpoint", checkpoint, "--recipe", other, "--backbone", "frame-index")
    features = tmp_path / "features"
    extract.main([str(clip), "--recipe", str(other), "--backbone", "frame-index", "--output", str(features)])
    with pytest.raises(InputError, match=r"video_5' has other features than the training \(stride 4 instead of 2\)"):
        propose(tmp_path / "out.json", "--features", features, "--checkpoint", checkpoint)


def test_training_refuses_features_of_two_recipes(data, trained, tmp_path) -> None:
    features = tmp_path / "features"
    clips = [str(data / "clips" / f"video_{number}.mp4") for number in range(6)]
    extract.main([*clips[1:], *network(data), "--output", str(features)])
    (tmp_path / "other.toml").write_text(RECIPE + "first = 1\n")
    flags = ["--recipe", str(tmp_path / "other.toml"), "--backbone", "frame-index", "--output", str(features)]
    extract.main([clips[0], *flags])
    with pytest.raises(InputError, match=r"has other features than .* \(first 0 instead of 1\), expected one recipe"):
        train.main(training(data, tmp_path / "run", "--features", features))


def test_a_damaged_sidecar_fails_its_own_video(data, trained, tmp_path, capsys) -> None:
    features = tmp_path / "features"
    clips = [str(data / "clips" / f"video_{number}.mp4") for number in (4, 5)]
    extract.main([*clips, *network(data), "--output", str(features)])
    (features / "video_4.json").write_text('{"bcnet_fast_features": 1, "fps": -3}')
    checkpoint = trained / "best.safetensors"
    assert propose(tmp_path / "out.json", "--features", features, "--checkpoint", checkpoint) == 1
    assert list(results_of(tmp_path / "out.json")) == ["video_5"]
    assert "video_4.json: fps is -3, expected a positive number" in capsys.readouterr().err
    (features / "video_5.json").write_text('{"some": "other file"}')
    assert propose(tmp_path / "out.json", "--features", features, "--checkpoint", checkpoint) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--features", "x"], "--features is x beside the video .*, expected one of the two"),
        (["--preset", "thumos14", "--model", "bcnet"], "preset thumos14 states no recipe"),
    ],
)
def test_flags_that_contradict_videos_are_refused(data, trained, tmp_path, flags, message) -> None:
    checkpoint = [] if "--preset" in flags else ["--checkpoint", trained / "best.safetensors"]
    with pytest.raises(InputError, match=message):
        propose(tmp_path / "out.json", data / "clips" / "video_5.mp4", *checkpoint, *flags)


def test_a_second_stage_trains_on_videos_and_refines_them(data, trained, tmp_path, capsys) -> None:
    first, clips = trained / "best.safetensors", data / "clips"
    settings = ["model.hidden=4", "train.epochs=1", "train.batch_size=4", "pools.passes=1"]
    flags = ["--model", "pgcn", "--preset", "small", "--videos", clips, "--annotations", data / "annotations.json"]
    run = ["--output", tmp_path / "run", "--device", "cpu", "--set", *settings]
    # The checkpoint of the first stage knows the recipe.
    assert train.main([str(flag) for flag in (*flags, "--proposals", first, *run)]) == 0
    for number in range(6):
        name = f"video_{number}.npy"
        assert np.array_equal(np.load(tmp_path / "run/features" / name), np.load(trained / "features" / name))
    refined = ("--refine", tmp_path / "run/best.safetensors", "--keep-features", tmp_path / "kept")
    assert propose(tmp_path / "out.json", clips / "video_5.mp4", "--checkpoint", first, *refined) == 0
    assert "out.json: 1 video, 120 proposals refined" in capsys.readouterr().out
    labels = {one["label"] for one in results_of(tmp_path / "out.json").get("video_5", [])}
    assert labels <= {"act"}  # none may be left of a network that has hardly learned

    config = read_any_config(tmp_path / "run/best.safetensors")
    assert config.recipe == read_config(first).recipe
    assert SecondStageConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    (tmp_path / "other.toml").write_text(RECIPE + "first = 1\n")
    again = ["--recipe", tmp_path / "other.toml", "--backbone", "frame-index", "--output", tmp_path / "other"]
    assert extract.main([str(flag) for flag in (clips / "video_5.mp4", *again)]) == 0
    inputs = ("--features", tmp_path / "other", "--proposals", tmp_path / "out.proposals.json", "--device", "cpu")
    refined = ("--checkpoint", tmp_path / "run/best.safetensors", "--output", tmp_path / "refined.json")
    with pytest.raises(InputError, match=r"video_5' has other features than the training \(first 1 instead of 0\)"):
        refine.main([str(flag) for flag in (*refined, *inputs)])

    with pytest.raises(InputError, match="--proposals is required with --model pgcn"):
        train.main([str(flag) for flag in (*flags, "--output", tmp_path / "other")])


def test_training_on_videos_requires_annotations(tmp_path) -> None:
    with pytest.raises(InputError, match="--videos requires --annotations"):
        train.main(["--preset", "small", "--videos", "clips", "--output", str(tmp_path / "run")])


def test_the_width_of_features_follows_from_their_sidecars(data, trained) -> None:
    """All arrays are [27, 8]: both axes have the same length in all."""
    archive, annotations = (
        open_features(trained / "features", feature_dim=None),
        read_annotations(data / "annotations.json"),
    )
    times = TimeResolver(PRESETS["bcnet"]["small"], table=annotations, sidecar=archive.sidecar)
    assert fitted_sizes(archive, annotations, times)["model"]["feature_dim"] == 8
    unknown = TimeResolver(PRESETS["bcnet"]["small"], TimeFlags(fps=25.0), table=annotations)
    with pytest.raises(InputError, match=r"shapes \[27, 8\].*expected exactly one axis of the same length"):
        fitted_sizes(archive, annotations, unknown)
