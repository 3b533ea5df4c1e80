"""The Python blocks of README, CONTRIBUTING and the docs run, and so do the commands of the example."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.sweeps import sweep

from bcnet_fast.data import synthetic
from bcnet_fast.inference.model import demo_checkpoint

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ |    )python (-m bcnet_fast|examples)(?:\.|/)(\w+)((?:[^\n\\]|\\\n)*)$", re.MULTILINE)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_BLOCKS = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Files that the pages assume: a demo, a converted checkpoint, and the example with the outputs of its commands."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("bcnet_demo", "example"):
        videos = list(synthetic.make_videos(2, seed=7, subset="validation"))
        synthetic.write_dataset(folder / name, videos)
        results = {
            video.annotation.id: [
                {"segment": [instance.start, instance.end], "score": 0.5 + 0.1 * place, "label": instance.label}
                for place, instance in enumerate(video.annotation.instances[:5])
            ]
            for video in videos
        }
        for file in ("proposals.json", "out.json", "detections.json"):
            (folder / name / file).write_text(json.dumps({"results": results}), encoding="utf-8")
    rows = (f"{video.annotation.id},action_{n},{0.1 * (n + 1):.1f}" for video in videos for n in range(5))
    (folder / "example/class_scores.csv").write_text("\n".join(["video,label,score", *rows]), encoding="utf-8")
    for new in ("features", "example/run"):
        (folder / new).mkdir()
    for checkpoint in ("bcnet.safetensors", "example/run/best.safetensors"):
        shutil.copy(demo_checkpoint(), folder / checkpoint)
    return folder


def test_some_pages_have_blocks():
    assert len(WITH_BLOCKS) >= 8


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_run(page, files, tmp_path, monkeypatch):
    # The README's needs no file at all.
    here = tmp_path / "here"
    here.mkdir() if page.name == "README.md" else shutil.copytree(files, here)
    monkeypatch.chdir(here)
    text, names = page.read_text(encoding="utf-8"), {}
    for found in BLOCK.finditer(text):
        # Pad with empty lines so that a traceback shows the page's own line number.
        lines = "\n" * text[: found.start(1)].count("\n")
        exec(compile(lines + found[1], str(page), "exec"), names)


def commands(page: str) -> list[tuple[str, list[str]]]:
    """The commands of a page that work on the example: module or script, and its arguments."""
    found = []
    for kind, name, arguments in COMMAND.findall((ROOT / page).read_text(encoding="utf-8")):
        words = shlex.split(arguments.removesuffix(".py").replace("\\\n", " "), comments=True)
        if kind == "examples" or any(word.startswith("example/") for word in words):
            found.append((name, words))
    return found


def run(name: str, arguments: list[str]) -> None:
    if name.startswith("make_"):
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        return
    if name == "train":
        arguments = [*arguments, "--epochs", "1", "--batch-size", "2"]
    assert importlib.import_module(f"bcnet_fast.{name}").main(arguments) == 0, arguments


EXAMPLE = {
    "README": ["README.md"],
    "how to": [
        "docs/get_started.md",
        *(f"docs/how_to/{name}.md" for name in ("own_features", "class_labels", "evaluate", "view")),
    ],
    "training": ["docs/training.md"],
    "commands": [f"docs/commands/{name}.md" for name in ("train", "infer", "evaluate", "view", "inspect")],
}


def make_few_videos(monkeypatch) -> None:
    """The example of the pages with five videos."""
    made = synthetic.make_videos

    def few(count: int, *, seed: int, subset: str):
        return itertools.islice(made(count, seed=seed, subset=subset), 3 if subset == "training" else 2)

    monkeypatch.setattr(synthetic, "make_videos", few)
    run("make_example_data", [])


@sweep("pages", EXAMPLE.values(), ids=EXAMPLE)
def test_the_commands_of_the_example_run_in_the_order_of_the_pages(pages, tmp_path, monkeypatch, capsys):
    """On five short videos, for one epoch."""
    monkeypatch.chdir(tmp_path)
    make_few_videos(monkeypatch)
    done: list[list[str]] = []
    for name, arguments in itertools.chain.from_iterable(map(commands, pages)):
        if name == "make_example_data":
            continue
        with contextlib.suppress(ValueError):
            output = arguments[arguments.index("--output") + 1]
            if any(output in earlier for earlier in done):
                arguments = [*arguments, "--overwrite"]  # the same output on two pages
        run(name, arguments)
        done.append(arguments)
    assert len(done) >= 4
    printed = capsys.readouterr().out
    log = next(Path("example").glob("*/log.csv")).read_text().splitlines()
    recall = dict(zip(log[0].split(","), log[1].split(","), strict=True))["AR@100"]
    assert f"{float(recall):.2f}" in printed


@pytest.mark.slow
def test_the_commands_of_the_second_stage_run_and_agree(tmp_path, monkeypatch, capsys):
    """From features and annotations to labelled detections, whose mAP is that of the training's log."""
    monkeypatch.chdir(tmp_path)
    make_few_videos(monkeypatch)
    pages = ["docs/how_to/second_stage.md", "docs/commands/infer.md", "docs/commands/refine.md"]
    written = itertools.chain(*(commands(page) for page in pages))
    chosen = [(name, words) for name, words in written if "infer" not in name or "--subset" in words]
    for name, arguments in chosen:
        run(name, arguments)
    assert [name for name, _ in chosen] == ["train", "train", "infer", "evaluate", "infer", "refine"]
    log = Path("example/pgcn/log.csv").read_text().splitlines()
    row = dict(zip(log[0].split(","), log[1].split(","), strict=True))
    assert f"{float(row['mAP']):.2f}" in capsys.readouterr().out
