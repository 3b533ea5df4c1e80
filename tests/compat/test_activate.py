"""`import bcnet_fast.compat.activate` makes the extensions of other projects importable, and hides no real one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from helpers.paths import ROOT

pytestmark = pytest.mark.skipif(
    any(map(importlib.util.find_spec, ("nms_1d_cpu", "Align1D"))), reason="a compiled one is installed"
)
HARD_NMS = """
import torch
inds = nms_1d_cpu.nms(torch.tensor([[0., 2], [0, 3]]), torch.tensor([0.5, 0.6]), iou_threshold=0.5)
assert inds.tolist() == [1], inds
"""
ALIGN = """
out = Align1D.forward(torch.ones(1, 2, 10), torch.tensor([[0., 1, 5]]), 4, 2)
assert out.shape == (1, 2, 4)
grad = Align1D.backward(out, torch.tensor([[0., 1, 5]]), 4, 1, 2, 10, 2)
assert grad.shape == (1, 2, 10)
"""


def python(code: str, *folders) -> str:
    path = os.pathsep.join(map(str, (*folders, ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_line_makes_both_imports_work():
    python("import bcnet_fast.compat.activate\nimport nms_1d_cpu, Align1D\n" + HARD_NMS + ALIGN)


def test_without_it_nothing_is_found():
    python(
        "import importlib.util, bcnet_fast.compat\n"
        "assert not any(map(importlib.util.find_spec, ('nms_1d_cpu', 'Align1D')))\n"
    )


@pytest.mark.parametrize("name", ["nms_1d_cpu", "Align1D"])
def test_an_installed_extension_is_left_alone(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("compiled = True\n")
    python(f"import bcnet_fast.compat.activate\nimport {name}\nassert {name}.compiled\n", tmp_path)
    # Also one that is imported before.
    python(f"import {name}\nimport bcnet_fast.compat.activate\nimport {name}\nassert {name}.compiled\n", tmp_path)


def test_an_extension_on_a_path_that_is_added_later_wins(tmp_path):
    (tmp_path / "nms_1d_cpu.py").write_text("compiled = True\n")
    python(
        f"import sys, bcnet_fast.compat.activate\nsys.path.append({str(tmp_path)!r})\n"
        "import nms_1d_cpu\nassert nms_1d_cpu.compiled\n"
    )


def test_activating_twice_adds_one_finder():
    python(
        "import importlib, sys\nimport bcnet_fast.compat.activate as activate\nimportlib.reload(activate)\n"
        "assert sum(type(f).__name__ == 'CompatFinder' for f in sys.meta_path) == 1\n"
    )
