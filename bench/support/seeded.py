"""Weights and input of the golden network outputs, drawn from names, shapes and a seed.

The rules are those that the figures in tests/golden/bcnet and tests/golden/bmn_gtad were computed with. BCNet's gains
are such that different snippets give different scores, which random weights of equal variance do not.
"""

from __future__ import annotations

import json
import math
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


# The input of each golden output in tests/golden/bmn_gtad, chosen so that no neighbour in a graph is a near tie.
MAP_INPUTS = {
    "bmn": "input",
    "gtad_anet": "input",
    "gtad_t100": "input",
    "gtad_thumos": "input.21",
    "gtad_thumos_winB": "input.57",
}
# G-TAD's golden outputs have these weights divided by 8, since otherwise their sigmoids are close to 0 and 1.
G8 = ("regu_s.1.weight", "regu_e.1.weight", "localization.8.weight")


def map_parameter(name: str, shape: list[int], seed: int) -> np.ndarray:
    """One tensor of a released BMN or G-TAD, float32; `name` without the prefix of DataParallel."""
    values = generator(seed, name).standard_normal(shape)
    scale = np.sqrt(2.0) / np.sqrt(float(np.prod(shape[1:]))) if len(shape) > 1 else 0.05
    return (values * scale).astype(np.float32)


def map_state(keys: Path, seed: int, g8: bool = False) -> dict[str, torch.Tensor]:
    """All parameters that a file of keys lists, by name; with `g8`, those of `G8` at an eighth."""
    shapes = json.loads(keys.read_text())["parameters"]
    state = {name: torch.from_numpy(map_parameter(name, shape, seed)) for name, shape in shapes.items()}
    return {name: tensor / 8 if g8 and name in G8 else tensor for name, tensor in state.items()}


def map_input(name: str, channels: int, window: int, seed: int) -> np.ndarray:
    """An input with a motif that comes back every 37 snippets, float32 [1, C, T]; exact in float32."""
    z = np.rint(4096 * generator(seed, name).standard_normal((1, channels, window))) / 4096
    t = np.arange(window)
    u = z / 2 + z[..., t % 37]
    return (sum(u[..., (t + shift).clip(0, window - 1)] for shift in (-1, 0, 1, 2)) / 2).astype(np.float32)


def bmn_mask(window: int, layout: str, bins: int = 32, points: int = 3) -> torch.Tensor:
    """The constant `sample_mask` of a released BMN ("start_end") or of mmaction2's ("duration_start"), [T, bins T T].

    Built point by point from the definition. The first layout extends the snippets s to e by half of their number and
    one more on both sides, and ends after e. The second extends them by half of their number, and ends at e.
    """
    mask = np.zeros((window, bins, window, window))
    for start in range(window):
        for last in range(start, window):
            length = last - start + 1
            if layout == "start_end":
                cell, begin, end = (start, last), start - (length + 1) / 2, last + 1 + (length + 1) / 2
            else:
                cell, begin, end = (last - start, start), start - length / 2, last + length / 2
            step = (end - begin) / (bins * points - 1.0)
            for k in range(bins * points):
                fraction, lower = math.modf(begin + step * k)
                for snippet, weight in ((int(lower), 1 - fraction), (math.ceil(begin + step * k), fraction)):
                    if 0 <= snippet < window:
                        mask[(snippet, k // points, *cell)] += weight
    return torch.from_numpy((1.0 / points * mask).astype(np.float32)).reshape(window, -1)


def map_release(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """Write a checkpoint as the public releases of BMN and G-TAD do."""
    torch.save({"epoch": 9, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return path
