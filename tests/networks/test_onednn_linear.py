"""Products by oneDNN against PyTorch's own, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.accuracy import BOUNDS, error

from bcnet_fast.networks.trainable.onednn_linear import linear, onednn_operator, two_layers

SHAPES = [(4, 7, 5), (0, 5), (1, 5), (3, 5)]


def operands(shape, *sizes, dtype=torch.float32):
    """x of a shape, none of its strides 1, and weights from its last size through `sizes`, transposed."""
    x = torch.randn(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2]
    pairs = zip((shape[-1], *sizes), sizes, strict=False)
    weights = [torch.randn(columns, rows, dtype=dtype).mT for columns, rows in pairs]
    return [tensor.requires_grad_() for tensor in (x, *weights)]


def agree(found, expected, given):
    """Values, and gradients for a gradient that is the same in every column, as a sum's is."""
    assert error(found, expected) < BOUNDS[torch.float32]
    assert found.shape == expected.shape
    grad = torch.randn_like(expected)[..., :1].expand_as(expected)
    gradients = [torch.autograd.grad(out, given, grad) for out in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        assert one.shape == other.shape and error(one, other) < BOUNDS[torch.float32]


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(shape, bias, relu):
    given = [*operands(shape, 6), *([torch.randn(6, requires_grad=True)] if bias else [])]
    expected = F.linear(*given)
    agree(linear(*given, relu=relu), expected.relu() if relu else expected, given)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_layers(shape):
    given = operands(shape, 9, 4)
    x, first, second = given
    agree(two_layers(*given), F.linear(F.linear(x, first).relu(), second), given)


@pytest.mark.parametrize("frozen", range(3))
def test_gradients_that_are_not_required_are_not_computed(frozen):
    given = operands((3, 5), 9, 5)
    given[frozen].requires_grad_(False)
    two_layers(*given).sum().backward()
    linear(*given[:2]).sum().backward()
    assert [tensor.grad is None for tensor in given] == [i == frozen for i in range(3)]


def test_other_dtypes_and_autocast_are_pytorch_s():
    given = operands((3, 5), 9, 4, dtype=torch.float64)
    assert two_layers(*given).dtype == torch.float64
    assert torch.autograd.gradcheck(two_layers, given)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(*operands((3, 5), 4)).dtype == torch.bfloat16


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a PyTorch without oneDNN")
def test_the_private_operator_is_as_it_was():
    """It failed? PyTorch changed `mkldnn::_linear_pointwise`: adapt `onednn_linear.onednn_operator` and `_product`."""
    operator = onednn_operator()
    assert operator is not None, "torch.ops.mkldnn._linear_pointwise has gone: training falls back to F.linear"
    arguments = [(argument.name, str(argument.type)) for argument in operator.default._schema.arguments]
    assert arguments == [
        ("X", "Tensor"), ("W", "Tensor"), ("B", "Optional[Tensor]"), ("attr", "str"),
        ("scalars", "List[Optional[number]]"), ("algorithm", "Optional[str]"),
    ]  # fmt: skip
    x, weight, bias = torch.randn(3, 5), torch.randn(4, 5), torch.randn(4)
    torch.testing.assert_close(linear(x, weight, bias, relu=True), F.linear(x, weight, bias).relu())
