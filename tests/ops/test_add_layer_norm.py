"""add_layer_norm: every backend against PyTorch's own LayerNorm in float64.

On a machine with a GPU the Triton kernels run there; elsewhere in Triton's interpreter (see conftest.py).
"""

from __future__ import annotations

import csv
import itertools
import mmap
from functools import partial

import numpy as np
import pytest
import torch
from helpers.accuracy import BOUNDS, dtype, error
from helpers.backends import needs_triton
from helpers.paths import ROOT
from helpers.sweeps import on_backends, sweep

from bcnet_fast.errors import BackendError
from bcnet_fast.ops import add_layer_norm, native, reference, use_backend

FORWARD = torch.ops.bcnet_fast.add_layer_norm.default
BACKWARD = torch.ops.bcnet_fast.add_layer_norm_backward.default
# Widths around every block of the kernels and of the C++ code, BCNet's own, and one that takes several steps.
SHAPES = [
    (1, 7),
    (33, 5),
    (2, 17, 31),
    (9, 32),
    (5, 33),
    (3, 127),
    (2, 3, 5, 400),
    (7, 401),
    (4, 513),
    (3, 2048),
    (2, 4099),
    (1, 8192),
    (2, 16_411),
]

native_backend = pytest.param("native", marks=pytest.mark.skipif(native.module is None, reason=str(native.reason)))
with_triton = needs_triton("add_layer_norm")
triton = pytest.param("triton", marks=with_triton)


BACKENDS = ("reference", native_backend, triton)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def device(backend: str) -> str:
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


def inputs(shape, dtype=torch.float32, device="cpu"):
    """x, residual, and a gradient of the output."""
    return [torch.randn(shape).to(dtype).to(device) for _ in range(3)]


def results(function, x, residual, grad) -> list[torch.Tensor]:
    """The output and both gradients."""
    leaves = [t.detach().requires_grad_() for t in (x, residual)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def exact(x, residual, grad) -> list[torch.Tensor]:
    """The same from x + residual, rounded once, to the accumulation dtype, like the operator."""
    accumulation = reference.accumulation_dtype(x.dtype)
    z = (x.to(accumulation) + residual.to(accumulation)).double().requires_grad_()
    out = torch.nn.functional.layer_norm(z, z.shape[-1:])
    (grad_z,) = torch.autograd.grad(out, z, grad.double())
    return [out.detach(), grad_z, grad_z]


@on_backends(BACKENDS, "shape", [pytest.param(s, id="x".join(map(str, s))) for s in SHAPES], interpreted=8)
@pytest.mark.parametrize("dtype", [dtype(d) for d in BOUNDS])
def test_matches_float64(backend, device, poisoned, dtype, shape):
    if (backend, dtype) in (("native", torch.float16), ("native", torch.bfloat16), ("triton", torch.float64)):
        pytest.skip("no such kernel")
    given = inputs(shape, dtype, device)
    for result, expected in zip(results(add_layer_norm, *given), exact(*given), strict=True):
        assert result.dtype == dtype and result.shape == shape and result.is_contiguous()
        assert error(result, expected) < BOUNDS[dtype]


@pytest.mark.parametrize("columns", [7, 400, 8200])
def test_large_offsets_cost_no_digits(backend, device, columns):
    # Rows of 10,000 + noise. The bound is on the error beyond that of x + residual in float32, which is 1e-3.
    x, residual, grad = inputs((6, columns), device=device)
    x += torch.tensor([1e4, -1e4, 1e6, -1e6, 0.1, 0.0], device=device)[:, None]
    for result, expected in zip(results(add_layer_norm, x, residual, grad), exact(x, residual, grad), strict=True):
        assert all(error(r, e) < 1e-6 for r, e in zip(result, expected, strict=True))


@pytest.mark.parametrize("columns", [400, 8200])
def test_first_element_may_be_an_outlier(backend, device, columns):
    x, residual, grad = inputs((3, columns), device=device)
    x[:, 0] = 1e5
    got, expected = (f(x, residual, grad) for f in (partial(results, add_layer_norm), exact))
    # Only the other elements count: their squares vanish in a sum that holds the outlier's.
    assert all(error(r[:, 1:], e[:, 1:]) < 4e-6 for r, e in zip(got, expected, strict=True))


@pytest.mark.parametrize("columns", [1, 3, 400, 2048, 8200])
def test_rows_of_equal_elements_give_zeros(backend, device, poisoned, columns):
    x, residual, _ = (t[:, :1].expand(-1, columns) for t in inputs((5, 2), device=device))
    out, grad_x, _ = results(add_layer_norm, x * 1e3, residual, torch.ones(5, columns, device=device))
    assert not out.any() and not grad_x.any()


def test_epsilon_is_added_to_the_variance(backend, device):
    x = torch.tensor([[3.0, 1.0]], device=device)
    torch.testing.assert_close(add_layer_norm(x, torch.zeros_like(x), 3.0), x.new_tensor([[0.5, -0.5]]))


def test_bad_values_stay_in_their_row(backend, device):
    x, residual, grad = inputs((5, 67), device=device)
    expected = results(add_layer_norm, x, residual, grad)
    x[1, 3], residual[3, 0] = float("nan"), float("inf")
    for result, clean in zip(results(add_layer_norm, x, residual, grad), expected, strict=True):
        assert result[[1, 3]].isnan().all()
        assert torch.equal(result[[0, 2, 4]], clean[[0, 2, 4]])


def test_takes_any_strides(backend, device):
    x, residual, grad = inputs((6, 5, 48), device=device)
    residual = residual[:1].expand_as(x)
    grad = grad[..., :1, :].expand_as(x)
    plain = exact(x, residual, grad)
    strided = (
        x.mT.contiguous().mT,
        x.transpose(0, 1).contiguous().transpose(0, 1),
        x.repeat_interleave(2, dim=2)[..., ::2],
        torch.nn.functional.pad(x, (1, 2))[..., 1:-2],
    )
    for other in strided:
        assert not other.is_contiguous()
        got = results(add_layer_norm, other, residual, grad)
        assert all(error(result, expected) < 1e-6 for result, expected in zip(got, plain, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs 4 GiB of address space, of memory on a GPU")
@with_triton
def test_offsets_pass_32_bits():
    # Three rows 2^30 elements apart; the pages between them are never touched, so they take no memory.
    step = 2**30
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (2 * step + 16)), dtype=torch.float16)
    x, residual, grad = inputs((3, 16), torch.float16)
    expected = exact(x, residual, grad)
    far = memory.as_strided((3, 16), (step, 1)).copy_(x)
    with use_backend("triton"):
        got = results(add_layer_norm, far, residual, grad)
    assert all(error(r, e) < 1e-3 for r, e in zip(got, expected, strict=True))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 400)])
def test_no_rows_give_no_rows(backend, device, shape):
    got = results(add_layer_norm, *inputs(shape, device=device))
    assert all(result.shape == shape for result in got)


def test_repeats_to_the_bit(backend, device):
    given = inputs((19, 131), device=device)
    first, second = (results(add_layer_norm, *given) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.skipif(native.module is None, reason=str(native.reason))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 5, 400, 512, 513, 1024, 1025, 2047, 70_001])
def test_native_bits_do_not_depend_on_threads_and_instructions(rng, dtype, columns):
    rows = max(5, 100_000 // columns)
    x, residual, grad = rng.normal(3, 1, (3, rows, columns)).astype(dtype)

    def run(threads, instruction_set):
        out, rstd, grad_input = np.full_like(x, np.nan), np.full(rows, np.nan, dtype), np.full_like(x, np.nan)
        native.module.add_layer_norm(x, residual, 1e-5, out, rstd, threads, instruction_set)
        native.module.add_layer_norm_backward(grad, out, rstd, grad_input, threads, instruction_set)
        return out, rstd, grad_input

    expected = run(1, "baseline")
    for threads, instruction_set in itertools.product((1, 3), native.module.INSTRUCTION_SETS):
        for found, wanted in zip(run(threads, instruction_set), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.skipif(native.module is None, reason=str(native.reason))
def test_native_refuses_arrays_that_do_not_fit():
    x, rstd = np.zeros((3, 4), np.float32), np.zeros(3, np.float32)
    forward, backward = native.module.add_layer_norm, native.module.add_layer_norm_backward
    for bad in ((x, x[:2], 1e-5, x, rstd, 1), (x, x, 1e-5, x[:2], rstd, 1), (x, x, 1e-5, x, rstd[:2], 1)):
        with pytest.raises(ValueError, match="expected"):
            forward(*bad)
    for bad in ((x, x[:2], rstd, x, 1), (x, x, rstd[:2], x, 1), (x, x, rstd, x[:2], 1)):
        with pytest.raises(ValueError, match="expected"):
            backward(*bad)
    with pytest.raises(TypeError):
        forward(x.T, x.T, 1e-5, x, rstd, 1)


def test_gradients_agree_with_finite_differences(backend):
    if backend == "triton":
        pytest.skip("no float64 kernel")
    leaves = [t.requires_grad_() for t in inputs((2, 3, 7), torch.float64)[:2]]
    assert torch.autograd.gradcheck(lambda x, residual: add_layer_norm(x, residual, 0.1), leaves)


def test_inputs_share_a_gradient_without_harm(backend, device):
    x, residual, grad = (t.requires_grad_() for t in inputs((5, 33), device=device))
    add_layer_norm(x, residual).backward(grad.detach())
    before = residual.grad.clone()
    x.grad.zero_()  # as an optimizer does in place
    assert torch.equal(residual.grad, before)
    # Each input has another use, before and after; the sums must not run into each other.
    a, b = (t.detach().requires_grad_() for t in (x, residual))
    (add_layer_norm(2 * a, b) + a * 3 + b.sin()).backward(grad.detach())
    torch.testing.assert_close(a.grad, 2 * exact(2 * a, b, grad)[1].float() + 3 * grad)
    torch.testing.assert_close(b.grad, exact(2 * a, b, grad)[2].float() + b.cos() * grad)
    # Both are one tensor.
    c = x.detach().requires_grad_()
    add_layer_norm(c, c).backward(grad.detach())
    torch.testing.assert_close(c.grad, 2 * exact(c, c, grad)[1].float())


def test_one_input_alone_may_need_a_gradient(backend, device):
    x, residual, grad = inputs((5, 33), device=device)
    residual.requires_grad_()
    add_layer_norm(x, residual).backward(grad)
    assert error(residual.grad, exact(x, residual, grad)[2]) < 1e-6


def test_backward_keeps_the_output_and_a_number_per_row():
    kept = []
    x, residual, _ = (t.requires_grad_() for t in inputs((700, 400)))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        add_layer_norm(x, residual)
    assert kept == [(700, 400), (700,)]


@sweep("strided", [True, False], ids=["strided", "contiguous"])
def test_operators_pass_opcheck(strided):
    x, residual, grad = inputs((4, 3, 17))
    if strided:
        x, grad = (t.mT.contiguous().mT for t in (x, grad))
    torch.library.opcheck(FORWARD, (x.requires_grad_(), residual.requires_grad_(), 1e-5))
    torch.library.opcheck(BACKWARD, (grad, *FORWARD(x.detach(), residual.detach(), 1e-5)))


def test_compiles_to_one_graph_with_gradients():
    compiled = torch.compile(add_layer_norm, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 400), (700, 400)):  # below and above the size that is left to plain PyTorch without a compiler
        given = inputs(shape)
        for result, expected in zip(results(compiled, *given), exact(*given), strict=True):
            assert error(result, expected) < 1e-6


def test_exports_with_dynamic_rows():
    class Module(torch.nn.Module):
        def forward(self, x, residual):
            return add_layer_norm(x, residual)

    rows = torch.export.Dim("rows", min=2, max=100_000)
    program = torch.export.export(Module(), tuple(inputs((3, 400))[:2]), dynamic_shapes=({0: rows}, {0: rows}))
    assert any(node.target is FORWARD for node in program.graph.nodes)
    given = inputs((300, 400))
    assert error(program.module()(*given[:2]), exact(*given)[0]) < 1e-6


@pytest.mark.parametrize("dtype", [dtype(d) for d in BOUNDS])
@pytest.mark.parametrize("rows", [3, 300])
def test_choice_by_itself_is_the_same_function(dtype, rows):
    # PyTorch's own LayerNorm takes some of these, where the operator's call would cost more than the rows.
    given = inputs((rows, 400), dtype)
    for result, expected in zip(results(add_layer_norm, *given), exact(*given), strict=True):
        assert result.dtype == dtype and error(result, expected) < BOUNDS[dtype]


@pytest.mark.skipif(native.module is None, reason=str(native.reason))
@pytest.mark.parametrize(
    ("rows", "gradients", "built", "pytorch"),
    [
        *((3, False, True, True), (300, False, True, False), (300, True, True, True), (700, True, True, False)),
        (700, False, False, True),
    ],
)
def test_what_is_left_to_pytorch(monkeypatch, rows, gradients, built, pytorch):
    if not built:
        monkeypatch.setattr(native, "module", None)
    calls, layer_norm = [], torch.nn.functional.layer_norm
    monkeypatch.setattr(torch.nn.functional, "layer_norm", lambda *a, **k: calls.append(a) or layer_norm(*a, **k))
    x, residual, _ = inputs((rows, 400))
    add_layer_norm(x.requires_grad_(gradients), residual)
    assert bool(calls) == pytorch


@pytest.mark.parametrize("choice", ["auto", "reference", native_backend, triton])
@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"x": [1.0]}, TypeError, "x is list, expected a tensor"),
        ({"residual": None}, TypeError, "residual is NoneType, expected a tensor"),
        ({"x": torch.zeros(())}, ValueError, r"x has shape \[\], expected \[..., D\] with D >= 1"),
        ({"x": torch.zeros(2, 0)}, ValueError, r"x has shape \[2, 0\], expected .* D >= 1"),
        ({"x": torch.zeros(2, 3).int()}, TypeError, "x is int32, expected float16, bfloat16, float32 or float64"),
        ({"residual": torch.zeros(1, 3)}, ValueError, r"residual has shape \[1, 3\], expected \[2, 3\] as x has"),
        ({"residual": torch.zeros(2, 3).half()}, TypeError, "residual is float16, expected float32 as x is"),
        ({"residual": torch.zeros(2, 3).to("meta")}, ValueError, "residual is on meta, expected cpu as x is"),
        ({"eps": -1.0}, ValueError, "eps is -1.0, expected a finite number >= 0"),
        ({"eps": float("nan")}, ValueError, "eps is nan, expected a finite number >= 0"),
    ],
)
def test_bad_input_is_named(choice, changes, kind, message):
    with use_backend(choice), pytest.raises(kind, match=message):
        add_layer_norm(**{"x": torch.zeros(2, 3), "residual": torch.zeros(2, 3), **changes})


@pytest.mark.parametrize(
    ("choice", "dtype"),
    [pytest.param(*native_backend.values, torch.float16, marks=native_backend.marks), ("triton", torch.float64)],
)
def test_dtype_without_a_kernel_is_an_error_when_the_backend_was_asked_for(choice, dtype):
    with use_backend(choice), pytest.raises(BackendError, match=f"no {str(dtype).removeprefix('torch.')} kernel"):
        add_layer_norm(torch.zeros(2, 3, dtype=dtype), torch.zeros(2, 3, dtype=dtype))


def test_table_of_compiled_kernels_covers_every_variant():
    kernels = pytest.importorskip("bcnet_fast.kernels.add_layer_norm")
    with (ROOT / "bench" / "results" / "aot.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["kernel"].startswith("add_layer_norm")]
    assert all(r["spill_bytes"] == "0" and r["blocks_per_sm"] != "0" for r in rows)
    assert all(int(r["load128"]) > 0 for r in rows if int(r["size"]) % 16 == 0)
    compiled = {(r["kernel"], r["dtype"], r["tiles"], r["warps"], r["target"]) for r in rows}
    for config in kernels.CONFIGS.values():
        tiles = "x".join(str(v) for v in config.tiles.values())
        for name in ("forward", "backward"):
            for precision in ("fp16", "bf16", "fp32"):
                for target in config.targets:
                    key = f"add_layer_norm_{name}", precision, tiles, str(config.num_warps), f"sm_{target}"
                    assert key in compiled
