"""A tiny run of every operator under compute-sanitizer, which sees each access outside of an allocation.

The tiny run alone, in bench/ of an installed checkout: python -m contact.sanitizer cuda
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from bcnet_fast import ops
from bcnet_fast.geometry.anchors import make_anchors, matching_table
from bcnet_fast.geometry.proposal_map import gtad_regions
from bcnet_fast.ops.sampling_plan import aligned_plan, interpolated_plan

from .context import Context, Skip
from .machine import sanitizer_path

FOUND = 77  # exit code of the tool when it found something


def sanitizer(context: Context) -> None:
    command = [sys.executable, "-m", "contact.sanitizer", context.device]  # in the folder of this process, bench/
    path = sanitizer_path()
    if context.device == "cuda":
        if path is None:
            raise Skip("compute-sanitizer is not here; the CUDA toolkit has it")
        options = ["--tool", "memcheck", "--error-exitcode", str(FOUND), "--print-limit", "20"]
        command = [path, *options, *command]
    # With every tensor an allocation of its own, the tool sees where one ends.
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    log = context.out / "sanitizer.txt"
    patience = max(1.0, context.left() - 4)
    try:
        with open(log, "w", encoding="utf-8") as file:
            done = subprocess.run(
                command, env=env, stdout=file, stderr=subprocess.STDOUT, timeout=patience, check=False
            )
    except subprocess.TimeoutExpired:
        raise Skip(f"the tiny run under compute-sanitizer takes longer than {patience:.0f} s") from None
    context.file(log)
    text = log.read_text(encoding="utf-8", errors="replace")
    print(text[-20000:])
    context.fact("command", " ".join(Path(part).name for part in command))
    context.fact("exit code", done.returncode)
    if context.device == "cpu":
        context.note("The tool is for GPUs: on a CPU this is the tiny run alone.")
    if done.returncode == FOUND:
        errors = [line for line in text.splitlines() if "Invalid" in line or "ERROR SUMMARY" in line]
        context.failure("compute-sanitizer: " + "; ".join(line.strip("= ").strip() for line in errors[:4]))
    elif done.returncode:
        context.failure(f"the tiny run ended with {done.returncode}")


def tiny(device: str) -> None:
    """Every operator, forward and backward, at odd sizes that no tile fits."""
    torch.manual_seed(0)
    plan = interpolated_plan(make_anchors(13, 8), 13, 3, 2).to(device)
    regions = aligned_plan(gtad_regions(7, 4), 7, (2, 1)).to(device)
    with ops.use_backend("triton"):

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device, dtype=torch.float16, requires_grad=True)

        _backward(ops.difference_attention(*(random(1, 2, 19, 24) for _ in range(4))))
        _backward(ops.add_layer_norm(random(5, 77), random(5, 77)))
        _backward(ops.anchor_sampling(random(2, 9, 13), plan))
        _backward(ops.anchor_sampling(random(1, 2, 9, 7), regions))
        for strategy in ("project", "gather"):
            _backward(ops.anchor_projection(random(2, 16, 13), plan, random(3, 16, 24), random(24), strategy=strategy))
        anchors = torch.from_numpy(make_anchors(13, 8)).long().to(device)
        table = torch.from_numpy(matching_table(13, 8).copy()).to(device)
        scores = [torch.rand(2, 13, device=device) for _ in range(2)]
        scores += [torch.rand(2, len(anchors), device=device) for _ in range(3)]
        ops.match_proposals(*scores, anchors, table)
    start = torch.rand(77, device=device) * 50
    segments = torch.stack([start, start + torch.rand(77, device=device) * 9], 1)
    ops.soft_nms(segments, torch.rand(77, device=device), offsets=torch.tensor([0, 1, 40, 40, 77], device=device))
    if device == "cuda":
        torch.cuda.synchronize()
    print("every operator has run")


def _backward(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])


if __name__ == "__main__":
    tiny(sys.argv[1])
