"""Weights and input of the golden network outputs, drawn from names, shapes and a seed.

The rule is the one that the figures in tests/golden/bcnet were computed with: gains are such that different snippets
give different scores, which random weights of equal variance do not.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch

GAINS = {"fc_reg_a": 1.0, "fc_cls": 2.0, "fc_cls_a": 3.0, "fc_cls_b": 3.0, "bpm_base": 7.0, "base_module": 7.0}
ATTENTION_GAINS = {"W_Q": 2.5, "W_K": 2.5, **dict.fromkeys(("W_V", "W_V_A", "W_V_B", "fc", "fc_a", "fc_b"), 0.5)}


def generator(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))


def parameter(name: str, shape: list[int], seed: int) -> np.ndarray:
    """One tensor of a released network, float32; `name` without the prefix of DataParallel."""
    values = generator(seed, name).standard_normal(shape)
    parts = name.removeprefix("frame_model.").split(".")
    if len(shape) == 1:
        values = 0.05 * values - 2.0
    elif parts[-2] == "query":
        values = 0.1 * values
    else:
        gain = GAINS.get(parts[0]) or ATTENTION_GAINS.get(parts[-2], 0.6)
        values = values * (gain / np.sqrt(float(np.prod(shape[1:]))))
    return values.astype(np.float32)


def network_input(seed: int, channels: int = 2048, window: int = 256) -> np.ndarray:
    """A sparse, non-negative input with slow and fast changes, float32 [1, C, T]."""
    draw = generator(seed, "input")
    fast = np.pad(draw.standard_normal((channels, window)), ((0, 0), (4, 4)))
    slow = np.repeat(draw.standard_normal((channels, window // 16)), 16, axis=1)
    smooth = np.zeros((channels, window))
    for shift in range(9):
        smooth = smooth + fast[:, shift : shift + window]
    return np.maximum(0.6 * (smooth / 3.0) + 0.8 * slow - 1.0, 0.0).astype(np.float32)[None]


def position_table(bits: np.lib.npyio.NpzFile, rows: int, width: int) -> np.ndarray:
    """The release's positional encoding bit for bit, float32 [rows, 1, width]; rows beyond the known ones are zero."""
    delta = bits[f"ulp_delta_{width}"].astype(np.int64)
    angle = np.arange(len(delta), dtype=np.float32)[:, None] * bits[f"div_term_{width}"]
    table = np.stack([np.sin(angle.astype(np.float64)), np.cos(angle.astype(np.float64))], -1).astype(np.float32)
    integer = table.reshape(delta.shape).view(np.int32).astype(np.int64)
    # Counting floats in order needs negative ones mirrored, since their bits are sign and magnitude.
    integer = np.where(integer < 0, -(integer & 0x7FFFFFFF), integer) + delta
    used = np.where(integer < 0, -integer | 0x80000000, integer).astype(np.uint32).view(np.float32)
    full = np.zeros((rows, 1, width), np.float32)
    full[: len(used), 0] = used
    return full


def release_files(folder: Path, golden: Path, seed: int) -> tuple[Path, Path]:
    """Write the two checkpoints as the public release does (BPM, ABI), with seeded weights."""
    bits = np.load(golden / "bcnet" / "pe_bits.npz")
    paths = []
    for part in ("bpm", "abi"):
        shapes = json.loads((golden / "bcnet" / f"keys_{part}.json").read_text())
        state = {}
        for key, shape in shapes.items():
            name = key.removeprefix("module.")
            is_table = name.endswith(".pe")
            values = position_table(bits, shape[0], shape[-1]) if is_table else parameter(name, shape, seed)
            state[key] = torch.from_numpy(values)
        paths.append(folder / f"{part}.pth.tar")
        torch.save({"epoch": 9, "state_dict": state}, paths[-1])
    return paths[0], paths[1]
