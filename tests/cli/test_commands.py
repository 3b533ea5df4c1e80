"""`bcnet` and `python -m bcnet_fast`: the list of commands, running one, and the options each parses its flags into."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import bcnet_fast
from bcnet_fast import __main__, convert, evaluate, infer, inspect, train
from bcnet_fast.cli.commands import COMMANDS

PACKAGE = Path(bcnet_fast.__file__).parent
# The smallest argument list of each command that has options.
SMALLEST = {
    infer: ["--features", "f", "--output", "o.json"],
    train: ["--preset", "synthetic"],
    evaluate: ["--proposals", "p.json", "--ground-truth", "g.json", "--metric", "thumos14"],
    convert: ["--bpm", "a", "--abi", "b", "--output", "o.safetensors"],
    inspect: ["f"],
}


def start(monkeypatch, capsys, program: str, *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the process `program argv`."""
    monkeypatch.setattr(sys, "argv", [program, *argv])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    return ended.value.code, *capsys.readouterr()


def test_every_command_has_one_line(monkeypatch, capsys):
    for argv in ((), ("--help",)):
        code, out, _ = start(monkeypatch, capsys, "/usr/bin/bcnet", *argv)
        listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
        assert code == 0 and listed == list(COMMANDS) and "usage: bcnet COMMAND" in out
        assert max(map(len, out.splitlines())) <= 120
    commands = {path.stem for path in PACKAGE.glob("*.py") if "\ndef main(" in path.read_text()} - {"__main__"}
    assert commands == COMMANDS.keys()


def test_the_list_imports_neither_torch_nor_numpy():
    code = (
        "import sys; sys.argv = ['bcnet']\n"
        "from bcnet_fast.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_commands_on_results_do_not_wait_for_pytorch():
    code = "import sys; from bcnet_fast import evaluate, merge, view; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("infr", "did you mean infer?"),
        ("x", "the commands are infer, extract, merge, train,"),
        ("-x", "the commands are"),
    ],
)
def test_an_unknown_command_is_one_line(monkeypatch, capsys, name, hint):
    code, out, err = start(monkeypatch, capsys, "bcnet", name)
    assert code == 2 and out == ""
    assert err.startswith(f"error: unknown command {name!r}; ") and hint in err and err.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_command_as_it_was_started(monkeypatch, capsys, command):
    module = importlib.import_module(f"bcnet_fast.{command}")
    texts = []
    for program in ("bcnet", "infer.py"):
        monkeypatch.setattr(sys, "argv", [program])
        with pytest.raises(SystemExit, match="0"):
            module.main(["--help"])
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith(f"usage: bcnet {command} ") and "python -m bcnet_fast" not in texts[0]
    assert texts[1].startswith(f"usage: python -m bcnet_fast.{command} ")
    code, out, _ = start(monkeypatch, capsys, "somewhere/bin/bcnet", command, "--help")
    assert code == 0 and out == texts[0]


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=lambda c: "-".join(c) or "bcnet")
def test_every_command_tells_the_version(monkeypatch, capsys, command):
    code, out, _ = start(monkeypatch, capsys, "bcnet", *command, "--version")
    assert code == 0 and out == f"bcnet_fast {bcnet_fast.__version__}\n"


def test_the_exit_code_and_the_error_are_those_of_the_command(monkeypatch, capsys):
    flags = ("--proposals", "gone.json", "--ground-truth", "gone.json", "--preset", "thumos14")
    code, _, err = start(monkeypatch, capsys, "bcnet", "evaluate", *flags)
    assert code == 2 and err.startswith("error: gone.json does not exist") and err.count("\n") == 1


@pytest.mark.parametrize("command", SMALLEST, ids=lambda command: command.__name__.rpartition(".")[2])
def test_options_are_frozen_and_their_defaults_are_those_of_the_flags(command):
    options = command.parse(SMALLEST[command])
    for field in dataclasses.fields(options):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(options, field.name, None)
    missing = dataclasses.MISSING
    required = [f.name for f in dataclasses.fields(options) if f.default is missing and f.default_factory is missing]
    stated = {name: getattr(options, name) for name in required}
    if command is convert:
        stated |= {"bpm": "a", "abi": "b"}
    assert options == type(options)(**stated)
