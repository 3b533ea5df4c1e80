"""Checkpoints: a safetensors file with the weights, and the configuration in its metadata. No pickles.

The state of a training is a file of the same kind, with its log and settings as JSON.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import SYSTEMS, Config, SecondStageConfig, is_second_stage
from ..errors import InputError
from .address import place_of
from .files import parse_json, readable, require_file, require_possible_count
from .foreign import project_of
from .output import atomic_path

FORMAT = "bcnet_fast"  # metadata key of the configuration
EXPECTED = "a bcnet_fast checkpoint (.safetensors)"
TRAINING_FORMAT = "bcnet_fast_training"  # metadata key of a training state
_FLOATS = ("F32", "F16", "BF16", "F64")  # dtypes of weights
_SMALL = 1 << 14  # elements; to open a file takes longer than to copy them


def save_checkpoint(path: str | os.PathLike, state: Mapping[str, Tensor], config: Config | SecondStageConfig) -> None:
    """Write weights and configuration, atomically. InputError: the file cannot be written."""
    _save(path, state, FORMAT, config.to_dict())


def save_training_state(path: str | os.PathLike, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
    """Write the state of a training, like `save_checkpoint`; `facts` is stored as JSON."""
    _save(path, tensors, TRAINING_FORMAT, facts)


def read_training_state(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_training_state` wrote. InputError: the file is missing, damaged or of another kind."""
    with _opened(path) as file:
        facts = (file.metadata() or {}).get(TRAINING_FORMAT)
        if facts is None:
            raise InputError(f"{path} is not a training state")
        # Cloned, because the file is replaced while the tensors are in use.
        return {name: file.get_tensor(name).clone() for name in file.keys()}, parse_json(facts, path)


def _save(path: str | os.PathLike, state: Mapping[str, Tensor], kind: str, facts: dict[str, Any]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # A single entry: safetensors writes several in random order, but equal weights should give equal files.
    metadata = {kind: json.dumps(facts)}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise InputError(f"{path} cannot be written: {error}") from error


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Any]:
    """Open a safetensors file. InputError: it is missing or damaged."""
    local, path = require_file(path, EXPECTED), place_of(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path} has suffix {path.suffix!r}, expected {EXPECTED}; see python -m bcnet_fast.convert")
    with readable(path, EXPECTED):
        try:
            with safe_open(local, framework="pt") as file:
                require_possible_count(len(file.keys()), path)
                yield file
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: damaged ({error}), expected {EXPECTED}") from error


def read_config(path: str | os.PathLike) -> Config:
    """The configuration of a checkpoint of a proposal network.

    InputError names the file when it is missing, damaged, or something else.
    """
    path = place_of(path)
    config = read_any_config(path)
    if isinstance(config, SecondStageConfig):
        raise InputError(
            f"{path} has weights of {config.model.name}, which scores proposals of another network; "
            f"expected a network that makes proposals ({', '.join(SYSTEMS)})"
        )
    return config


def read_any_config(path: str | os.PathLike) -> Config | SecondStageConfig:
    """The configuration of a checkpoint of any network. InputError as `read_config` raises it."""
    path = place_of(path)
    with _opened(path) as file:
        metadata, names = file.metadata() or {}, list(file.keys())
    if TRAINING_FORMAT in metadata:
        raise InputError(f"{path} is the state of a training, expected {EXPECTED}, such as best.safetensors beside it")
    if FORMAT not in metadata:
        project = project_of(names)
        looks = f"; the weights look like those of {project}" if project else ""
        raise InputError(f"{path} has no configuration in its metadata, expected {EXPECTED}{looks}")
    values = parse_json(metadata[FORMAT], path, "a configuration in the metadata")
    kind = SecondStageConfig if is_second_stage(values) else Config
    return kind.from_dict(values, str(path))


class StoredWeights(Mapping[str, Tensor]):
    """Weights of a checkpoint, owned by the caller: the small ones read at once, each other one on access.

    A network can be prepared from it without ever holding the whole file in memory.
    """

    def __init__(self, path: str | os.PathLike, network: nn.Module) -> None:
        """InputError: lists every missing, unknown and misshaped key. Only the shapes of `network` matter."""
        self.path = path = place_of(path)
        self._small: dict[str, Tensor] = {}
        with _opened(path) as file:
            stored = {name: file.get_slice(name) for name in file.keys()}
            self._shapes = {name: list(part.get_shape()) for name, part in stored.items()}
            kinds = {name: part.get_dtype() for name, part in stored.items()}
        problems = mismatches(_shapes_of(network), self._shapes)
        wrong = [
            f"{name} ({kind}, expected {' or '.join(_FLOATS)})" for name, kind in kinds.items() if kind not in _FLOATS
        ]
        if wrong:
            raise InputError(unfitting(path, problems | {"not floating point": wrong}))
        if problems:
            with _opened(path) as file:
                problems["not finite"] = [name for name in self._shapes if not is_finite(file.get_tensor(name))]
            raise InputError(unfitting(path, problems))
        small = [name for name, shape in self._shapes.items() if math.prod(shape) <= _SMALL]
        with _opened(path) as file:
            self._small = {name: file.get_tensor(name).clone() for name in small}

    def __getitem__(self, name: str) -> Tensor:
        """Read a weight. InputError: it is not finite."""
        if name not in self._shapes:
            raise KeyError(name)
        return self._checked(name)

    def rows(self, name: str, count: int) -> Iterator[Tensor]:
        """Yield a weight in parts of at most `count` rows, so that it is never in memory as a whole."""
        for begin in range(0, self._shapes[name][0], count):
            yield self._checked(name, slice(begin, begin + count))

    def _checked(self, name: str, rows: slice | None = None) -> Tensor:
        part = self._read(name, rows)
        if not is_finite(part):
            raise InputError(unfitting(self.path, {"not finite": [name]}))
        return part

    def _read(self, name: str, rows: slice | None = None) -> Tensor:
        if name in self._small:
            part = self._small[name].clone()
            return part if rows is None else part[rows]
        # Opened for each read: touched mmap pages stay resident until the last tensor of the mapping is freed.
        with _opened(self.path) as file:
            return file.get_tensor(name) if rows is None else file.get_slice(name)[rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def rows_of(state: Mapping[str, Tensor], name: str, count: int) -> Iterable[Tensor]:
    """Iterate over a weight in parts of at most `count` rows."""
    return state.rows(name, count) if isinstance(state, StoredWeights) else state[name].split(count)


def check_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raise InputError if keys are missing, unknown or misshaped, or a weight is not finite; it lists them all."""
    problems = mismatches(_shapes_of(network), {name: list(tensor.shape) for name, tensor in state.items()})
    problems["not finite"] = [name for name, tensor in state.items() if not is_finite(tensor)]
    if any(problems.values()):
        raise InputError(unfitting(source, problems))


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite."""
    # aminmax propagates NaN and, unlike isfinite, allocates no tensor of the same size.
    return tensor.numel() == 0 or all(math.isfinite(bound.item()) for bound in tensor.aminmax())


def _shapes_of(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def mismatches(expected: Mapping[str, list[int]], shapes: Mapping[str, list[int]]) -> dict[str, list[str]]:
    """Keys that do not fit, by kind of problem."""
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "unknown": [name for name in shapes if name not in expected],
        "misshaped": [
            f"{name} (has {shape}, expected {expected[name]})"
            for name, shape in shapes.items()
            if name in expected and expected[name] != shape
        ],
    }
    return {kind: names for kind, names in problems.items() if names}


def unfitting(source: str | os.PathLike, problems: Mapping[str, list[str]]) -> str:
    """One line that lists the keys of `mismatches`."""
    listed = [f"{title}: {', '.join(names)}" for title, names in problems.items() if names]
    return f"{source}: weights do not fit the network; {'; '.join(listed)}"
