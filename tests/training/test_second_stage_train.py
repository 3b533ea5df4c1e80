"""`python -m bcnet_fast.train --model pgcn|muses`: it learns, resumes to the bit, and its checkpoint refines."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.refine import results_of
from helpers.refine import run as refine
from helpers.sweeps import sweep
from helpers.training import EASY, log_of

from bcnet_fast import evaluate, train
from bcnet_fast.config import TimeBase
from bcnet_fast.data.synthetic import make_videos, write_dataset
from bcnet_fast.errors import InputError
from bcnet_fast.storage.checkpoint import read_any_config
from bcnet_fast.training.options import resolve_second_stage
from bcnet_fast.training.second_stage_trainer import SecondStageTrainer

SIZES = {
    "pgcn": ["model.hidden=16"],
    "muses": ["model.channels=[16,16]", "model.head_width=16"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Features and annotations of easy videos, and proposals around their instances."""
    folder = tmp_path_factory.mktemp("second_stage")
    videos = [
        v
        for subset, n in (("training", 8), ("validation", 4))
        for v in make_videos(n, seed=2, subset=subset, config=EASY)
    ]
    write_dataset(folder, videos)
    rng, results = np.random.default_rng(0), {}
    for video in videos:
        duration = video.annotation.duration
        entries = []
        for instance in video.annotation.instances:
            length = instance.end - instance.start
            for scale in (0.1, 0.1, 0.4, 1.5):
                start, end = np.clip(
                    np.array([instance.start, instance.end]) + scale * length * rng.uniform(-0.5, 0.5, 2), 0, duration
                )
                if end > start:
                    entries.append({"score": 0.5, "segment": [start, end]})
        starts = rng.uniform(0, duration - 2, 10)
        entries += [{"score": 0.1, "segment": [s, s + 1.5]} for s in starts]
        results[video.annotation.id] = entries
    (folder / "proposals.json").write_text(json.dumps({"results": results}))
    return folder


def arguments(data, output, *more, model="pgcn", settings=()) -> list[str]:
    settings = [*SIZES[model], "train.epochs=2", "train.batch_size=4", "pools.passes=3", *settings]
    flags = ["--preset", "small", "--model", model, "--features", data / "features", "--output", output]
    flags += ["--annotations", data / "annotations.json", "--proposals", data / "proposals.json", "--device", "cpu"]
    return [str(flag) for flag in [*flags, *more, "--set", *settings]]


@sweep("model", SIZES)
def test_an_interrupted_training_goes_on_to_the_same_bits(data, tmp_path, model, monkeypatch, capsys):
    settings = ("train.epochs=3", "train.decay_at=[1,2,3]")
    train.main(arguments(data, tmp_path / "whole", model=model, settings=settings))
    original, steps = SecondStageTrainer.backward, []

    def backward(trainer, batch):
        steps.append(1)
        if len(steps) == 9:  # in the second epoch of 6 steps
            raise KeyboardInterrupt
        return original(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SecondStageTrainer, "backward", backward)
        with pytest.raises(KeyboardInterrupt):
            train.main(arguments(data, tmp_path / "parts", model=model, settings=settings))
    assert len(log_of(tmp_path / "parts")) == 1
    assert "holds 1 of 3 epochs; continue with --resume" in capsys.readouterr().err
    flags = ("--resume", "--workers", 1)
    assert train.main(arguments(data, tmp_path / "parts", *flags, model=model, settings=settings)) == 0
    assert "resumed: 1 of 3 epochs" in capsys.readouterr().out
    for name in ("log.csv", "last.safetensors", "best.safetensors", "state.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.usefixtures("learning_curves")
@sweep("model", SIZES)
def test_what_is_learned_refines_as_the_log_says(data, tmp_path, model, capsys):
    settings = ("train.epochs=6", "train.decay_at=[5,6,6]", "pools.passes=10")
    assert train.main(arguments(data, tmp_path / "run", model=model, settings=settings)) == 0
    rows = log_of(tmp_path / "run")
    assert rows[-1]["total"] < rows[0]["total"] and max(row["mAP"] for row in rows) > 40
    config = read_any_config(tmp_path / "run" / "best.safetensors")
    assert config.labels == ("action_0", "action_1") and config.model.feature_dim == 8
    assert config.trained_on == TimeBase(25.0, 8.0, 0.0) and config.regression is not None
    assert (tmp_path / "run" / "learning_curve.png").exists()
    # Frame rate and stride are those of the training.
    output, checkpoint = tmp_path / "out.json", tmp_path / "run" / "best.safetensors"
    truth = data / "annotations.json"
    more = ("--times", truth, "--subset", "validation")
    assert refine(data / "proposals.json", data / "features", checkpoint, output, *more) == 0
    assert sorted(results_of(output)) == [f"validation_{n:04d}" for n in range(4)]
    report = tmp_path / "report.json"
    flags = ["--proposals", output, "--ground-truth", truth, "--metric", "thumos14", "--subset", "validation"]
    evaluate.main([str(flag) for flag in [*flags, "--json", report]])
    found = json.loads(report.read_text())["mean_average_precision"]["average_mAP"]
    assert 100 * found == pytest.approx(max(row["mAP"] for row in rows), abs=1e-9)


def test_a_proposal_list_needs_no_annotations(data, tmp_path):
    """A list with instances trains; its classes are numbers."""
    database = json.loads((data / "annotations.json").read_text())["database"]
    proposals = json.loads((data / "proposals.json").read_text())["results"]
    for subset in ("training", "validation"):
        lines = []
        for name, video in database.items():
            if video["subset"] != subset:
                continue
            rows = [[i["label"][-1], *(round(25 * t) for t in i["segment"])] for i in video["annotations"]]
            lines += ["#", f"x/{name}", str(video["frames"] / 25), "25", str(len(rows))]
            lines += [f"{int(code) + 1} {start} {end}" for code, start, end in rows]
            segments = [[round(25 * t) for t in entry["segment"]] for entry in proposals[name]]
            lines.append(str(len(segments)))
            for start, end in segments:
                best = max(
                    ((min(end, e) - max(start, s)) / max(max(end, e) - min(start, s), 1), int(c) + 1)
                    for c, s, e in rows
                )
                code = best[1] if best[0] > 0 else 0
                lines.append(f"{code} {max(best[0], 0):.4f} {1.0 if code else 0.0} {start} {end}")
        (tmp_path / f"{subset}.txt").write_text("\n".join(lines))
    flags = ["--preset", "small", "--model", "pgcn", "--features", data / "features", "--output", tmp_path / "run"]
    flags += ["--proposals", tmp_path / "training.txt", "--stride", 8, "--device", "cpu"]
    flags = [str(flag) for flag in flags]
    with pytest.raises(InputError, match="--val-proposals is required without --annotations"):
        train.main(flags)
    flags += ["--val-proposals", str(tmp_path / "validation.txt")]
    assert train.main([*flags, "--set", *SIZES["pgcn"], "train.epochs=1", "pools.passes=1"]) == 0
    assert read_any_config(tmp_path / "run" / "best.safetensors").labels == ("1", "2")


def test_what_cannot_be_trained_is_one_line(data, tmp_path, capsys):
    def refused(*more, model="pgcn", drop=(), settings=()) -> str:
        flags = arguments(data, tmp_path / "run", *more, model=model, settings=settings)
        for name in drop:
            place = flags.index(name)
            del flags[place : place + 2]
        with pytest.raises(InputError) as error:
            train.main(flags)
        assert not (tmp_path / "run").exists()
        return str(error.value)

    assert "--proposals is required with --model pgcn" in refused(drop=["--proposals"])
    assert "--annotations is required, unless --proposals is a proposal list" in refused(drop=["--annotations"])
    assert "--preset is activitynet13, expected thumos14, muses or small" in refused(
        "--preset", "activitynet13", model="muses"
    )
    assert "has 2 classes, expected 5 (model.classes)" in refused(settings=["model.classes=5"])
    (tmp_path / "other.json").write_text(json.dumps({"results": {"nothing": [{"score": 1, "segment": [0, 1]}]}}))
    assert "has 1 video, such as 'nothing', expected training videos" in refused("--proposals", tmp_path / "other.json")
    far = {name: [{"score": 1, "segment": [0, 0.5]}] for name in results_of(data / "proposals.json")}
    (tmp_path / "far.json").write_text(json.dumps({"results": far}))
    assert "no proposal has an IoU above 0.7, expected one at least" in refused("--proposals", tmp_path / "far.json")


def test_a_resumed_training_must_have_the_same_proposals(data, tmp_path):
    train.main(arguments(data, tmp_path / "run", settings=("train.epochs=1", "pools.passes=1")))
    content = json.loads((data / "proposals.json").read_text())
    content["results"]["training_0000"].pop()
    (tmp_path / "fewer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="expected the same: proposals"):
        train.main(
            arguments(
                data, tmp_path / "run", "--resume", "--proposals", tmp_path / "fewer.json", settings=("pools.passes=1",)
            )
        )


def test_the_release_drops_an_incomplete_batch(data):
    config = read_config_of(data)
    default, release = (SecondStageTrainer(config, torch.device("cpu"), release=kind) for kind in (False, True))
    assert [len(batch) for batch in default.batches(10, 0)] == [4, 4, 2]
    assert [len(batch) for batch in release.batches(10, 0)] == [4, 4]
    assert default.batches(10, 0) != default.batches(10, 1)


def read_config_of(data):
    options = train.parse(arguments(data, "unused", settings=("pools.passes=1",)))
    return resolve_second_stage(options)
