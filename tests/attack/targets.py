"""Small inputs of every kind that the commands read, each with one file to mutate and the command that reads it."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from attack import layout_targets, reach_targets, second_stage_targets
from attack import mutations as m
from attack.target import Target, quietly
from helpers.networks import SMALL

from bcnet_fast import convert, evaluate, extract, infer, inspect, merge, refine, train, view
from bcnet_fast.config import BMNConfig, Config, DataConfig, GTADConfig
from bcnet_fast.data.synthetic import SyntheticConfig, make_videos, write_dataset
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.results import exchange
from bcnet_fast.results.columns import Results
from bcnet_fast.results.writer import ResultWriter
from bcnet_fast.storage.checkpoint import save_checkpoint

COMMANDS = {
    "infer": infer.main,
    "inspect": inspect.main,
    "evaluate": evaluate.main,
    "train": train.main,
    "convert": convert.main,
    "refine": refine.main,
    "merge": merge.main,
    "view": view.main,
    "extract": extract.main,
}
FEATURE_MUTATIONS = (m.any_bytes, m.any_bytes, m.whole_file)
SAFETENSORS = (m.any_bytes, m.whole_file, m.safetensors_header, m.safetensors_header, m.safetensors_weights)
TRAIN_SIZES = (
    "model.base_channels=8 model.width=8 model.heads=1 model.head_dim=8 model.feedforward=8 model.boundary_layers=1 "
    "model.clip_channels=2 model.bins=2 model.feature_dim=8 model.window=32 model.max_duration=16 "
    "data.window_stride=16 train.epochs=1 train.batch_size=8"
).split()


def build(root: Path) -> list[Target]:
    """Write the inputs of all targets below `root`."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    firsts = [*_features(root, rng), *_tables(root), *_evaluations(root), *_checkpoints(root), *_trainings(root)]
    inference = ("--checkpoint", "../small.safetensors", "--fps", "25", "--device", "cpu")
    reach = [*reach_targets.targets(root, inference), *layout_targets.targets(root, inference)]
    return [*firsts, *_resumed(root, rng), *second_stage_targets.targets(root), *reach]


def _inference(*more: str) -> tuple[str, ...]:
    flags = ("--checkpoint", "../small.safetensors", "--fps", "25", "--output", "out.json", "--device", "cpu")
    return ("infer", *flags, "--max-video-gib", "0.0625", *more)


def _features(root: Path, rng: np.random.Generator) -> list[Target]:
    config = Config("small", model=SMALL, data=DataConfig(window_stride=12))
    save_checkpoint(root / "small.safetensors", NETWORKS["bcnet"](SMALL).state_dict(), config)
    arrays = {name: rng.standard_normal((20, 10)).astype(np.float32) for name in ("good", "victim")}
    special: dict[str, tuple[m.Mutation, ...]] = {
        "npy": (m.npy_header, m.npy_header),
        "npz": (m.zip_members, m.zip_members),
        "csv": (m.csv_cells,),
        "pt": (m.torch_objects, m.torch_objects, m.zip_members),
    }
    targets = []
    for suffix, own in special.items():
        folder = root / suffix / "features"
        folder.mkdir(parents=True)
        for name, array in arrays.items():
            path = folder / f"{name}.{suffix}"
            if suffix == "npy":
                np.save(path, array)
            elif suffix == "npz":
                np.savez(path, feats=array)
            elif suffix == "csv":
                np.savetxt(path, array, delimiter=",", fmt="%.6g")
            else:
                torch.save(torch.from_numpy(array), path)
        common = {
            "folder": suffix,
            "victim": f"features/victim.{suffix}",
            "mutations": (*FEATURE_MUTATIONS, *own),
            "named": ("features",),
        }
        run = _inference("--features", "features", "--srt", "srt")
        targets.append(Target(f"features {suffix}", command=run, outputs=("out.json",), kept=("good",), **common))
        targets.append(Target(f"inspect {suffix}", command=("inspect", "features", "--feature-dim", "10"), **common))
    (root / "h5").mkdir()
    with h5py.File(root / "h5" / "features.h5", "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=(8, 10), compression="gzip")
        file["group/inside"] = arrays["good"]
    run = _inference("--features", "features.h5", "--srt", "srt")
    common = {"folder": "h5", "victim": "features.h5", "named": ("features.h5",)}
    targets += [
        Target(
            "features h5", command=run, outputs=("out.json",), kept=("good",), mutations=(m.hdf5_objects,), **common
        ),
        Target(
            "features h5 bytes", command=run, outputs=("out.json",), mutations=(m.any_bytes, m.whole_file), **common
        ),
        Target(
            "inspect h5",
            command=("inspect", "features.h5", "--feature-dim", "10"),
            mutations=(m.hdf5_objects, m.any_bytes),
            **common,
        ),
    ]
    return targets


def _tables(root: Path) -> list[Target]:
    """Times, ground truth and class scores beside features that are good."""
    folder = root / "tables"
    (folder / "features").mkdir(parents=True)
    for name in ("a", "b"):
        np.save(folder / "features" / f"{name}.npy", np.ones((20, 10), np.float32))
    (folder / "times.csv").write_text("video,fps,stride,offset,duration\na,25,5,0,4\nb,25,5,,4\n")
    entry = {"duration": 4.0, "fps": 25.0, "frames": 100, "subset": "test"}
    annotated = {name: entry | {"annotations": [{"segment": [1.0, 2.0], "label": "x"}]} for name in ("a", "b")}
    (folder / "truth.json").write_text(json.dumps({"version": "1", "database": annotated}))
    (folder / "thumos.csv").write_text("video,type,type_idx,start,end\na,Diving,26,1,2\nb,Diving,26,1,2\n")
    (folder / "scores.json").write_text(json.dumps({"a": {"x": 0.5, "y": 0.5}, "b": {"x": 1.0}}))
    (folder / "scores.csv").write_text("video,label,score\na,x,0.5\nb,y,0.5\n")
    np.savez(folder / "scores.npz", scores=np.ones((2, 2)), videos=["a", "b"], labels=["x", "y"])
    text = (m.any_bytes, m.whole_file)
    targets = []
    for flag, victim, own in (
        ("--times", "times.csv", (m.csv_cells,)),
        ("--times", "truth.json", (m.json_tree, m.json_tree)),
        ("--ground-truth", "thumos.csv", (m.csv_cells,)),
        ("--labels", "scores.json", (m.json_tree, m.json_tree)),
        ("--labels", "scores.csv", (m.csv_cells,)),
        ("--labels", "scores.npz", (m.class_score_arrays, m.zip_members)),
    ):
        run = _inference("--features", "features", flag, victim, "--srt", "srt")
        named = (victim, "video '")
        targets.append(Target(f"{flag} {victim}", "tables", run, victim, (*text, *own), named, ("out.json",)))
    return targets


def _evaluations(root: Path) -> list[Target]:
    folder = root / "evaluation"
    folder.mkdir()
    entry = {"duration": 4.0, "fps": 25.0, "subset": "test"}
    annotated = {name: entry | {"annotations": [{"segment": [1.0, 2.0], "label": "x"}]} for name in ("a", "b")}
    (folder / "truth.json").write_text(json.dumps({"database": annotated}))
    found = [{"score": 0.9, "segment": [1.0, 2.0]}, {"score": 0.5, "segment": [0.0, 3.0]}]
    plain = {"version": "1", "results": {"a": found, "b": found[:1]}, "external_data": {}}
    labelled = {"results": {name: [entry | {"label": "x"} for entry in found] for name in ("a", "b")}}
    (folder / "plain.json").write_text(json.dumps(plain))
    (folder / "labelled.json.gz").write_bytes(gzip.compress(json.dumps(labelled).encode()))
    (folder / "scores.json").write_text(
        json.dumps({"results": {"a": [0.5, 0.5], "b": [1.0, 0.0]}, "class": ["x", "y"]})
    )
    (folder / "submission.txt").write_text("a 1 2 x 0.9\nb.mp4 0 3 x 0.5\n")
    (folder / "rows.csv").write_text("video,start,end,score,label\na,1,2,0.9,x\nb,0,3,0.5,x\n")
    (folder / "frames.csv").write_text("video-name f-init f-end score\na 25 50 0.9\nb 0 75 0.5\n")
    (folder / "columns.json").write_text(
        json.dumps({"video-id": ["a", "b"], "t-start": [1, 0], "t-end": [2, 3], "score": [0.9, 0.5]})
    )
    (folder / "list.txt").write_text("# 0\na\n4\n25\n0\n2\n0 0 0 25 50\n0 0 0 0 9\n# 1\nb\n1\n1\n0\n1\n0 0 0 0.1 0.5\n")
    region = {"value": {"ranges": [{"start": 26, "end": 50}], "timelinelabels": ["x"]}}
    tasks = [
        {"data": {"video": f"{name}.mp4", "fps": 25}, "annotations": [{"result": [region]}]} for name in ("a", "b")
    ]
    (folder / "tasks.json").write_text(json.dumps(tasks))
    pq.write_table(pa.Table.from_pylist([{"video": "a", "start": 1.0, "end": 2.0, "score": 0.9, "label": "x"}] * 3),
                   folder / "rows.parquet")  # fmt: skip
    (folder / "thumos.csv").write_text("video,type,type_idx,start,end\na,x,26,1,2\nb,x,26,1,2\nb,Ambiguous,0,3,4\n")
    (folder / "scores.csv").write_text("video,label,score\na,x,0.5\nb,y,0.5\n")
    medium = Results.from_dict({"a": [{"segment": [1.0, 2.0], "score": 1.0, "label": "x"}]})
    exchange.write("elan", folder / "a.eaf", medium)
    tree = (m.any_bytes, m.whole_file, m.json_tree, m.json_tree)
    cells = (m.any_bytes, m.whole_file, m.csv_cells, m.csv_cells)

    def target(name: str, proposals: str, victim: str, *more: str, own: tuple[m.Mutation, ...] = tree) -> Target:
        truth = victim if victim in ("tasks.json", "a.eaf", "thumos.csv") else "truth.json"
        flags = ("--proposals", proposals, "--ground-truth", truth, "--preset", "thumos14", "--json", "out.json")
        return Target(name, "evaluation", ("evaluate", *flags, *more), victim, own, (victim,), ("out.json",))

    return [
        target("result json", "plain.json", "plain.json"),
        target("result json.gz", "labelled.json.gz", "labelled.json.gz"),
        target("ground truth json", "labelled.json.gz", "truth.json"),
        target("class scores json", "plain.json", "scores.json", "--class-scores", "scores.json"),
        target("submission text", "submission.txt", "submission.txt", "--protocol", "th14", own=cells),
        target("result csv", "rows.csv", "rows.csv", own=cells),
        target("result csv in frames", "frames.csv", "frames.csv", own=cells),
        target("result columns", "columns.json", "columns.json"),
        target("proposal list", "list.txt", "list.txt", own=cells),
        target("label studio", "plain.json", "tasks.json"),
        target("elan", "plain.json", "a.eaf", own=(m.any_bytes, m.whole_file)),
        target("result parquet", "rows.parquet", "rows.parquet",
               own=(m.any_bytes, m.whole_file, layout_targets.parquet_column, layout_targets.parquet_column)),
        target("duplicates of opentad", "labelled.json.gz", "truth.json", "--protocol", "opentad"),
        target("truth csv of th14", "labelled.json.gz", "thumos.csv", "--protocol", "th14", own=cells),
        target("class scores csv", "plain.json", "scores.csv", "--class-scores", "scores.csv", own=cells),
    ]  # fmt: skip


def _checkpoints(root: Path) -> list[Target]:
    """Checkpoints of this package and of releases."""
    folder = root / "checkpoint"
    (folder / "features").mkdir(parents=True)
    np.save(folder / "features" / "a.npy", np.ones((20, 10), np.float32))
    (folder / "net.safetensors").write_bytes((root / "small.safetensors").read_bytes())
    run = ("infer", "--checkpoint", "net.safetensors", "--features", "features", "--fps", "25", "--output", "out.json")
    run += ("--device", "cpu", "--max-video-gib", "0.0625")
    # A configuration may ask for other features than there are.
    named = ("net.safetensors", "features/a.npy", "video 'a'", "--fps")
    targets = [Target("checkpoint", "checkpoint", run, "net.safetensors", SAFETENSORS, named, ("out.json",))]

    (root / "release").mkdir()
    networks = {
        "bmn": BMNConfig(base_channels=8, sampled_channels=8, map_channels=4, bins=4),
        "gtad": dataclasses.replace(
            GTADConfig(), base_channels=8, block_channels=8, block_groups=2, sampled_channels=8, map_channels=4
        ),
    }
    own = (m.any_bytes, m.whole_file, m.zip_members, m.torch_objects, m.torch_objects)
    for name, model in networks.items():
        state = NETWORKS[name](model).state_dict()
        content = {"epoch": 1, "state_dict": {f"module.{key}": value for key, value in state.items()}}
        victim = f"{name}.pth.tar"
        torch.save(content, root / "release" / victim)
        run = ("convert", f"--{name}", victim, "--preset", "activitynet13", "--output", "out.safetensors")
        targets.append(Target(f"release {name}", "release", run, victim, own, (victim,), ("out.safetensors",)))
    return targets


def _trainings(root: Path) -> list[Target]:
    """Training states, settings, annotations and features."""
    folder = root / "training"
    folder.mkdir()
    easy = SyntheticConfig(instances=(1.0, 2.0), feature_dim=8, classes=2, scenes=2)
    subsets = (("training", 3), ("validation", 1))
    videos = [video for name, number in subsets for video in make_videos(number, seed=1, subset=name, config=easy)]
    write_dataset(folder, videos)
    begin = ("train", "--preset", "synthetic", "--features", "features", "--annotations", "annotations.json")
    begin += ("--device", "cpu", "--output")
    run = (*begin, "run", "--resume")
    quietly(folder, train.main, *run[1:], "--set", *TRAIN_SIZES)
    (folder / "settings.toml").write_text(_as_toml(TRAIN_SIZES))
    state_file = "run/state.safetensors"
    named = ("state.safetensors",)
    settings = ("settings.toml", "--config", *named, "features/", "training", "validation", "model.", "train.")
    victim = f"features/{sorted(path.name for path in (folder / 'features').iterdir())[1]}"
    fresh = (*begin, "fresh", "--max-video-gib", "0.0625", "--set", *TRAIN_SIZES)
    data = ("features", "annotations.json", "training", "validation")
    return [
        Target("training state", "training", (*run, "--set", *TRAIN_SIZES), state_file, SAFETENSORS, named),
        Target("settings toml", "training", (*run, "--config", "settings.toml"), "settings.toml",
               (m.any_bytes, m.whole_file, m.toml_values, m.toml_values), settings),
        Target("settings --set", "training", (*run, "--set", *TRAIN_SIZES, "model.dropout=0.1"), None, (),
               ("--set", *settings), argument=-1),
        Target("training features", "training", fresh, victim, (*FEATURE_MUTATIONS, m.npy_header), data, ("fresh",)),
        Target("training annotations", "training", fresh, "annotations.json",
               (m.any_bytes, m.whole_file, m.json_tree, m.json_tree), data, ("fresh",)),
    ]  # fmt: skip


def _resumed(root: Path, rng: np.random.Generator) -> list[Target]:
    """Leftovers of an earlier run: a partial file, and a result to which a video is added."""
    targets = []
    for name, victim in (("partial", "out.json.partial"), ("finished", "out.json")):
        folder = root / name
        (folder / "features").mkdir(parents=True)
        for video in ("a", "b", "c"):
            np.save(folder / "features" / f"{video}.npy", rng.standard_normal((20, 10)).astype(np.float32))
        run = _inference("--features", "features", "--resume")
        if name == "partial":
            with mock.patch.object(ResultWriter, "finish", side_effect=KeyboardInterrupt):
                with contextlib.suppress(KeyboardInterrupt):
                    quietly(folder, infer.main, *run[1:])
            rows = (folder / victim).read_bytes().splitlines(keepends=True)
            (folder / victim).write_bytes(b"".join(rows[:-1]))
            own, kept = (m.any_bytes, m.any_bytes, m.whole_file, m.lines, m.lines), ("a", "b", "c")
        else:
            last = folder / "features" / "c.npy"
            later = last.read_bytes()
            last.unlink()
            quietly(folder, infer.main, *run[1:])
            last.write_bytes(later)
            own, kept = (m.any_bytes, m.whole_file, m.json_tree, m.json_tree), ("c",)
        targets.append(Target(f"resumed {victim}", name, run, victim, own, (victim,), kept=kept))
    return targets


def _as_toml(settings: list[str]) -> str:
    lines, section = [], None
    for setting in settings:
        name, _, value = setting.partition("=")
        of, _, name = name.partition(".")
        lines += [f"[{of}]"] if of != section else []
        lines.append(f"{name} = {value}")
        section = of
    return "\n".join(lines) + "\n"
