"""Mistyped flags, choices and settings: one line that names what was meant, in every command."""

from __future__ import annotations

import importlib

import pytest

import bcnet_fast
from bcnet_fast.cli.commands import COMMANDS, dispatch
from bcnet_fast.cli.parser import command_parser
from bcnet_fast.config import Config
from bcnet_fast.errors import InputError
from bcnet_fast.presets import PRESET_NAMES, PRESETS


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--prest", "small"], "unknown flag --prest; did you mean --preset?"),
        (["train", "--epoch=3", "--nonsense"], "unknown flag --nonsense; see --help"),
        (["infer", "--feautres", "f", "--output", "o.json"], "unknown flag --feautres; did you mean --features?"),
        # A required flag that is mistyped is not reported as missing.
        (
            ["evaluate", "--proposal-file", "p", "--metric", "thumos14"],
            "unknown flag --proposal-file; did you mean --pro",
        ),
        (["inspect", "-times", "f", "x"], "unknown flag -times; did you mean --times?"),
        (
            ["train", "--preset", "smal"],
            "--preset is 'smal', expected thumos14, activitynet13, small, synthetic or muses; did",
        ),
        (["train", "--preset", "small", "--model", "gtda"], "gtad, pgcn or muses; did you mean gtad?"),
        (
            ["evaluate", "--metric", "thumos"],
            "--metric is 'thumos', expected thumos14 or activitynet13; did you",
        ),
        (["evaluate", "--proposals", "p.json"], "--ground-truth is required; see --help"),
        (["evaluate", "--proposals", "p", "--ground-truth", "g"], "--metric is required; see --help"),
        (["train", "--epochs", "x"], "--epochs is 'x', expected a whole number; see --help"),
        (["train", "--learning-rate", "x"], "--learning-rate is 'x', expected a number; see --help"),
        (["train", "--set"], "--set has no value, expected at least one argument; see --help"),
        (["infer", "--feature", "f"], "--feature is ambiguous, expected one of --features, --feature-dim; see --help"),
        (["convert", "--preset", "small"], "--preset is 'small', expected thumos14, activitynet13 or muses; see"),
        (["infr"], "unknown command 'infr'; did you mean infer?"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_what_was_meant_is_named(argv, message):
    with pytest.raises(InputError) as error:
        dispatch(argv, "bcnet")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": {"lerning_rate": 1.0}}, "there is no setting train.lerning_rate; did you mean train.learning_rate?"),
        ({"model": {"epochs": 3}}, "there is no setting model.epochs; did you mean train.epochs?"),
        ({"data": {"qqq": 3}}, "there is no setting data.qqq; the settings of data are data.rescale, "),
        ({"trian": {"epochs": 3}}, "there is no section 'trian', expected one of .*; did you mean train?"),
    ],
)
def test_a_mistyped_setting_is_named(settings, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        PRESETS["bcnet"]["small"].override(settings, "--set")
    with pytest.raises(InputError, match=r"model\.name is 'bcnte', expected bcnet, bmn or gtad"):
        Config.from_dict({"preset": "x", "model": {"name": "bcnte"}})


@pytest.mark.parametrize(
    ("name", "hint"), [("nonsense", ""), ("smal", "; did you mean small?"), ("dmo", "; did you mean demo?")]
)
def test_load_lists_all_presets_and_models(name, hint):
    with pytest.raises(InputError) as error:
        bcnet_fast.load(name)
    text = str(error.value)
    assert text.startswith(f"{name} is neither a file nor a preset") and text.endswith(hint)
    assert all(known in text for known in (*PRESET_NAMES, *PRESETS, "demo", ".safetensors"))


def test_load_names_the_nearest_model():
    with pytest.raises(InputError, match=r"'bmm', expected bcnet, bmn, gtad, pgcn or muses; did you mean bmn\?"):
        bcnet_fast.load("thumos14", model="bmm")


def test_beginnings_of_flags_negative_numbers_and_values_are_no_mistakes():
    parser = command_parser("x", None)
    parser.add_argument("--offset", type=float)
    parser.add_argument("--name")
    parser.add_argument("rest", nargs="*")
    found = parser.parse_args(["--off", "-8.5", "--name=--odd value", "--", "--later"])
    assert (found.offset, found.name, found.rest) == (-8.5, "--odd value", ["--later"])


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_takes_an_unknown_flag(command):
    with pytest.raises(InputError, match="unknown flag --no-such-flag"):
        importlib.import_module(f"bcnet_fast.{command}").main(["--no-such-flag"])


def test_presets_have_the_same_names_in_all_commands_that_run_a_network(tmp_path):
    for command in ("infer", "inspect", "train"):
        parser = importlib.import_module(f"bcnet_fast.{command}").build_parser()
        (choices,) = (action.choices for action in parser._actions if "--preset" in action.option_strings)
        # MUSES-Net, which only train knows, has a preset of its own.
        assert tuple(name for name in choices if name != "muses") == PRESET_NAMES, command
