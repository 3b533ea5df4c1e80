"""The command `extract`: files, sidecars, resuming, failures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.videos import write_video

from bcnet_fast import extract
from bcnet_fast.data.features import open_features
from bcnet_fast.errors import InputError
from bcnet_fast.recipe import Recipe
from bcnet_fast.storage.rows import RowFile
from bcnet_fast.video import extraction
from bcnet_fast.video.backbones import open_backbone
from bcnet_fast.video.backbones.base import BackboneOptions, NetworkBackbone
from bcnet_fast.video.decoding import Video
from bcnet_fast.video.extraction import ReadOptions, extract_video, read_rows


def run(*arguments: object, output: Path, spec: str = "frame-index") -> int:
    flags = ["--backbone", spec, "--output", output]
    return extract.main([str(argument) for argument in (*arguments, *flags)])


def test_rows_hold_the_frames_of_their_clips_and_the_sidecar_says_how(tmp_path, capsys) -> None:
    video = write_video(tmp_path / "clips" / "a.b.mp4", 40)
    assert run(video, "--recipe", "i3d-thumos14", output=tmp_path / "out") == 0
    rows = np.load(tmp_path / "out" / "a.b.npy")
    assert rows.dtype == np.float32
    assert np.array_equal(rows, np.arange(0, 25, 4)[:, None] + np.arange(16))
    stated = json.loads((tmp_path / "out" / "a.b.json").read_text())
    expected = {"fps": 25, "stride": 4, "offset": 8, "clip": 16, "rows": 7, "width": 16, "duration": 1.6}
    assert {name: stated[name] for name in expected} == expected
    assert stated["recipe"]["name"] == "i3d-thumos14" and stated["source"]["file"] == "a.b.mp4"
    assert "1 video, 7 rows of 16 channels" in capsys.readouterr().out


def test_a_recipe_with_a_frame_rate_states_that_rate(tmp_path) -> None:
    video = write_video(tmp_path / "a.mp4", 60, rate=30)
    assert run(video, "--recipe", "tsp-thumos14", output=tmp_path / "out") == 0
    rows = np.load(tmp_path / "out" / "a.npy")
    assert np.array_equal(rows[1], np.arange(2, 34, 2)) and len(rows) == 15
    stated = json.loads((tmp_path / "out" / "a.json").read_text())
    assert (stated["fps"], stated["stride"], stated["duration"]) == (15, 1, 2)


def test_the_same_command_extracts_what_is_missing(tmp_path, capsys) -> None:
    for name in "ab":
        write_video(tmp_path / "clips" / f"{name}.mp4", 40)
    out = tmp_path / "out"
    assert run(tmp_path / "clips", output=out) == 0
    before = (out / "a.npy").stat().st_mtime_ns
    (out / "b.npy").unlink()  # as if the run had been killed in between
    write_video(tmp_path / "clips" / "c.mp4", 40)
    assert run(tmp_path / "clips", output=out) == 0
    assert "2 videos, 4 rows" in capsys.readouterr().out.splitlines()[-1]
    assert (out / "a.npy").stat().st_mtime_ns == before and (out / "b.npy").exists()
    with pytest.raises(InputError, match=r"a.npy has other features \(stride 16 instead of 8\); --overwrite replaces"):
        run(tmp_path / "clips", "--stride", "8", output=out)
    assert run(tmp_path / "clips", "--stride", "8", "--overwrite", output=out) == 0
    assert len(np.load(out / "a.npy")) == 4


def test_files_of_others_are_never_replaced(tmp_path, capsys) -> None:
    for name in ("mine", "annotations", "good"):
        write_video(tmp_path / f"{name}.mp4", 40)
    out = tmp_path / "out"
    out.mkdir()
    np.save(out / "mine.npy", np.zeros((5, 5)))
    (out / "annotations.json").write_text('{"database": {}}')
    for more in ([], ["--overwrite"]):
        assert run(tmp_path, *more, output=out) == 1
        failed = capsys.readouterr().err
        assert "annotations.json is a file of another kind, expected a free name" in failed
        assert ("mine.npy has no sidecar, expected features of extract" in failed) == (not more)
    assert (out / "annotations.json").read_text() == '{"database": {}}'
    assert np.load(out / "mine.npy").shape == (2, 16)


def test_a_changed_video_is_extracted_again(tmp_path) -> None:
    video = write_video(tmp_path / "a.mp4", 40)
    run(video, output=tmp_path / "out")
    write_video(video, 80)
    run(video, output=tmp_path / "out")
    assert len(np.load(tmp_path / "out" / "a.npy")) == 5


def test_bad_videos_are_listed_and_the_others_go_on(tmp_path, capsys) -> None:
    clips = tmp_path / "clips"
    write_video(clips / "good.mp4", 40)
    write_video(clips / "short.mp4", 20)
    write_video(clips / "twice.mp4", 40)
    write_video(clips / "inner" / "twice.mkv", 40)
    (clips / "text.mp4").write_text("hello")
    (clips / "notes.md").write_text("no video")
    more = tmp_path / "more.txt"
    more.write_text("# a list\nclips/good.mp4\nmissing.mp4\nb\x01d.mp4\nhttp://example.org/a.mp4\n")
    assert run(clips, more, output=tmp_path / "out") == 1
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed")]
    reasons = {line.split(": ")[1]: line for line in failed}
    assert "have the same name without suffix" in reasons["twice"]
    assert "no video that FFmpeg reads" in reasons["text"]
    assert "20 frames and so 1 row of features, expected at least 32 frames" in reasons["short"]
    assert f"{more}: {tmp_path / 'missing.mp4'} does not exist" in reasons["missing"]
    assert "b\\x01d.mp4 does not exist" in reasons["b\\x01d"]
    assert "is an address" in reasons["http://example.org/a.mp4"] and len(failed) == 6
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.json", "good.npy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.mp4"], "nothing.mp4 does not exist"),
        (["."], "has no video file"),
        (["a.mp4", "--recipe", "i3d-thumos"], "did you mean i3d-thumos14"),
        (["a.mp4", "--clip", "0"], "--clip is 0, expected at least 1"),
        (["a.mp4", "--frame-rate", "0"], "--frame-rate is 0"),
        (["a.mp4", "--decoder-threads", "-1"], "--decoder-threads is -1"),
        (["a.mp4", "--workers", "-1"], "--workers is -1, expected at least 0"),
        (["a.mp4", "--workers", "1025"], "--workers is 1025, expected at most 1024"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        run(*arguments, output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_long_recipe_is_refused_before_it_is_parsed(tmp_path) -> None:
    (tmp_path / "mine.toml").write_text(f"clip = 4\nname = '{'x' * (1 << 20)}'")
    with pytest.raises(InputError, match=r"mine\.toml has more than 1 MiB of text, expected a TOML file"):
        run("a.mp4", "--recipe", str(tmp_path / "mine.toml"), output=tmp_path / "out")


@pytest.mark.parametrize("setting", ["fps", "offset", "clip", "stride"])
@pytest.mark.parametrize("value", [f"1{'0' * 400}", "1e308", "-1e300", "nan"])
def test_numbers_beyond_reason_in_a_recipe_are_one_line(tmp_path, setting, value) -> None:
    settings = {"clip": "4", "stride": "2", setting: value}
    (tmp_path / "mine.toml").write_text("".join(f"{name} = {text}\n" for name, text in settings.items()))
    with pytest.raises(InputError, match=rf"^[^\n]*mine\.toml: {setting} is [^\n]*expected"):
        run("a.mp4", "--recipe", str(tmp_path / "mine.toml"), output=tmp_path / "out")


@pytest.mark.parametrize(("pixels", "sizes"), [(1 << 28, [4, 4, 2]), (64 * 48 * 4, [2, 2, 2, 2, 2])])
def test_large_frames_make_small_batches(monkeypatch, pixels, sizes) -> None:
    monkeypatch.setattr(extraction, "LARGEST_CLIP", pixels)
    frames = [np.zeros((48, 64, 3), np.uint8)] * 2
    clips = ((np.arange(2), frames) for _ in range(10))
    assert [len(batch) for batch in extraction._batches(clips, 4)] == sizes


def test_changed_settings_of_a_recipe_are_bounded() -> None:
    recipe = Recipe("big", 1, 1, crop=(4096, 4096))
    with pytest.raises(InputError, match=r"^recipe big: clips take 64 frames of 4096 x 4096 pixels at once"):
        open_backbone("frame-index", recipe, BackboneOptions(), {"clip": 64})


def test_backbone_and_recipe_are_required(tmp_path) -> None:
    with pytest.raises(InputError, match="--recipe NAME or --backbone SPEC is required"):
        extract.main(["a.mp4", "--output", str(tmp_path)])
    with pytest.raises(InputError, match=r"i3d-pgcn requires --backbone: a file with the network \(onnx:FILE\)"):
        extract.main(["a.mp4", "--recipe", "i3d-pgcn", "--output", str(tmp_path)])
    with pytest.raises(InputError, match=r"expected torchvision:NAME.*did you mean torchvision"):
        run("a.mp4", output=tmp_path, spec="torchvison:r3d_18")


def test_all_recipes_are_listed(capsys) -> None:
    assert extract.main(["--list"]) == 0
    assert "tsp-activitynet" in capsys.readouterr().out


class Mean(torch.nn.Module):
    """Rows whose sums depend on the order of their terms."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3 * 4 * 16 * 16, 7)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.layer(clips.flatten(1))


def backbone() -> NetworkBackbone:
    torch.manual_seed(0)
    recipe = Recipe("mine", clip=4, stride=3, resize=(16, 16), backbone="mine", mean=(0.5,) * 3, std=(0.5,) * 3)
    return NetworkBackbone(Mean(), recipe, BackboneOptions())


def test_features_do_not_depend_on_the_batch_size(tmp_path) -> None:
    noise = [np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8) for number in range(40)]
    path = write_video(tmp_path / "a.mp4", noise)
    found = []
    for clips, threads in ((1, 1), (3, 0), (8, 2), (64, 1)):
        with Video(path, threads) as video:
            found.append(np.concatenate(list(read_rows(video, backbone(), ReadOptions(clips)))))
    assert found[0].shape == (13, 7)
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_pixels_are_normalized_and_the_sidecar_has_the_hash_of_the_weights(tmp_path) -> None:
    path = write_video(tmp_path / "a.mp4", 20)
    network = backbone()
    steps = extract_video(path, tmp_path / "a.npy", network, ReadOptions())
    seconds = list(steps)
    assert seconds == sorted(seconds) and 0 < seconds[-1] <= 0.8
    with Video(path) as video:
        frame = next(iter(video.frames()))[1].to_ndarray(format="rgb24")
    assert network.recipe.weights is not None and len(network.recipe.weights) == 64
    grey = (frame[0, 0] / 255 - 0.5) / 0.5
    clip = torch.full((1, 3, 4, 16, 16), float(grey[0]))
    first = torch.from_numpy(np.load(tmp_path / "a.npy")[0])
    with torch.no_grad():
        # Frames 0 to 3 are a little brighter from one to the next: 5 levels each.
        clip += torch.arange(4).reshape(1, 1, 4, 1, 1) * 5 / 127.5
        torch.testing.assert_close(first, network._network(clip)[0], atol=0.03, rtol=0)
    assert open_features(tmp_path / "a.npy", feature_dim=7).sidecar("a").recipe == network.recipe


def test_values_that_are_not_finite_fail_and_write_nothing(tmp_path) -> None:
    network = backbone()
    network._network.layer.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="row 0 of the features is not finite"):
        list(extract_video(write_video(tmp_path / "a.mp4", 20), tmp_path / "out" / "a.npy", network, ReadOptions()))
    assert not list((tmp_path / "out").iterdir())


def test_a_row_file_is_an_npy_file_of_any_length(tmp_path) -> None:
    for rows in (0, 3, 12345):
        with RowFile(tmp_path / "a.npy", 2) as file:
            for start in range(0, rows, 1000):
                file.append(np.full((min(1000, rows - start), 2), start, np.float32))
        array = np.load(tmp_path / "a.npy")
        assert array.shape == (rows, 2) and (rows == 0 or array[-1, 0] == (rows - 1) // 1000 * 1000)
