"""Inputs of `merge`, `view` and `extract` to mutate: parts of shards, pages, videos and recipes."""

from __future__ import annotations

import json
import random
import shutil
import zlib
from pathlib import Path

import numpy as np
from attack import mutations as m
from attack.target import Target, quietly
from helpers.videos import write_video

from bcnet_fast import infer
from bcnet_fast.data.sidecar import Sidecar, sidecar_path
from bcnet_fast.recipe import Recipe

SECONDS, FRAMES = 4.0, 60
RECIPE = """clip = 4
stride = 2
fps = 12.5
resize = [32]
crop = [24, 24]
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""


def targets(root: Path, inference: tuple[str, ...]) -> list[Target]:
    """Write the inputs below `root`; `inference` is a command over the archive `npy/features`, without --output."""
    return [*_merges(root, inference), *_views(root), *_videos(root), *_sidecars(root, inference)]


def _merges(root: Path, inference: tuple[str, ...]) -> list[Target]:
    found = []
    for kind, own in (("jsonl", (m.lines, m.lines, _sealed)), ("parquet", ())):
        folder = root / f"parts_{kind}"
        folder.mkdir()
        flags = ("--features", "../npy/features", "--shard", "0/1", "--part-format", kind, "--output", "parts")
        quietly(folder, infer.main, *inference, *flags)
        victim = f"parts/{next(path.name for path in (folder / 'parts').glob('part-*'))}"
        for output in ("out.json", "out.parquet"):
            run = ("merge", "parts", "--output", output)
            mutations = (m.any_bytes, m.any_bytes, m.whole_file, *own)
            name = f"merge {kind} to {output}"
            found.append(Target(name, folder.name, run, victim, mutations, ("parts",), (output,)))
    (root / "parts_jsonl" / "ids.txt").write_text("good\nvictim\n")
    run = ("merge", "parts", "--output", "out.json", "--videos", "ids.txt", "--unfinished", "rest.jsonl")
    mutations = (m.any_bytes, m.whole_file, m.lines)
    found.append(Target("merge ids", "parts_jsonl", run, "ids.txt", mutations, ("ids.txt",), ("out.json",)))
    return found


def _views(root: Path) -> list[Target]:
    """Pages and exports of the result files of the evaluation."""
    folder = root / "views"
    shutil.copytree(root / "evaluation", folder)
    (folder / "boundaries").mkdir()
    times = np.linspace(0, SECONDS, 9)
    arrays = {"times": times, "start": times / SECONDS, "end": times / SECONDS, "duration": np.array(SECONDS)}
    for video in ("a", "b"):
        np.savez(folder / "boundaries" / f"{video}.npz", **arrays)
    tree = (m.any_bytes, m.whole_file, m.json_tree, m.json_tree)
    page = (
        "view",
        "labelled.json.gz",
        "--ground-truth",
        "truth.json",
        "--boundaries",
        "boundaries",
        "--output",
        "out.html",
    )
    found = []
    for name, victim, own in (
        ("view results", "labelled.json.gz", tree),
        ("view ground truth", "truth.json", tree),
        ("view boundaries", "boundaries/a.npz", (m.any_bytes, m.whole_file, m.zip_members)),
    ):
        found.append(Target(name, "views", page, victim, own, (Path(victim).name,), ("out.html",)))
    for tool in ("csv", "fiftyone", "labelstudio", "webvtt", "elan", "otio"):
        run = ("view", "plain.json", "--ground-truth", "truth.json", "--export", tool, "--output", "out")
        named = ("plain.json", "out/", "video '")
        found.append(Target(f"view to {tool}", "views", run, "plain.json", tree, named, ("out",)))
    return found


def _videos(root: Path) -> list[Target]:
    folder = root / "videos"
    (folder / "clips").mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "list.txt").write_text("clips/good.mp4\nclips/victim.mp4\n")
    suffixes = {"mp4": {}, "mkv": {}, "avi": {}, "ts": {"codec": "mpeg2video"}}
    for suffix, options in suffixes.items():
        write_video(folder / "clips" / f"victim.{suffix}", FRAMES, **options)
    write_video(folder / "clips" / "good.mp4", FRAMES)
    flags = ("--backbone", "frame-index", "--recipe", "recipe.toml", "--decoder-threads", "1", "--device", "cpu")
    found = []
    for suffix in suffixes:
        victim = f"clips/victim.{suffix}"
        run = ("extract", "clips/good.mp4", victim, *flags, "--output", "features")
        found.append(
            Target(f"video {suffix}", "videos", run, victim, (m.any_bytes, m.any_bytes, m.whole_file), ("victim",))
        )
    text = (m.any_bytes, m.whole_file)
    run = ("extract", "list.txt", *flags, "--output", "features")
    named = ("list.txt", "clips")
    found.append(Target("list of videos", "videos", run, "list.txt", (*text, m.lines), named, ("features",)))
    run = ("extract", "clips/good.mp4", *flags, "--output", "features")
    named = ("recipe.toml", "good.mp4")
    own = (*text, m.toml_values, m.toml_values)
    found.append(Target("recipe", "videos", run, "recipe.toml", own, named, ("features",)))
    return found


def _sidecars(root: Path, inference: tuple[str, ...]) -> list[Target]:
    """Features beside the sidecars of `extract`."""
    folder = root / "sidecars"
    shutil.copytree(root / "npy" / "features", folder / "features")
    recipe = Recipe.from_dict({"name": "own", "clip": 16, "stride": 4}, "recipe")
    for path in sorted((folder / "features").glob("*.npy")):
        rows = len(np.load(path))
        Sidecar(recipe, 25.0, rows * 4 / 25.0, rows).write(sidecar_path(path))
    own = (m.any_bytes, m.whole_file, m.json_tree, m.json_tree, m.json_tree)
    run = ("infer", *inference, "--features", "features", "--output", "out.json")
    look = ("inspect", "features", "--feature-dim", "10")
    return [
        Target("sidecar infer", "sidecars", run, "features/victim.json", own, ("victim",), ("out.json",), ("good",)),
        Target("sidecar inspect", "sidecars", look, "features/victim.json", own, ("victim",)),
    ]


def _sealed(rng: random.Random, path: Path) -> str:
    """Change the header, a record or a row, and give the part the sizes and checksums of its new content."""
    header, *rest = path.read_bytes().splitlines(keepends=True)
    stated = json.loads(header)
    about = stated["bcnet_fast_part"]
    videos, kind = about["videos"], rng.choice(("header", "record", "row"))
    if kind != "header":
        at = rng.randrange(videos) if kind == "record" else rng.randrange(videos, len(rest))
        rest[at] = m.dump(m.mutate_tree(rng, json.loads(rest[at]))).encode("utf-8", "surrogateescape") + b"\n"
    sections = [b"".join(rest[:videos]), b"".join(rest[videos:])]
    about |= {"sizes": [len(one) for one in sections], "checksums": [zlib.crc32(one) for one in sections]}
    if kind == "header":
        stated = m.mutate_tree(rng, stated)
    path.write_bytes(b"".join([m.dump(stated).encode("utf-8", "surrogateescape") + b"\n", *sections]))
    return kind
