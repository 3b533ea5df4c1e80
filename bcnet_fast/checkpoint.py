"""Checkpoints: one safetensors file with the weights, and the configuration in its metadata. No pickles."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import Config
from .errors import InputError
from .files import atomic_path, parse_json, require_file

FORMAT = "bcnet_fast"  # name of the metadata entry with the configuration
EXPECTED = "a bcnet_fast checkpoint (.safetensors)"


def save_checkpoint(path: str | os.PathLike, state: Mapping[str, Tensor], config: Config) -> None:
    """Write weights and configuration, atomically. InputError names the file when that fails, say on a full disk."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # One entry only: safetensors writes several in random order, and equal weights should make equal files.
    metadata = {FORMAT: json.dumps(config.to_dict())}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise InputError(f"{path}: could not be written: {error}") from error
        # safetensors makes files that only their owner may read. The umask cannot be read without setting it.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Any]:
    """An open safetensors file; whatever is wrong with it becomes an InputError that names it."""
    path = require_file(path, EXPECTED)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: expected {EXPECTED}, found another kind of file; see python -m bcnet_fast.convert")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: expected {EXPECTED}, found a damaged file ({error})") from error


def read_config(path: str | os.PathLike) -> Config:
    """The configuration of a checkpoint. InputError names the file when it is missing, damaged, or something else."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if FORMAT not in metadata:
        raise InputError(f"{path}: expected {EXPECTED}, found safetensors without its configuration in the metadata")
    return Config.from_dict(parse_json(metadata[FORMAT], path, "a configuration in the metadata"), str(path))


def read_checkpoint(path: str | os.PathLike) -> tuple[Config, dict[str, Tensor]]:
    """Configuration and weights of a checkpoint; InputError as in `read_config`."""
    config = read_config(path)
    with _opened(path) as file:
        # A mapped tensor dies with its file: copies make the weights independent of what happens to it.
        return config, {name: file.get_tensor(name).clone() for name in file.keys()}


def check_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raise InputError that lists every missing, unknown and misshaped key, and any weight that is not finite."""
    expected = network.state_dict()
    problems = []
    for title, names in (
        ("missing", [name for name in expected if name not in state]),
        ("unknown", [name for name in state if name not in expected]),
        (
            "misshaped",
            [
                f"{name} (expected {list(expected[name].shape)}, found {list(tensor.shape)})"
                for name, tensor in state.items()
                if name in expected and expected[name].shape != tensor.shape
            ],
        ),
        ("not finite", [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]),
    ):
        if names:
            problems.append(f"{title}: {', '.join(names)}")
    if problems:
        raise InputError(f"{source}: weights do not fit the network; {'; '.join(problems)}")
