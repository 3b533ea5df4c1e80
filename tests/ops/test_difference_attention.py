"""difference_attention: the Triton kernels and the CPU operator against the reference in float64.

On a machine with a GPU the kernels run there; elsewhere in Triton's interpreter (see conftest.py).
"""

from __future__ import annotations

import csv
import itertools
import mmap

import pytest
import torch
from helpers.accuracy import BOUNDS, dtype, error
from helpers.backends import needs_triton
from helpers.paths import ROOT
from helpers.sweeps import on_backends, sweep

from bcnet_fast.errors import BackendError
from bcnet_fast.ops import difference_attention, reference
from bcnet_fast.ops.backends import use_backend

TRITON = needs_triton("difference_attention")

FORWARD = torch.ops.bcnet_fast.difference_attention.default
BACKWARD = torch.ops.bcnet_fast.difference_attention_backward.default
SHAPES = {
    "odd-heads": (1, 2, 33, 17, 40, 23),
    "tiny-heads": (1, 1, 7, 9, 3, 1),
    "largest-heads": (1, 1, 33, 33, 128, 128),
    "whole-blocks": (1, 1, 128, 64, 64, 64),
    "ragged": (1, 2, 131, 67, 64, 64),
    "one-query": (2, 1, 1, 65, 64, 64),
    "wide-values": (2, 1, 5, 63, 16, 48),
}


def shape(name: str):
    return pytest.param(SHAPES[name], id=name)


BACKENDS = ("reference", "native", pytest.param("triton", marks=TRITON))


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    return request.param


@pytest.fixture
def device(backend: str) -> str:
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


def inputs(size, dtype=torch.float32, device="cpu"):
    """query, key, both values, and gradients of both outputs."""
    b, h, tq, tk, d, dv = size
    shapes = ((tq, d), (tk, d), (tk, dv), (tk, dv), (tq, dv), (tq, dv))
    tensors = [torch.randn(b, h, *s).to(dtype).to(device) for s in shapes]
    return tensors[:4], tensors[4:]


def results(function, tensors, grads, scale=None) -> list[torch.Tensor]:
    """Both outputs and the four gradients."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    outputs = function(*leaves, scale)
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, grads)]


def exact(tensors, grads, scale=None) -> list[torch.Tensor]:
    return results(reference.difference_attention, *([t.double() for t in ts] for ts in (tensors, grads)), scale)


@on_backends(BACKENDS, "size", [shape(n) for n in SHAPES], interpreted=4)
@pytest.mark.parametrize("dtype", [dtype(d) for d in (torch.float32, torch.float16, torch.bfloat16)])
def test_matches_float64(backend, device, poisoned, dtype, size):
    if backend == "triton" and device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("tl.dot on bfloat16 is wrong in Triton's interpreter")
    tensors, grads = inputs(size, dtype, device)
    with use_backend(backend):
        got = results(difference_attention, tensors, grads)
    for result, expected in zip(got, exact(tensors, grads), strict=True):
        assert result.dtype == dtype and result.shape == expected.shape
        assert error(result, expected) < BOUNDS[dtype]


@TRITON
def test_without_tensor_cores_products_are_of_float32_copies(monkeypatch, poisoned):
    # Products of bfloat16 tiles themselves are wrong in Triton's interpreter.
    from bcnet_fast.kernels import difference_attention as kernels

    monkeypatch.setattr(kernels, "target_of", lambda device: 75)
    tensors, grads = inputs(SHAPES["odd-heads"], torch.bfloat16, "cuda" if torch.cuda.is_available() else "cpu")
    with use_backend("triton"):
        got = results(difference_attention, tensors, grads)
    for result, expected in zip(got, exact(tensors, grads), strict=True):
        assert error(result, expected) < BOUNDS[torch.bfloat16]


@pytest.mark.parametrize("dtype", [dtype(torch.float32), dtype(torch.float16)])
@on_backends(BACKENDS, "offset", [10_000, -10_000])
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2", "ignore:invalid value encountered in matmul")
def test_large_logits_lose_no_more_than_their_own_rounding(backend, device, poisoned, dtype, offset):
    # Every logit is `offset` plus a small number. A naive exp overflows or vanishes; the zero keys that fill the last
    # block would win over -10,000. A float32 logit of 10,000 is known to 5e-4, hence also its exponential.
    tensors, grads = inputs((1, 2, 33, 70, 16, 16), dtype, device)
    tensors[0][..., 0], tensors[1][..., 0] = 100, offset / 100
    with use_backend(backend):
        got = results(difference_attention, tensors, grads, 1.0)
    expected = exact(tensors, grads, 1.0)
    # The gradient along the offset is zero, as a difference of large equal sums: no relative error can be asked of it.
    got[2], expected[2] = got[2][..., 1:], expected[2][..., 1:]
    assert all(error(r, e) < BOUNDS[dtype] + 2e-3 for r, e in zip(got, expected, strict=True))


def test_saturated_map_picks_one_value(backend, device, poisoned):
    # Logits of 10,000 for each query's own key, -10,000 for the next key, 0 for the others.
    (_, _, *values), _ = inputs((1, 1, 70, 70, 70, 32), device=device)
    one = torch.eye(70, device=device)[None, None] * 100
    with use_backend(backend):
        outputs = difference_attention(one, one - one.roll(1, 2), *values, 1.0)
    assert all(torch.equal(out, value) for out, value in zip(outputs, values, strict=True))


@on_backends(BACKENDS, "scale", [-0.7, 0.0, 1e-3])
def test_any_scale(backend, device, poisoned, scale):
    tensors, grads = inputs((1, 2, 17, 21, 16, 24), device=device)
    with use_backend(backend):
        got = results(difference_attention, tensors, grads, scale)
    for result, expected in zip(got, exact(tensors, grads, scale), strict=True):
        assert torch.allclose(result.double(), expected, rtol=1e-4, atol=1e-5)


def test_equal_keys_give_the_mean(backend, device, poisoned):
    (query, key, *values), _ = inputs((1, 2, 9, 70, 16, 16), device=device)
    with use_backend(backend):
        outputs = difference_attention(query, key[:, :, :1].expand_as(key), *values)
    for out, value in zip(outputs, values, strict=True):
        torch.testing.assert_close(out, value.mean(2, keepdim=True).expand_as(out))


@pytest.mark.parametrize("bits", [0x7FC00001, 0x7F800001, -1])
def test_any_nan_stays_one(backend, device, poisoned, bits):
    """Whatever its lowest bits are; -1 is memory filled with ones."""
    tensors, _ = inputs((1, 2, 9, 11, 16, 16), device=device)
    tensors[1][0, 1, 3, 5] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    with use_backend(backend):
        outputs = difference_attention(*tensors)
    for out in outputs:
        assert out[:, 1].isnan().all() and out[:, 0].isfinite().all()


def test_single_key_passes_its_values_on(backend, device, poisoned):
    tensors, grads = inputs((2, 1, 5, 1, 16, 24), device=device)
    with use_backend(backend):
        out_a, out_b, grad_q, grad_k, grad_a, _ = results(difference_attention, tensors, grads)
    assert torch.equal(out_a, tensors[2].expand_as(out_a)) and torch.equal(out_b, tensors[3].expand_as(out_b))
    # The map is constant: dQ and dK are only the rounding of sums of 2 x 24 products.
    assert grad_q.abs().max() < 1e-4 and grad_k.abs().max() < 1e-4
    torch.testing.assert_close(grad_a, grads[0].sum(2, keepdim=True))


def test_takes_any_strides(backend, device):
    tensors, grads = inputs((2, 2, 13, 19, 16, 24), device=device)
    tensors[2] = tensors[2][:1, :, :1].expand_as(tensors[2])
    grads[1] = torch.ones((), device=device).expand_as(grads[1])
    strided = [
        tensors[0].transpose(1, 2).contiguous().transpose(1, 2),
        tensors[1].mT.contiguous().mT,
        tensors[2],
        tensors[3].repeat_interleave(2, dim=2)[:, :, ::2],
    ]
    assert not any(t.is_contiguous() for t in strided)
    with use_backend(backend):
        got = results(difference_attention, strided, grads)
        plain = results(difference_attention, [t.contiguous() for t in tensors], [g.contiguous() for g in grads])
    for result, expected in zip(got, plain, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@TRITON
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs 4 GiB of address space, of memory on a GPU")
def test_offsets_pass_32_bits():
    # Three keys 2^30 elements apart; the pages between them are never touched, so they take no memory.
    step = 2**30
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (2 * step + 16)), dtype=torch.float16)
    tensors, grads = inputs((1, 1, 2, 3, 16, 16), torch.float16)
    expected = exact(tensors, grads)
    tensors[1] = memory.as_strided((1, 1, 3, 16), (0, 0, step, 1)).copy_(tensors[1])
    with use_backend("triton"):
        got = results(difference_attention, tensors, grads)
    assert all(error(r, e) < 1e-3 for r, e in zip(got, expected, strict=True))


def test_repeats_to_the_bit(backend, device):
    tensors, grads = inputs((1, 2, 35, 67, 16, 16), device=device)
    with use_backend(backend):
        first, second = (results(difference_attention, tensors, grads) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_unused_output_needs_no_gradient(backend, device):
    tensors, grads = inputs((1, 1, 9, 11, 16, 16), device=device)
    leaves = [t.requires_grad_() for t in tensors]
    with use_backend(backend):
        got = torch.autograd.grad(difference_attention(*leaves)[0], leaves, grads[0])
    expected = exact(tensors, [grads[0], torch.zeros_like(grads[1])])[2:]
    assert not got[3].any()
    assert all(error(g, e) < 1e-6 for g, e in zip(got[:3], expected[:3], strict=True))


def test_heads_join_without_a_copy(backend, device):
    tensors, _ = inputs((2, 3, 5, 7, 16, 24), device=device)
    with use_backend(backend):
        out, _ = difference_attention(*tensors)
    assert out.transpose(1, 2).flatten(2).data_ptr() == out.data_ptr()


@TRITON
@sweep("target", [90, 75, 80])
@pytest.mark.parametrize("dtype", [dtype(torch.float32), dtype(torch.float16)])
@pytest.mark.skipif(torch.cuda.is_available(), reason="variants for other targets than the GPU at hand")
def test_variants_of_other_targets_agree(monkeypatch, target, dtype):
    from bcnet_fast.kernels import difference_attention as kernels

    monkeypatch.setattr(kernels, "target_of", lambda device: target)
    tensors, grads = inputs((1, 1, 70, 67, 24, 16), dtype)
    with use_backend("triton"):
        got = results(difference_attention, tensors, grads)
    assert all(error(r, e) < BOUNDS[dtype] for r, e in zip(got, exact(tensors, grads), strict=True))


def test_gradients_agree_with_finite_differences():
    tensors, _ = inputs((1, 2, 3, 5, 4, 3), torch.float64)
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: difference_attention(*t, 0.7), leaves)


@sweep("strided", [True, False], ids=["strided", "contiguous"])
def test_operators_pass_opcheck(strided):
    tensors, grads = inputs((2, 2, 5, 7, 16, 8))
    if strided:
        tensors = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    torch.library.opcheck(FORWARD, (*(t.detach().requires_grad_() for t in tensors), 0.5))
    torch.library.opcheck(BACKWARD, (*grads, list(tensors), list(FORWARD(*tensors, 0.5)), 0.5))


def test_compiles_to_one_graph_with_gradients():
    tensors, grads = inputs((1, 2, 9, 11, 16, 16))
    compiled = torch.compile(difference_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    got = results(compiled, tensors, grads)
    assert all(torch.equal(a, b) for a, b in zip(got, results(difference_attention, tensors, grads), strict=True))


def test_exports_with_lengths_left_open():
    class Model(torch.nn.Module):
        def forward(self, *tensors):
            return difference_attention(*tensors)

    q, k = torch.export.Dim("q", min=2, max=999), torch.export.Dim("k", min=2, max=999)
    example, _ = inputs((1, 2, 9, 11, 16, 16))
    program = torch.export.export(Model(), tuple(example), dynamic_shapes=(({2: q}, {2: k}, {2: k}, {2: k}),))
    other, _ = inputs((1, 2, 4, 30, 16, 16))
    for out, expected in zip(program.module()(*other), difference_attention(*other), strict=True):
        assert torch.equal(out, expected)


def wrong(**changes):
    names = ("query", "key", "value_action", "value_background")
    tensors, _ = inputs((2, 3, 5, 7, 16, 8))
    return {**dict(zip(names, tensors, strict=True)), **changes}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"query": [1.0]}, TypeError, "query is list, expected a tensor"),
        ({"key": torch.zeros(2, 7, 16)}, ValueError, r"key has shape \[2, 7, 16\], expected \[B, H, Tk, D\]"),
        ({"query": torch.zeros(2, 3, 0, 16)}, ValueError, r"query has shape \[2, 3, 0, 16\], .* and not empty"),
        ({"query": torch.zeros(2, 3, 5, 129)}, ValueError, r"query has shape \[2, 3, 5, 129\], .* last size <= 128"),
        ({"query": torch.zeros(2, 3, 5, 16).int()}, TypeError, "query is int32, expected float16, bfloat16, "),
        ({"key": torch.zeros(2, 3, 7, 16).half()}, TypeError, "key is float16, expected float32 as query is"),
        ({"key": torch.zeros(2, 3, 7, 16).to("meta")}, ValueError, "key is on meta, expected cpu as query is"),
        (
            {"key": torch.zeros(2, 3, 7, 15)},
            ValueError,
            r"key has shape \[2, 3, 7, 15\], expected \[2, 3, 7, 16\] to fit",
        ),
        (
            {"key": torch.zeros(1, 3, 7, 16)},
            ValueError,
            r"key has shape \[1, 3, 7, 16\], expected \[2, 3, 7, 16\] to fit",
        ),
        ({"value_action": torch.zeros(2, 3, 6, 8)}, ValueError, r"value_action has .* 6, 8\], expected \[2, 3, 7, 8\]"),
        (
            {"value_background": torch.zeros(2, 3, 7, 9)},
            ValueError,
            r"value_background .* 9\], expected \[2, 3, 7, 8\]",
        ),
        ({"scale": float("nan")}, ValueError, "scale is nan, expected a finite number"),
    ],
)
def test_bad_input_is_named(backend, changes, kind, message):
    with use_backend(backend), pytest.raises(kind, match=message):
        difference_attention(**wrong(**changes))


@TRITON
def test_double_precision_has_no_kernel():
    tensors, _ = inputs((1, 1, 2, 2, 16, 16), torch.float64)
    with use_backend("triton"), pytest.raises(BackendError, match="float64"):
        difference_attention(*tensors)


@TRITON
def test_table_of_compiled_kernels_covers_every_variant():
    from bcnet_fast.kernels import difference_attention as kernels

    with (ROOT / "bench" / "results" / "aot.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["kernel"].startswith("difference_attention")]
    assert all(r["spill_bytes"] == "0" and r["blocks_per_sm"] != "0" for r in rows)
    columns = ("kernel", "dtype", "size", "tiles", "warps", "stages", "target")
    compiled = {tuple(r[c] for c in columns) for r in rows}
    dtypes = {"half": ("fp16", "bf16"), "tf32": ("tf32",), "fma": ("fp32",)}
    for (name, unit, size), variants in kernels.CONFIGS.items():
        for config, target in itertools.chain.from_iterable(((c, t) for t in c.targets) for c in variants):
            tiles = "x".join(str(v) for v in config.tiles.values())
            launch = tiles, str(config.num_warps), str(config.num_stages), f"sm_{target}"
            for dtype_name in dtypes[unit]:
                assert (f"difference_attention_{name}", dtype_name, f"{size}/{size}", *launch) in compiled
