"""`bcnet_fast.load`: from a checkpoint file or a preset's name to a network ready for inference."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Config, SecondStageConfig
from ..errors import BackendError, InputError
from ..networks.engine.engine import Engine
from ..networks.engine.rewrites import ALL_REWRITES, Rewrites
from ..networks.outputs import Output
from ..networks.reference import NETWORKS, SECOND_STAGE
from ..networks.reference.layers import shapes_only
from ..ops import native, use_backend
from ..ops.backends import BACKENDS
from ..ops.devices import resolve_device
from ..ops.precision import gpu_products
from ..presets import PRESET_NAMES, PRESETS, SECOND_STAGE_PRESETS
from ..storage.address import Address, place_of
from ..storage.checkpoint import StoredWeights, read_any_config
from ..storage.files import readable
from ..text import alternatives, did_you_mean
from ..threads import require_usable
from .second_stage_model import second_stage_model

DEMO = "demo"  # name of the bundled checkpoint
PRECISIONS = ("fp32", "fp64", "tf32", "bf16", "fp16", "int8")


class Reference:
    """The network as plain PyTorch, with the call of `Engine`."""

    def __init__(self, config: Config, state: Mapping[str, Tensor], device: torch.device, precision: str) -> None:
        self.device, self.dtype = device, torch.float64 if precision == "fp64" else torch.float32
        network = NETWORKS[config.model.name](config.model)
        network.load_state_dict(dict(state))
        self.network = network.to(device, self.dtype).eval()

    @torch.inference_mode()
    def __call__(self, features: Tensor) -> Output:
        features = features.to(self.device, self.dtype)
        # Like the engine: on a CPU, windows one by one have the same bits in any batch.
        parts = features.split(1) if self.device.type == "cpu" and len(features) else (features,)
        with gpu_products():
            return Output.cat([self.network(part) for part in parts])


class Model:
    """A network prepared for inference, with everything that belongs to it: configuration, device, precision.

    `run` is the engine, or the reference where backend is "reference"; `backend` is also that of the operators which
    turn scores into proposals.
    """

    def __init__(
        self, run: Engine | Reference, config: Config, device: torch.device, precision: str, backend: str
    ) -> None:
        self.run, self.config, self.device, self.precision, self.backend = run, config, device, precision, backend

    def __repr__(self) -> str:
        return f"Model({self.config.model.name}, preset {self.config.preset}, {self.device}, {self.precision})"

    def __call__(self, features: Tensor) -> Output:
        """features [B, C, T] of any float dtype and device -> scores on the model's device, float32 (fp64: float64).

        ValueError: another shape. BackendError: in a process that was forked after PyTorch had computed with threads.
        Calls from several threads wait for each other.
        """
        self._check(features)
        with use_backend(self.backend):
            return self.run(features)

    @property
    def skips_anchors(self) -> bool:
        """Whether BCNet's anchors can be computed in part: `boundaries` first, then `anchors` for those that matter."""
        return isinstance(self.run, Engine) and self.run.skips_anchors

    def boundaries(self, features: Tensor) -> Output:
        """The first step: boundary probabilities of features [B, C, T], B >= 1. Requires: `skips_anchors`."""
        self._check(features)
        with use_backend(self.backend):
            return self._engine().boundaries(features)

    def anchors(self, features: Tensor, boundaries: Output, needed: Tensor) -> Output:
        """The second step: all scores, where anchors outside of needed, bool [B, P], have the score 0.

        The others have the bits that a call of the model gives them.
        """
        with use_backend(self.backend):
            return self._engine().anchors(features, boundaries, needed)

    @property
    def network(self) -> nn.Module:
        """The network in plain PyTorch. AttributeError: only a model with backend="reference" has it."""
        if isinstance(self.run, Reference):
            return self.run.network
        raise AttributeError('the engine is no nn.Module; load the model with backend="reference" for one')

    def propose(
        self,
        features: Any,
        *,
        fps: float | Sequence[float] | None = None,
        stride: float | Sequence[float] | None = None,
        offset: float | Sequence[float] | None = None,
        duration: float | Sequence[float] | None = None,
        every: int | None = None,
        protocol: str = "default",
        batch_size: int = 8,
    ) -> Any:
        """Proposals of one or many videos in seconds, best first: windows, network, suppression.

        A trained checkpoint stores frame rate and stride of its training, which are then the defaults. A single value
        applies to all videos; a sequence has one for each.

        Args:
            features: real numbers of any dtype, of any length, [T, C] or [C, T] by the length C = feature_dim; also a
                list of such arrays, or a dictionary {name: array}.
            fps: video frames per second.
            stride: video frames between consecutive rows.
            offset: video frame at which the first row starts; 0 unless the training had another.
            duration: seconds. Required for a network for rescaled videos unless fps and stride are known.
            every: use every N-th row; as in the training, or all.
            protocol: "default", or "release" for the rules of the public code.
            batch_size: windows per batch.

        Returns:
            VideoProposals; for a list a list, for a dictionary a dictionary of the same keys.

        Raises:
            ValueError: features of another width or with NaN; unknown or contradictory times.
        """
        # Imported here, because loading a model must not import post-processing.
        from .propose import propose

        return propose(
            self,
            features,
            fps=fps,
            stride=stride,
            offset=offset,
            duration=duration,
            every=every,
            protocol=protocol,
            batch_size=batch_size,
        )

    def _engine(self) -> Engine:
        if not isinstance(self.run, Engine):
            raise TypeError("the reference computes all scores in one step, expected the engine")
        return self.run

    def _check(self, features: Tensor) -> None:
        require_usable()
        expected = (self.config.model.feature_dim, self.config.model.window)
        if features.ndim != 3 or features.shape[1:] != expected:
            raise ValueError(f"features has shape {list(features.shape)}, expected [B, {expected[0]}, {expected[1]}]")


def demo_checkpoint() -> Path:
    """The small BCNet that is shipped with the package, trained on synthetic videos."""
    return Path(str(resources.files("bcnet_fast") / "assets" / "demo.safetensors"))


def load(
    checkpoint_or_preset: str | os.PathLike | Config | SecondStageConfig,
    *,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    backend: str = "auto",
    model: str | None = None,
    rewrites: Rewrites = ALL_REWRITES,
    graph: bool = True,
) -> Model | Any:
    """Load a checkpoint (.safetensors), or make a new network with random weights from a preset's name or a Config.

    "demo" is the small network that is shipped with the package, trained on synthetic videos. A checkpoint of P-GCN or
    MUSES-Net gives a `SecondStageModel`, in fp32, fp64 or tf32 and with the backends "auto", "native" and
    "reference".

    Args:
        device: "auto", "cpu", "cuda" or a torch.device.
        precision: "fp32" and "fp64" are exact up to rounding. "int8", of BCNet on a CPU, rounds the weights and inputs
            of most products to 8 bits; attention and LayerNorm stay float32. "tf32", "bf16" and "fp16" are for GPUs:
            "fp32" never uses TF32 there, whatever PyTorch's own switches say. They keep the first layers of BCNet's
            frame level in float32.
        backend: "auto" takes the engine with the C++ kernels on a CPU, and with PyTorch and the package's operators
            otherwise; "native" and "triton" demand those kernels, "reference" is the network as plain PyTorch.
        model: "bcnet", "bmn", "gtad", "pgcn" or "muses": the system of the preset (None: BCNet), or the one that the
            checkpoint must be of.
        rewrites: the engine's rewrites, each of which can be switched off (docs/engine.md).
        graph: whether a GPU runs the network as CUDA graphs, one for each of a few batch sizes.

    Random weights follow torch.manual_seed. Warns where the precision is not faster than fp32 on this device.

    Raises:
        InputError: a missing, damaged or unfitting checkpoint, an absent device, an unknown precision or one that the
            device or backend does not have.
        BackendError: a backend that is unknown or cannot be used here.
    """
    if precision not in PRECISIONS:
        raise InputError(_unknown("precision", precision, PRECISIONS))
    if backend not in BACKENDS:
        raise BackendError(_unknown("backend", backend, BACKENDS))
    resolved = resolve_device(device)
    require_units(resolved, precision)
    by_native = _by_native_kernels(resolved, precision, backend)
    if not isinstance(checkpoint_or_preset, Config | SecondStageConfig):
        systems = {**PRESETS, **SECOND_STAGE_PRESETS}
        if model is not None and model not in systems:
            raise InputError(_unknown("model", model, systems))
        presets = systems[model or "bcnet"]
        checkpoint_or_preset = presets.get(str(checkpoint_or_preset), checkpoint_or_preset)
        if checkpoint_or_preset == DEMO:
            checkpoint_or_preset = demo_checkpoint()
    if isinstance(checkpoint_or_preset, Config | SecondStageConfig):
        config = checkpoint_or_preset
        state: Mapping[str, Tensor] = _network(config).state_dict()
    else:
        config, state = _stored(checkpoint_or_preset)
    if model is not None and model != config.model.name:
        raise InputError(f"model is {model!r}, expected {config.model.name!r}, the system of these weights")
    if isinstance(config, SecondStageConfig):
        return second_stage_model(config, state, resolved, precision, backend, rewrites)
    if precision == "int8" and config.model.name != "bcnet":
        others = alternatives(name for name in PRECISIONS if name != "int8")
        raise InputError(f"precision is 'int8', which only bcnet has, expected {others} for {config.model.name}")
    _warn_of_slow(resolved, precision)
    if backend == "reference":
        run: Engine | Reference = Reference(config, state, resolved, precision)
    else:
        with use_backend(backend):
            run = Engine(config.model, state, resolved, precision, native=by_native, rewrites=rewrites, graph=graph)
    return Model(run, config, resolved, precision, backend)


def _unknown(argument: str, value: object, known: Iterable[str]) -> str:
    known = list(known)
    return f"{argument} is {value!r:.80}, expected {alternatives(known)}{did_you_mean(str(value), known)}"


def require_units(device: torch.device, precision: str) -> None:
    """InputError for a precision that the device has no arithmetic units for."""
    if precision == "tf32" and device.type != "cuda":
        raise InputError(f"precision is 'tf32' on {device.type}, expected a CUDA device")
    if precision in ("tf32", "bf16") and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 0):
            name, found = torch.cuda.get_device_name(device), ".".join(map(str, capability))
            raise InputError(
                f"precision is {precision!r} on {name} of compute capability {found}, expected 8.0 or later; fp32 and "
                "fp16 run there"
            )


def _by_native_kernels(device: torch.device, precision: str, backend: str) -> bool:
    """Whether the engine runs on the C++ kernels. Raises if the requested backend or precision is unavailable."""
    exact = precision in ("fp32", "fp64")
    if backend == "reference" and not exact:
        raise InputError(f"precision is {precision!r}, expected fp32 or fp64 with backend 'reference'")
    possible = device.type == "cpu" and native.module is not None and backend in ("auto", "native")
    if backend == "native" and device.type == "cpu" and native.module is None:
        raise BackendError(f"backend 'native' cannot be used: {native.reason}")
    if precision == "int8" and not possible:
        if native.module is None:
            raise InputError(f"precision 'int8' cannot be used: {native.reason}")
        where = f"on {device.type} with backend {backend!r}"
        raise InputError(f"precision is 'int8' {where}, expected a CPU with backend auto or native")
    return possible and (exact or precision == "int8")


def _network(config: Config | SecondStageConfig) -> nn.Module:
    """The reference network of a configuration, with random weights."""
    if isinstance(config, SecondStageConfig):
        return SECOND_STAGE[config.model.name](config.model)
    return NETWORKS[config.model.name](config.model)


def _stored(path: str | os.PathLike) -> tuple[Config | SecondStageConfig, StoredWeights]:
    path = place_of(path)
    if not (isinstance(path, Address) or path.exists()):
        raise InputError(
            f"{path} is neither a file nor a preset, expected a checkpoint (.safetensors), {DEMO}, or one of "
            f"the presets {alternatives(PRESET_NAMES)}, each for the models {', '.join(PRESETS)}"
            f"{did_you_mean(str(path), (DEMO, *PRESET_NAMES))}"
        )
    config = read_any_config(path)
    with readable(path, "a network that can be built"), shapes_only():
        network = _network(config)
    return config, StoredWeights(path, network)


def _warn_of_slow(device: torch.device, precision: str) -> None:
    slow = None
    if device.type == "cpu" and precision in ("bf16", "fp16"):
        slow = "has no kernels of its own on a CPU; measured, it was slower than fp32 or hardly faster (docs/engine.md)"
    if precision == "int8" and not native.module.BYTE_PRODUCTS:
        slow = (
            "is slower than fp32 here: the processor has no instruction for products of bytes (AVX-512 VNNI), or the "
            "extension was built by a compiler other than GCC"
        )
    if slow:
        warnings.warn(f"precision {precision} {slow}", stacklevel=3)
