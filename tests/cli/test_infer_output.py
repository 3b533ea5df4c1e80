"""Outputs of `infer`: existing, interrupted, finished, of one subset."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers.infer import CONFIG, columns, flags, results_of, run

from bcnet_fast import infer
from bcnet_fast.data.features import open_features
from bcnet_fast.errors import InputError
from bcnet_fast.inference.run import resolve_config, run_settings
from bcnet_fast.results.writer import ResultWriter


def test_a_run_of_another_system_or_protocol_is_not_resumed(features):
    def settings(*more: str) -> dict:
        flags = ["--features", str(features), "--output", "x.json", "--preset", "thumos14", *more]
        options = infer.parse(flags)
        return run_settings(options, resolve_config(options))

    runs = [settings(), settings("--model", "bmn"), settings("--model", "gtad"), settings("--protocol", "release")]
    assert all(one != other for place, one in enumerate(runs) for other in runs[:place])
    assert settings("--model", "bcnet") == runs[0]


def test_an_interrupted_run_resumes_to_the_same_file(checkpoint, features, capsys):
    expected = run(checkpoint, features)[1].read_bytes()
    output = features.parent / "out.json"
    output.unlink()
    run(checkpoint, features)
    finished = results_of(output)
    output.unlink()
    options = infer.parse(flags(checkpoint, features))
    sources = open_features(features, feature_dim=10).versions()
    writer = ResultWriter(output, run_settings(options, CONFIG), sources=sources)
    writer.add("c", *columns(finished["c"]))
    writer.close()
    # A crash in the middle of a line leaves this behind:
    with open(writer.partial, "ab") as file:
        file.write(b'{"video": "d", "propo')
    assert run(checkpoint, features, "--resume")[0] == 0
    assert "resumed: 1 of 4 videos are already done" in capsys.readouterr().out
    assert output.read_bytes() == expected


def test_what_an_interruption_left_is_neither_mixed_nor_lost(checkpoint, features):
    output = features.parent / "out.json"
    writer = ResultWriter(output, {"protocol": "release"})
    with pytest.raises(InputError, match=r"out.json.partial is in use by another run"):
        run(checkpoint, features)
    writer.add("c", *columns([]))
    writer.close()
    with pytest.raises(InputError, match=r"out.json.partial is from a run with other values of .*protocol"):
        run(checkpoint, features, "--resume")
    with pytest.raises(InputError, match=r"out.json.partial has 1 finished video .* start again with --overwrite"):
        infer.main(flags(checkpoint, features))
    assert run(checkpoint, features, "--overwrite")[0] == 0
    assert len(results_of(output)["c"]) > 0 and not writer.partial.exists()


def test_a_finished_output_is_neither_replaced_nor_computed_again(checkpoint, features, capsys):
    output = run(checkpoint, features)[1]
    expected, written = output.read_bytes(), output.stat().st_mtime_ns
    with pytest.raises(InputError, match=r"out.json exists; replace it with --overwrite, or complete it with --resume"):
        infer.main(flags(checkpoint, features))
    with pytest.raises(InputError, match=r"--resume keeps .* --overwrite replaces"):
        infer.main(flags(checkpoint, features, "--resume", "--overwrite"))
    capsys.readouterr()
    assert run(checkpoint, features, "--resume")[0] == 0
    out = capsys.readouterr().out
    assert "resumed: 4 of 4 videos are already done" in out and "4 videos, 0 windows" in out
    assert output.read_bytes() == expected and output.stat().st_mtime_ns == written
    assert not list(features.parent.glob("*.partial"))


def test_resume_completes_a_finished_output(checkpoint, features, capsys):
    """Videos that failed, or came later, are added; the result is that of one run."""
    expected = run(checkpoint, features)[1].read_bytes()
    content = (features / "b.npy").read_bytes()
    (features / "b.npy").write_bytes(b"not an array")
    assert run(checkpoint, features)[0] == 1
    (features / "b.npy").write_bytes(content)
    capsys.readouterr()
    assert run(checkpoint, features, "--resume")[0] == 0
    assert "resumed: 3 of 4 videos are already done" in capsys.readouterr().out
    assert (features.parent / "out.json").read_bytes() == expected


def test_a_finished_output_of_other_settings_is_not_resumed(checkpoint, features):
    output = run(checkpoint, features)[1]
    expected = output.read_bytes()
    with pytest.raises(InputError, match=r"out.json is from a run with other values of protocol; .* --overwrite"):
        run(checkpoint, features, "--resume", "--protocol", "release")
    assert output.read_bytes() == expected
    output.write_text('{"results": {}}')
    with pytest.raises(InputError, match=r"out.json does not say with which settings it was made"):
        run(checkpoint, features, "--resume")
    assert not list(features.parent.glob("*.partial"))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "1" + "0" * 400])
def test_a_finished_output_with_numbers_that_are_not_finite_is_not_resumed(checkpoint, features, value):
    output = run(checkpoint, features)[1]
    (features / "z.npy").write_bytes((features / "a.npy").read_bytes())
    damaged = re.sub(r'"score": [0-9.e-]+', f'"score": {value}', output.read_text(), count=1)
    output.write_text(damaged)
    with pytest.raises(InputError, match=r"out.json has other entries for video 'a', expected score and segment"):
        run(checkpoint, features, "--resume")
    assert output.read_text() == damaged


def test_a_subset_of_the_archive(checkpoint, features, capsys):
    table = features.parent / "times.csv"
    table.write_text("video,fps,subset\na,25,Training\nb,25,validation\nc,25,validation\nx,25,test\n")
    everything = results_of(run(checkpoint, features)[1])
    code, output = run(checkpoint, features, "--times", table, "--subset", "Validation")
    assert code == 0 and results_of(output) == {video: everything[video] for video in ("b", "c")}
    errors = capsys.readouterr().err
    assert "note: 2 videos left out, not in the subset 'Validation'" in errors
    assert "times.csv: 1 video without features" in errors  # x, but none of those that are left out
    for more, message in (
        (("--subset", "validation"), "--subset requires an annotation file with subsets"),
        (
            ("--times", table, "--subset", "train"),
            "times.csv has the subsets Training, test, validation, expected 'train'",
        ),
        (("--times", table, "--subset", "test"), "has no video of the subset 'test' of .*times.csv"),
    ):
        with pytest.raises(InputError, match=message):
            run(checkpoint, features, *more)


@pytest.mark.parametrize("content", [b"garbage\n", b"[1]\n", b"\xff\xfe\n", b'{"settings": 3}\n'])
def test_a_partial_file_of_something_else_is_refused(checkpoint, features, content):
    (features.parent / "out.json.partial").write_bytes(content)
    with pytest.raises(InputError, match=r"out.json.partial is not the partial result of an interrupted run"):
        run(checkpoint, features, "--resume")


def test_changed_times_are_other_settings(checkpoint, features):
    table = features.parent / "times.csv"
    table.write_text("video,fps\na,25\nb,25\n")
    arguments = ["--checkpoint", checkpoint, "--features", features, "--output", features.parent / "out.json"]
    options = infer.parse([str(a) for a in [*arguments, "--times", table]])
    before = run_settings(options, CONFIG)
    table.write_text("video,fps\na,50\nb,25\n")
    assert run_settings(options, CONFIG) != before


def test_a_video_on_which_the_network_overflows_is_reported(checkpoint, features, capsys):
    expected = results_of(run(checkpoint, features)[1])
    np.save(features / "c.npy", np.load(features / "c.npy") * np.float32(1e35))
    code, output = run(checkpoint, features)
    del expected["c"]
    assert code == 1 and results_of(output) == expected
    assert (
        "failed: c: video 'c': the network's scores have NaN or infinity, expected finite ones"
        in capsys.readouterr().err
    )
