"""Imports point down only: commands, then the library, then networks, operators and data, then files, then errors.

Tests import the package, the benchmarks and their helpers, never each other.
"""

from __future__ import annotations

import ast
import functools
from graphlib import TopologicalSorter
from pathlib import Path

from helpers.paths import ROOT

import bcnet_fast

PACKAGE = Path(bcnet_fast.__file__).parent
BASICS = ("errors", "bounds", "recipe", "settings", "config", "presets", "protocols", "progress", "text", "threads")
COMMAND_MODULES = ("infer", "extract", "train", "refine", "evaluate", "view", "merge", "convert", "inspect", "doctor")
# From the bottom to the top. A module may import its own level and those below it.
LEVELS = (
    (*BASICS, "kernels"),
    ("storage", "profiling"),
    ("ops", "geometry", "data"),
    ("video",),
    ("networks", "layers"),
    ("proposals",),
    ("inference", "training", "evaluation", "results", "compat"),
    ("cli", *COMMAND_MODULES, "__main__"),
)
LEVEL = {part: number for number, parts in enumerate(LEVELS) for part in parts}
COMMANDS = len(LEVELS) - 1


def modules() -> dict[str, Path]:
    """Name below the package -> file, without the package itself, which imports on first use."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            names[name] = path
    return names


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports anywhere, functions included."""
    found = set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
        for alias in node.names:
            candidates = (".".join([*base, alias.name]), ".".join(base))
            found |= {next((c for c in candidates if c in known), "")}
    return found - {"", name}


@functools.cache
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imported(name, path, known) for name, path in known.items()}


def test_every_part_has_a_level_and_imports_nothing_above_it():
    wrong = []
    for name, targets in graph().items():
        level = LEVEL[name.split(".")[0]]
        wrong += [f"{name} imports {t}" for t in sorted(targets) if LEVEL[t.split(".")[0]] > level]
    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    # A package's __init__ names what its modules define, so an import of the package is one of its modules.
    tuple(TopologicalSorter(graph()).static_order())  # CycleError names the circle


def test_only_commands_know_argparse():
    for name, path in modules().items():
        if "argparse" in path.read_text(encoding="utf-8"):
            assert LEVEL[name.split(".")[0]] == COMMANDS, name


def test_no_test_file_is_imported():
    """Shared code of tests is in tests/helpers, so a test file can be moved, renamed or run alone."""
    wrong = []
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            else:
                continue
            for name in names:
                if any(part == "conftest" or part.startswith("test_") for part in name.split(".")):
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong
