"""Networks of the second stage, which score proposals, prepared for inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config import MUSESConfig, PGCNConfig, SecondStageConfig
from ..errors import BackendError, InputError
from ..geometry.proposal_graph import SLOTS, TREE
from ..networks.engine.muses import MUSESEngine
from ..networks.engine.native_muses import NativeMUSES
from ..networks.engine.native_pgcn import NativePGCN
from ..networks.engine.pgcn import PGCNEngine
from ..networks.engine.rewrites import IN_CPP, REWRITES, Rewrites
from ..networks.outputs import SecondStageOutput
from ..networks.reference import SECOND_STAGE
from ..networks.reference.pgcn import whole_trees
from ..ops import native
from ..ops.precision import gpu_products
from ..text import alternatives

ENGINES = {"pgcn": PGCNEngine, "muses": MUSESEngine}
PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64, "tf32": torch.float32}
BACKENDS = ("auto", "native", "reference")
ROOTS_AT_A_TIME = 32  # bounds the memory of the reference P-GCN's trees


class SecondStageReference:
    """The network as plain PyTorch, with the call of an engine."""

    def __init__(
        self, config: PGCNConfig | MUSESConfig, state: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.device, self.dtype = device, dtype
        network = SECOND_STAGE[config.name](config)
        network.load_state_dict(dict(state))
        self.network = network.to(device, dtype).eval()

    def __call__(self, *inputs: Tensor) -> SecondStageOutput:
        """Inputs of the network, the last of them integers."""
        *features, index = inputs
        features, index = [x.to(self.device, self.dtype) for x in features], index.to(self.device)
        if isinstance(self.network.config, MUSESConfig):
            return self.network(*features, index)
        trees = whole_trees(index) if index.shape[1] == SLOTS else index
        parts = [vars(self.network(*features, part)) for part in trees.split(ROOTS_AT_A_TIME)]
        return SecondStageOutput(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


SecondStageRun = PGCNEngine | MUSESEngine | NativePGCN | NativeMUSES | SecondStageReference


class SecondStageModel:
    """A second-stage network prepared for inference, with its configuration, device, precision and backend."""

    def __init__(
        self,
        run: SecondStageRun,
        config: SecondStageConfig,
        device: torch.device,
        precision: str,
        backend: str,
    ) -> None:
        self.run, self.config, self.device, self.precision, self.backend = run, config, device, precision, backend

    def __repr__(self) -> str:
        name, preset = self.config.model.name, self.config.preset
        return f"SecondStageModel({name}, preset {preset}, {self.device}, {self.precision})"

    @torch.inference_mode()
    def __call__(self, *inputs: Any) -> SecondStageOutput:
        """Score the proposals of one video: tensors or arrays of any float dtype and device -> `SecondStageOutput`.

        P-GCN: activity features [N, C], completeness features [N, 3 C], and neighbours, int64 [R, 21] for scores of R
            proposals, each with a tree of `geometry.proposal_graph.draw_trees`; or [N, 10], `neighbour_slots`, all of
            which then count alike, so that nothing is random.
        MUSES-Net: features [C, T], and rois [N, 2], first and last frame of the region of each proposal.

        Scores are on the model's device, float32 (fp64: float64). ValueError: an input of another shape, or neighbours
        outside of the N proposals.
        """
        model, tensors = self.config.model, [torch.as_tensor(x) for x in inputs]
        tensors = _pgcn_inputs(model, tensors) if isinstance(model, PGCNConfig) else _muses_inputs(model, tensors)
        with gpu_products(tf32=self.precision == "tf32"):
            return self.run(*tensors)

    @property
    def network(self) -> nn.Module:
        """The network in plain PyTorch. AttributeError: only a model with backend="reference" has it."""
        if isinstance(self.run, SecondStageReference):
            return self.run.network
        raise AttributeError('the engine is no nn.Module; load the model with backend="reference" for one')


def second_stage_model(
    config: SecondStageConfig,
    state: Mapping[str, Tensor],
    device: torch.device,
    precision: str,
    backend: str,
    rewrites: Rewrites,
) -> SecondStageModel:
    """Prepare a network. InputError, BackendError: a precision or backend that it does not have."""
    model = config.model
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}, expected {alternatives(PRECISIONS)} for {model.name}")
    if backend not in BACKENDS:
        raise BackendError(f"backend is {backend!r}, expected {alternatives(BACKENDS)} for {model.name}")
    run = _run(model, state, device, precision, backend, rewrites)
    return SecondStageModel(run, config, device, precision, backend)


def _run(
    model: PGCNConfig | MUSESConfig,
    state: Mapping[str, Tensor],
    device: torch.device,
    precision: str,
    backend: str,
    rewrites: Rewrites,
) -> SecondStageRun:
    if backend == "reference":
        return SecondStageReference(model, state, device, PRECISIONS[precision])
    # C++ always applies all rewrites outside of IN_CPP; with one of them switched off, PyTorch runs the network.
    complete = all(getattr(rewrites, name) for name in REWRITES[model.name] if name not in IN_CPP)
    if device.type == "cpu" and native.module is not None and complete:
        if isinstance(model, PGCNConfig):
            return NativePGCN(model, state, precision, rewrites.strassen)
        return NativeMUSES(model, state, precision, rewrites.strassen, rewrites.short_filters)
    if backend == "native":
        missing = native.reason or "it needs a CPU and all rewrites"
        raise BackendError(f"backend 'native' cannot be used: {missing}")
    return ENGINES[model.name](model, state, device, PRECISIONS[precision], rewrites)


def _pgcn_inputs(config: PGCNConfig, inputs: list[Tensor]) -> list[Tensor]:
    _require_count(inputs, "activity features, completeness features and neighbours")
    activity, completeness, neighbours = inputs
    proposals, width = len(activity) if activity.ndim else 0, config.feature_dim
    _require_shape("activity", activity, f"[N, {width}]", (None, width))
    _require_shape("completeness", completeness, f"[{proposals}, {3 * width}]", (proposals, 3 * width))
    _require_whole("neighbours", neighbours)
    columns, rows = neighbours.shape[1:], len(neighbours) if neighbours.ndim else 0
    if columns not in ((TREE,), (SLOTS,)) or (columns == (SLOTS,) and rows != proposals):
        expected = f"[R, {TREE}] or [{proposals}, {SLOTS}]"
        raise ValueError(f"neighbours has shape {list(neighbours.shape)}, expected {expected}")
    if neighbours.numel() and not (0 <= neighbours.min() and neighbours.max() < proposals):
        found = f"{neighbours.min()} to {neighbours.max()}"
        raise ValueError(f"neighbours has values {found}, expected 0 to {proposals - 1}")
    return [activity, completeness, neighbours.long()]


def _muses_inputs(config: MUSESConfig, inputs: list[Tensor]) -> list[Tensor]:
    _require_count(inputs, "features and rois")
    features, rois = inputs
    width = config.feature_dim
    _require_shape("features", features, f"[{width}, T], T >= 1", (width, None))
    if not features.shape[1]:
        raise ValueError(f"features has shape {list(features.shape)}, expected [{width}, T], T >= 1")
    _require_shape("rois", rois, "[N, 2]", (None, 2))
    _require_whole("rois", rois)
    return [features, rois.long()]


def _require_count(inputs: list[Tensor], names: str) -> None:
    if len(inputs) != len(names.replace(" and ", ", ").split(", ")):
        raise ValueError(f"inputs has length {len(inputs)}, expected {names}")


def _require_shape(name: str, tensor: Tensor, expected: str, sizes: tuple[int | None, ...]) -> None:
    fits = tensor.ndim == len(sizes) and all(
        size in (None, found) for size, found in zip(sizes, tensor.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {expected}")


def _require_whole(name: str, tensor: Tensor) -> None:
    """Integers, or floats without a fraction."""
    if tensor.is_floating_point() and not torch.equal(tensor, tensor.trunc()):
        raise ValueError(f"{name} has numbers with a fraction, expected whole ones")
