"""Alternatives for users: PyTorch's attention, FlexAttention, torch.compile and TensorRT on the same inputs."""

from __future__ import annotations

import contextlib
import io
import time
import warnings
from collections.abc import Callable
from typing import Any

import roofline
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bcnet_fast import ops
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.ops import reference
from bcnet_fast.storage.checkpoint import StoredWeights

from .context import Context, Skip
from .engine import exact_scores
from .measuring import captured, error, milliseconds, predicted_ms, synchronize
from .networks import checkpoint, config_of, features_of, load, relative_error

Pair = tuple[Tensor, Tensor]


def attention(context: Context) -> None:
    """Both streams of the difference attention, forward, by every way that PyTorch has."""
    precision = "fp32" if context.small else "fp16"
    lengths = (("frame", 1, 24),) if context.small else (("clip", 1, 1218), ("clip", 8, 1218), ("frame", 8, 256))
    for level, batch, length in lengths:
        shape = (batch, length, 2 if context.small else 8, 16 if context.small else 64)
        torch.manual_seed(0)
        exact_inputs = [
            torch.randn(shape, dtype=torch.float64, device=context.device).transpose(1, 2) for _ in range(4)
        ]
        given = [t.float() if context.small else t.half() for t in exact_inputs]
        exact = reference.difference_attention(*(t.double() for t in given))
        work = roofline.difference_attention(batch * shape[2], length, length, shape[3], shape[3])
        floor = predicted_ms(context.device, work, precision)
        ways: dict[str, Callable[..., Pair]] = {
            "bcnet_fast": ops.difference_attention,
            "two SDPA calls": _twice,
            "one SDPA call, values side by side": _side_by_side,
            "FlexAttention, values side by side": _flex(context),
        }
        for name, call in ways.items():
            title = f"{level}, B = {batch}, {name}"
            arguments = context, f"{level}, {batch} x {length}", precision, name, call, given, exact, floor
            context.attempt(title, _attend, *arguments, seconds=6, others=name != "bcnet_fast")


def _twice(query: Tensor, key: Tensor, value_action: Tensor, value_background: Tensor) -> Pair:
    attend = F.scaled_dot_product_attention
    return attend(query, key, value_action), attend(query, key, value_background)


def _side_by_side(query: Tensor, key: Tensor, value_action: Tensor, value_background: Tensor) -> Pair:
    size = query.shape[-1]
    values = torch.cat([value_action, value_background], -1)
    return F.scaled_dot_product_attention(query, key, values, scale=size**-0.5).split(size, -1)


def _flex(context: Context) -> Callable[..., Pair]:
    """FlexAttention, compiled; as it is on a CPU, where compiling it takes longer than all else."""

    def call(query: Tensor, key: Tensor, value_action: Tensor, value_background: Tensor) -> Pair:
        from torch.nn.attention.flex_attention import flex_attention

        if "function" not in prepared:
            prepared["function"] = flex_attention if context.small else torch.compile(flex_attention)
        values = torch.cat([value_action, value_background], -1)
        return prepared["function"](query, key, values).split(value_action.shape[-1], -1)

    prepared: dict[str, Any] = {}
    return call


def _attend(
    context: Context,
    shape: str,
    precision: str,
    name: str,
    call: Callable[..., Pair],
    given: list[Tensor],
    exact: Pair,
    floor: float | None,
) -> None:
    def run() -> Pair:
        with torch.no_grad():
            return call(*given)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FlexAttention says that it is not compiled
        started = time.perf_counter()
        found = run()
        synchronize(context.device)
        first_s = time.perf_counter() - started
        timed: Callable[[], Any] = run
        if context.device == "cuda":
            graph, _ = captured(run)
            timed = graph.replay
        taken = milliseconds(timed, context.device)
    context.row(
        **{"shape": shape, "precision": precision, "by": name, "error": error(found, exact), "first call s": first_s},
        **{
            "ms": taken,
            "floor ms, predicted": floor,
            "share of floor, %": None if floor is None else 100 * floor / taken,
        },
    )


def _preset(context: Context) -> str | None:
    return "tiny" if context.small else None


def _network(context: Context) -> nn.Module:
    """The reference network in the precision that rivals run in, whose results are the tuple of its scores."""
    config, path = config_of(context, "bcnet", _preset(context)), checkpoint(context, "bcnet", _preset(context))
    network = NETWORKS["bcnet"](config.model)
    network.load_state_dict(dict(StoredWeights(path, NETWORKS["bcnet"](config.model))))
    dtype = torch.float32 if context.small else torch.float16
    return _Scores(network.to(context.device, dtype).eval())


class _Scores(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(features).columns().values())


def compiled(context: Context) -> None:
    precision = "fp32" if context.small else "fp16"
    for batch in (1,) if context.small else (1, 8):
        context.attempt(f"bcnet_fast, B = {batch}", _ours, context, precision, batch)
    for batch in (1,) if context.small else (1, 8):
        context.attempt(f"torch.compile, B = {batch}", _compile, context, precision, batch, seconds=15, others=True)
    if context.small:
        context.note("On a CPU, torch.compile traces the network and generates no code, which would take a minute.")


def _ours(context: Context, precision: str, batch: int) -> None:
    model = load(context, "bcnet", precision, preset=_preset(context))
    given = features_of(config_of(context, "bcnet", _preset(context)), batch).to(context.device)
    started = time.perf_counter()
    found = model(given)
    synchronize(context.device)
    row = {"by": "bcnet_fast", "precision": precision, "B": batch, "first call s": time.perf_counter() - started}
    row |= {"ms": milliseconds(lambda: model(given), context.device)}
    context.row(**row, error=relative_error(found, exact_scores(context, "bcnet", given, _preset(context))))


def _compile(context: Context, precision: str, batch: int) -> None:
    network = _network(context)
    given = features_of(config_of(context, "bcnet", _preset(context)), batch).to(
        context.device, next(network.parameters()).dtype
    )
    options = {"backend": "aot_eager"} if context.small else {"mode": "max-autotune"}
    function = torch.compile(network, dynamic=False, **options)

    def run() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return function(given)

    started = time.perf_counter()
    run()
    synchronize(context.device)
    seconds = time.perf_counter() - started
    for _ in range(2):  # graphs are recorded in the calls after the first
        found = [scores.clone() for scores in run()]
    row = {
        "by": f"torch.compile, {next(iter(options.values()))}",
        "precision": precision,
        "B": batch,
        "first call s": seconds,
    }
    context.row(**row, ms=milliseconds(run, context.device), error=_error_of(context, found, given))


def _error_of(context: Context, found: list[Tensor], given: Tensor) -> float:
    exact = exact_scores(context, "bcnet", given, _preset(context))
    named = dict(zip(exact.columns(), found, strict=True))
    return relative_error(type(exact)(**dict.fromkeys(vars(exact)) | named), exact)


def tensorrt(context: Context) -> None:
    """The reference network in TensorRT, by torch_tensorrt or by ONNX, where either is installed."""
    if context.device == "cpu":
        raise Skip("TensorRT is for GPUs")
    makers = []
    with contextlib.suppress(ImportError):
        import torch_tensorrt  # noqa: F401

        makers.append(("torch_tensorrt", _by_torch_tensorrt))
    with contextlib.suppress(ImportError):
        import tensorrt  # noqa: F401

        makers.append(("ONNX and tensorrt", _by_onnx))
    if not makers:
        raise Skip("neither torch_tensorrt nor tensorrt is installed")
    for name, maker in makers:
        context.attempt(name, _tensorrt, context, name, maker, seconds=20, others=True)


def _tensorrt(context: Context, name: str, maker: Callable[..., Callable[[], list[Tensor]]]) -> None:
    network = _network(context)
    given = features_of(config_of(context, "bcnet", _preset(context)), 1).to(context.device, torch.float16)
    started = time.perf_counter()
    run = maker(network, given)
    found = run()
    synchronize(context.device)
    row = {"by": name, "precision": "fp16", "B": 1, "built in s": time.perf_counter() - started}
    context.row(**row, ms=milliseconds(run, context.device), error=_error_of(context, found, given))


def _by_torch_tensorrt(network: nn.Module, given: Tensor) -> Callable[[], list[Tensor]]:
    import torch_tensorrt

    built = torch_tensorrt.compile(network, ir="dynamo", inputs=[given], enabled_precisions={torch.float16})
    return lambda: list(built(given))


def _by_onnx(network: nn.Module, given: Tensor) -> Callable[[], list[Tensor]]:
    import tensorrt as trt

    with torch.inference_mode():
        shapes = [tuple(scores.shape) for scores in network(given)]
    names = [f"score{number}" for number in range(len(shapes))]
    file = io.BytesIO()
    torch.onnx.export(network, (given,), file, input_names=["features"], output_names=names, dynamo=False)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # Types are those of the exported network, which is in half precision.
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, logger)
    if not parser.parse(file.getvalue()):
        raise RuntimeError(f"TensorRT cannot read the network: {parser.get_error(0)}")
    plan = builder.build_serialized_network(definition, builder.create_builder_config())
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    execution = engine.create_execution_context()
    outputs = [torch.empty(shape, dtype=torch.float16, device=given.device) for shape in shapes]
    for name, tensor in zip(["features", *names], [given, *outputs], strict=True):
        execution.set_tensor_address(name, tensor.data_ptr())

    def run() -> list[Tensor]:
        execution.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        return outputs

    run.engine = engine  # which the execution needs alive
    return run
