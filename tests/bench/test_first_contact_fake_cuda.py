"""The GPU path of the first contact, on a CPU that passes for a GPU (helpers/fake_cuda.py)."""

from __future__ import annotations

import dataclasses

from contact.runner import Run
from contact.steps import STEPS
from helpers.backends import needs_triton
from helpers.paths import ROOT
from helpers.sweeps import sweep

FAKE = ROOT / "tests" / "helpers" / "fake_cuda.py"
FIRST = ("add_layer_norm",)
# Processes of their own, a second device, compilers, and the device that the doctor's backends ask for are not faked.
NOT_FAKED = ("doctor", "sanitizer", "engine_exit", "engine_devices", "rival_tensorrt", "rival_compile")
OTHERS = tuple(step.name for step in STEPS if step.name not in (*FIRST, *NOT_FAKED))

pytestmark = needs_triton("add_layer_norm")


@sweep("names", [FIRST, OTHERS], ids=["first", "others"])
def test_steps_run_on_a_device_that_passes_for_a_gpu(tmp_path, names):
    steps = [
        dataclasses.replace(
            step,
            target=f"{FAKE}:{step.target.removeprefix('contact.').replace(':', '.')}",
            limit=300.0,
            interpreter=True,
            rival=False,
        )
        for step in STEPS
        if step.name in names
    ]
    results = {result.step: result for result in Run(steps, tmp_path, "cpu", 3000.0).all()}
    endings = {name: (result.status, result.reason) for name, result in results.items()}
    assert endings == dict.fromkeys(names, ("ok", ""))
    if names == FIRST:
        assert all(row["graph"] and row["side stream"] for row in results["add_layer_norm"].rows)
    else:
        assert {row["precision"] for row in results["engine_graphs"].rows} == {"fp32", "tf32", "fp16", "bf16"}
        assert results["environment"].facts["device"].startswith("NVIDIA H100")
        assert "kernels_tf32.csv" in results["kernels"].files
