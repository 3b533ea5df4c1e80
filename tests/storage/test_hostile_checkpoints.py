"""Checkpoints and training states that are damaged or made to do harm are one line, and take no time or memory."""

from __future__ import annotations

import json
import re
import time
import tracemalloc

import pytest
import torch
from helpers.networks import BMN, GTAD, SMALL
from safetensors.torch import save_file

import bcnet_fast
from bcnet_fast.config import Config, MapProposalConfig
from bcnet_fast.errors import InputError
from bcnet_fast.networks import releases
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.presets import PRESETS
from bcnet_fast.storage import files
from bcnet_fast.storage.checkpoint import FORMAT

CONFIGS = {
    "bcnet": Config("small", model=SMALL),
    "bmn": Config("small", model=BMN, proposals=MapProposalConfig()),
    "gtad": Config("small", model=GTAD, proposals=MapProposalConfig()),
}


def checkpoint(path, system: str, section: str, **changes) -> None:
    """Weights of a small network whose metadata says something else."""
    config = CONFIGS[system]
    values = config.to_dict()
    values[section] |= changes
    torch.manual_seed(0)
    save_file(NETWORKS[system](config.model).state_dict(), path, metadata={FORMAT: json.dumps(values)})


@pytest.mark.parametrize(
    ("system", "section", "changes", "message"),
    [
        (
            "bcnet",
            "model",
            {"boundary_layers": 100_000},
            "boundary_layers is 100000, expected a whole number from 1 to 256",
        ),
        ("bcnet", "model", {"window": 1_000_000}, "window is 1000000, expected a whole number from 1 to 4096"),
        ("bcnet", "model", {"bins": 10_000_000}, "bins is 10000000, expected a whole number from 1 to 1024"),
        (
            "bcnet",
            "model",
            {"window": 4096, "max_duration": 4096},
            "max_duration is 4096, expected at most 32768 anchors",
        ),
        (
            "bcnet",
            "model",
            {"window": 2048, "max_duration": 700},
            "max_duration is 700, expected a smaller one, or a smaller",
        ),
        ("bcnet", "model", {"bins": 1024, "clip_channels": 4096}, "bins is 1024, expected smaller weights"),
        (
            "bcnet",
            "model",
            {"width": 16_384, "heads": 1024, "head_dim": 16_384},
            "width is 16384, expected smaller weights",
        ),
        ("bcnet", "model", {"max_duration": 2}, "max_duration is 2, expected at least 3 snippets"),
        ("bmn", "model", {"window": 4096}, "window is 4096, expected at most 1048576 cells"),
        ("bmn", "model", {"window": 1024, "bins": 1024}, "window is 1024, expected at most 268435456 sampled points"),
        (
            "bmn",
            "model",
            {"window": 1000, "points_per_bin": 1024},
            "window is 1000, expected at most 268435456 sampled points",
        ),
        ("gtad", "model", {"window": 4096, "max_duration": 4096}, "window is 4096, expected at most 1048576 cells"),
        (
            "gtad",
            "model",
            {"window": 1024, "max_duration": 1024},
            "window is 1024, expected at most 268435456 sampled points",
        ),
        ("gtad", "model", {"window": 1}, "window is 1, expected at least 2 snippets"),
        ("gtad", "model", {"neighbours": 24}, "neighbours is 24, expected at most model.window = 23"),
        ("gtad", "model", {"block_groups": 3}, "block_groups is 3, expected a divisor of model.block_channels = 8"),
        ("gtad", "proposals", {"sigma": 1e-308}, "sigma is 1e-308, expected a number of at least 1e-30"),
        ("gtad", "data", {"offset": 1e300}, "offset is 1e+300, expected a number of at most 1e+30"),
        ("bmn", "proposals", {"top": 2**31 - 1}, "top is 2147483647, expected a whole number from 1 to 1000000"),
        ("bmn", "model", {"window": 512, "max_duration": 512}, None),
    ],
)
def test_sizes_are_checked_before_anything_is_built(tmp_path, system, section, changes, message):
    path = tmp_path / "a.safetensors"
    checkpoint(path, system, section, **changes)
    tracemalloc.start()
    began = time.process_time()
    if message is None:  # within all bounds, and as good as the weights
        bcnet_fast.load(path, device="cpu", backend="reference")
    else:
        with pytest.raises(InputError, match=rf"a\.safetensors: {section}\.{re.escape(message)}"):
            bcnet_fast.load(path, device="cpu")
    seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 5 and peak < 2**26


def test_published_sizes_are_within_all_bounds():
    for configs in PRESETS.values():
        for config in configs.values():
            assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_floats_are_listed(tmp_path, dtype):
    state = NETWORKS["bmn"](BMN).state_dict()
    name = next(iter(state))
    state[name] = torch.zeros_like(state[name]).to(dtype)
    save_file(state, tmp_path / "a.safetensors", metadata={FORMAT: json.dumps(CONFIGS["bmn"].to_dict())})
    with pytest.raises(InputError, match=rf"not floating point: {re.escape(name)} \("):
        bcnet_fast.load(tmp_path / "a.safetensors", device="cpu")


@pytest.mark.parametrize("preset", [["a"], "x" * 81, "a\x1b[31m", None])
def test_a_preset_is_a_short_name(preset):
    with pytest.raises(InputError, match=r"x: preset is .*, expected a short name") as error:
        Config.from_dict({"preset": preset}, "x")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("value", [16**5000, [[]], {"a": 16**5000}], ids=["digits", "list", "inside"])
def test_a_value_that_cannot_be_written_is_named_by_its_type(value):
    nested: list = []
    for _ in range(50_000):
        nested = [nested]
    for one in (value, nested):
        with pytest.raises(InputError, match=r"x: model\.window is .*, expected a whole number"):
            Config.from_dict({"preset": "own", "model": {"window": one}}, "x")


def odd_weights() -> dict[str, object]:
    plain = torch.zeros(3, 4)
    return {
        "meta": plain.to("meta"),
        "sparse": plain.to_sparse(),
        "complex": torch.complex(plain, plain),
        "conjugated": torch.complex(plain, plain).conj(),
        "expanded": torch.zeros(1).expand(2**40),
        "float4": torch.zeros(3, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "list": [plain],
    }


@pytest.mark.parametrize("kind", odd_weights())
def test_a_release_with_odd_tensors_is_one_line(tmp_path, kind):
    path = tmp_path / "bmn.pth.tar"
    torch.save({"state_dict": {"x_1d_b.0.weight": odd_weights()[kind]}}, path)
    with pytest.raises(InputError, match=r"bmn\.pth\.tar") as error:
        releases.convert_bmn(path, PRESETS["bmn"]["activitynet13"])
    assert str(error.value).isprintable()


def test_a_mask_of_long_proposals_is_refused_before_it_is_built(tmp_path):
    path = tmp_path / "bmn.pth.tar"
    mask = torch.zeros(100, 32 * 100 * 101, dtype=torch.bool)
    torch.save({"state_dict": {"x_1d_b.0.weight": torch.zeros(1), "sample_mask": mask}}, path)
    with pytest.raises(InputError, match="sample_mask has proposals of 101 snippets"):
        releases.convert_bmn(path, PRESETS["bmn"]["activitynet13"])


def test_a_tensor_of_more_values_than_are_stored_is_refused(tmp_path):
    path = tmp_path / "bmn.pth.tar"
    torch.save({"state_dict": {"x_1d_b.0.weight": torch.zeros(1, dtype=torch.int8).expand(2**29)}}, path)
    with pytest.raises(InputError, match="stores fewer values than the shape has at the state_dict keys x_1d_b"):
        releases.convert_bmn(path, PRESETS["bmn"]["activitynet13"])


def many_tensors(path, kind: str) -> None:
    stored = torch.zeros(101)
    state = {f"x{number}": stored[number : number + 1] for number in range(len(stored))}
    if kind != "one storage":
        state = {name: tensor.clone() for name, tensor in state.items()}
    if kind == "checkpoint":
        save_file(state, path, metadata={FORMAT: json.dumps(CONFIGS["bmn"].to_dict())})
    else:
        torch.save({"state_dict": state}, path)


@pytest.mark.parametrize("kind", ["checkpoint", "release", "one storage"])
def test_more_tensors_than_any_network_has_are_one_line(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(files, "MOST_TENSORS", 100)
    path = tmp_path / ("x.safetensors" if kind == "checkpoint" else "x.pth")
    many_tensors(path, kind)
    read = bcnet_fast.load if kind == "checkpoint" else releases.read_release
    with pytest.raises(InputError, match=r"x\.\w+ has 101 tensors, expected at most 100$"):
        read(path)


def test_unknown_tensors_take_time_by_their_number_alone(tmp_path):
    """Opening the file for each of them would take a minute."""
    path = tmp_path / "x.safetensors"
    state = NETWORKS["bmn"](BMN).state_dict() | {f"x{number}": torch.zeros(1) for number in range(4000)}
    save_file(state, path, metadata={FORMAT: json.dumps(CONFIGS["bmn"].to_dict())})
    began = time.process_time()
    with pytest.raises(InputError, match="weights do not fit the network; unknown: x0, x1, "):
        bcnet_fast.load(path, device="cpu")
    assert time.process_time() - began < 10


def test_old_pytorch_converts_nothing(tmp_path, monkeypatch):
    path = tmp_path / "bmn.pth.tar"
    torch.save({"state_dict": {}}, path)
    monkeypatch.setattr(torch, "__version__", "2.9.0")
    with pytest.raises(InputError, match=r"bmn\.pth\.tar: PyTorch 2\.9\.0 may run code of a pickle \(CVE-2025-32434"):
        releases.convert_bmn(path, PRESETS["bmn"]["activitynet13"])
