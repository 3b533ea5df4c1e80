"""Outputs that would replace an input, another output or a file that a link leads to are refused by one line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.infer import flags, results_of, run
from helpers.refine import FRAMES, RATE, make_features, make_list
from helpers.refine import checkpoint as second_stage
from helpers.refine import run as run_refine
from helpers.videos import write_video

from bcnet_fast import evaluate, extract, infer, merge, view
from bcnet_fast.data.sidecar import Sidecar
from bcnet_fast.errors import InputError
from bcnet_fast.recipe import Recipe
from bcnet_fast.results.writer import ResultWriter
from bcnet_fast.storage.lock import Lock
from bcnet_fast.training.run_folder import require_usable


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path, message: str, main, *arguments: object) -> None:
    """Run a command that must be refused and leave all files as they are."""
    before = contents(folder)
    with pytest.raises(InputError, match=message) as caught:
        main(*arguments)
    assert "\n" not in str(caught.value) and contents(folder) == before


@pytest.fixture
def inputs(features, monkeypatch) -> Path:
    """A folder with inputs of all kinds, which are small or no more than names."""
    folder = features.parent
    monkeypatch.chdir(folder)
    Sidecar(Recipe("r", 4, 4, width=10, backbone="frame-index"), 25.0, 10.0, 60).write(features / "a.json")
    np.savez(folder / "curves.npz", np.load(features / "b.npy"))
    np.save(folder / "s.npy", np.ones((1, 1)))
    for name in (
        "s.json",
        "x.html",
        "x.partial",
        "truth.json",
        "plain.png",
        "ids.txt",
        "parts/part-000-of-001-0000.jsonl",
        "v/a.mp4",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("content")
    os.link("parts/part-000-of-001-0000.jsonl", "same.json")
    Path("r.json").write_text('{"results": {"a": [{"score": 1, "segment": [0, 1]}]}}')
    for name in ("res/a.csv", "truth/a.eaf"):
        Path(name).parent.mkdir()
        Path(name).write_text("content")
    return folder


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--features", "curves.npz", "--boundaries", "."], "--boundaries curves.npz is the file of --features"),
        (["--times", "x.html", "--page", "x.html"], "--page x.html is the file of --times"),
        (["--output", "p.json", "--trace", "p.json"], "--trace p.json is the file of --output"),
        (["--output", "a.srt", "--srt", "."], "--srt a.srt is the file of --output"),
        (["--output", "features/a.json", "--overwrite"], "--output features/a.json is the file of --features"),
        (["--output", "s.json", "--overwrite", "--labels", "s.npy"], "--output s.json is the file of --labels"),
        (["--output", "x", "--times", "x.partial"], "--output x.partial is the file of --times"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_infer_keeps_inputs_and_outputs_apart(checkpoint, inputs, more, message):
    given = flags(checkpoint, inputs / "features", *more)
    refused(inputs, f"{message}, expected another one", infer.main, given)


def test_results_named_like_a_sidecar_are_replaced(checkpoint, inputs):
    output = inputs / "features" / "b.json"
    assert run(checkpoint, inputs / "features", output=output)[0] == 0
    output.write_text("{}")
    assert run(checkpoint, inputs / "features", output=output)[0] == 0
    assert len(results_of(output)) == 4


@pytest.mark.parametrize(
    ("link", "there"),
    [(os.symlink, True), (os.symlink, False), (os.link, True)],
    ids=["symlink", "dangling symlink", "hard link"],
)
def test_a_partial_file_that_is_a_link_is_refused(tmp_path, link, there):
    if there:
        (tmp_path / "victim").write_text("content")
    link(tmp_path / "victim", tmp_path / "out.json.partial")
    message = "out.json.partial (is a|has a hard) link, expected a regular file without links, or none"
    refused(tmp_path, message, lambda: ResultWriter(tmp_path / "out.json", {}, overwrite=True))
    assert (tmp_path / "victim").exists() == there


def test_a_partial_file_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "out.json.partial")
    refused(tmp_path, "out.json.partial is no regular file", lambda: ResultWriter(tmp_path / "out.json", {}))


def test_a_link_in_the_folder_of_a_training_is_refused(tmp_path):
    (tmp_path / "last.safetensors").symlink_to(tmp_path / "elsewhere")
    refused(tmp_path, "last.safetensors is a link, expected a reg", lambda: require_usable(tmp_path, resume=True))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--page", "l.html"], "--page l.html is the file of --proposals"),
        (["--output", f"{min(FRAMES)}.srt", "--srt", "."], f"--srt {min(FRAMES)}.srt is the file of --output"),
        (["--output", "s.json", "--labels", "s.npy"], "--output s.json is the file of --labels"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refine_keeps_inputs_and_outputs_apart(tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    np.save("s.npy", np.ones((1, 1)))
    Path("s.json").write_text('{"videos": ["a"], "labels": ["run"]}')
    given = (
        make_list(tmp_path / "l.html"),
        make_features(tmp_path / "features"),
        second_stage(tmp_path / "p.safetensors"),
    )
    more = ["--fps", RATE, "--overwrite", *more]
    refused(tmp_path, f"{message}, expected another one", run_refine, *given, tmp_path / "out.json", *more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "o.json", "--videos", "ids.txt", "--unfinished", "ids.txt"], "ids.txt is the file of --videos"),
        (["--output", "o.json", "--unfinished", "o.json"], "o.json is the file of --output"),
        (["--output", "same.json"], "same.json is the file of --parts"),
        (
            ["--output", "o.json", "--unfinished", "parts/part-000-of-001-0001.jsonl"],
            "part-000-of-001-0001.jsonl is named like a part",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_merge_keeps_inputs_and_outputs_apart(inputs, more, message):
    refused(inputs, f"{message}, expected another", merge.main, ["parts", "--overwrite", *more])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--json", "res/a.csv"], "--json res/a.csv is the file of --proposals"),
        (["--plot", "plain.png", "--video-info", "plain.png"], "--plot plain.png is the file of --video-info"),
        (["--json", "s.json", "--class-scores", "s.npy"], "--json s.json is the file of --class-scores"),
        (["--json", "truth/a.eaf"], "--json truth/a.eaf is the file of --ground-truth"),
        (["--json", "o.png", "--plot", "o.png"], "--plot o.png is the file of --json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_evaluate_keeps_inputs_and_outputs_apart(inputs, more, message):
    given = ["--proposals", "res", "--ground-truth", "truth", "--metric", "thumos14", *more]
    refused(inputs, f"{message}, expected another one", evaluate.main, given)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--export", "csv", "--output", "v/a.mp4", "--videos", "v"], "v/a.mp4 is the file of --videos"),
        (["--export", "elan", "--output", "truth", "--ground-truth", "truth"], "a.eaf is the file of --ground-truth"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_view_keeps_inputs_and_outputs_apart(inputs, more, message):
    annotation = '<ANNOTATION_DOCUMENT><HEADER TIME_UNITS="milliseconds"/><TIME_ORDER/></ANNOTATION_DOCUMENT>'
    (inputs / "truth" / "a.eaf").write_text(annotation)
    refused(inputs, f"{message}, expected another one", view.main, ["r.json", *more])


def test_a_second_extraction_into_a_folder_is_refused(tmp_path):
    write_video(tmp_path / "a.mp4", 40)
    given = [str(tmp_path / "a.mp4"), "--backbone", "frame-index", "--output", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    lock = Lock(tmp_path / "out" / ".lock")
    refused(tmp_path, "out is in use by another run", extract.main, given)
    lock.release(remove=True)
    assert extract.main(given) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "a.npy"]
