"""Drop-in layers against the dense references: values and gradients, at any size, in every arrangement of the map."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.accuracy import error
from torch import nn

import bcnet_fast
from bcnet_fast.config import BMNConfig, GTADConfig
from bcnet_fast.geometry.proposal_map import bmn_intervals
from bcnet_fast.layers import BoundaryMatching, GraphAlign, GraphAlignConv
from bcnet_fast.networks.reference.bmn import BMN
from bcnet_fast.networks.reference.dense_sampling import sampling_weights
from bcnet_fast.networks.reference.gtad import GTAD, nearest

# T, D, N, points, C, O
SIZES = {
    "one": (1, 1, 1, 1, 1, 1),
    "odd": (23, 23, 5, 3, 7, 9),
    "short": (37, 11, 4, 2, 6, 10),
    "long": (9, 14, 3, 3, 4, 5),
}
# T, D, bins, C, O
GRAPH_SIZES = {"one": (3, 1, (1, 1), 1, 1), "odd": (23, 23, (5, 5), 7, 9), "short": (37, 11, (7, 2), 6, 10)}


def matching(size, layout):
    length, longest, bins, points, channels, outputs = size
    longest = length if layout == "start_end" else longest
    layer = BoundaryMatching(length, 0.5, bins, points, channels, outputs, layout=layout, max_duration=longest)
    config = BMNConfig(
        window=length, max_duration=longest, map_layout=layout, bins=bins, points_per_bin=points,
        base_channels=channels, sampled_channels=outputs,
    )  # fmt: skip

    def dense(features, weight, bias):
        return F.conv3d(BMN(config).sample(features), weight, bias).relu()[:, :, 0]

    return layer, dense, torch.randn(2, channels, length)


def aligned(size, style):
    """The convolution's layer, the alignment alone, and the dense reference of the latter."""
    length, longest, bins, channels, outputs = size
    layer = GraphAlignConv(3, length, longest, 2, 0, style, bins=bins, h_dim_1d=channels, h_dim_3d=outputs)
    align = GraphAlign(3, length, longest, 2, 0, style, bins=bins)
    config = GTADConfig(
        window=length, max_duration=longest, base_channels=channels, inner_bins=bins[0], context_bins=bins[1],
        block_groups=1,
    )  # fmt: skip

    def dense(x, index=None):
        sampled = GTAD(config).sample(x, nearest(x, 3) if index is None else index)
        return sampled if style else sampled.unflatten(1, (channels, -1))[:, :, : bins[0]].flatten(1, 2)

    return layer, align, dense, torch.randn(2, channels, length)


def with_gradients(function, *leaves):
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    out = function(*leaves)
    return [out, *torch.autograd.grad(out, leaves, torch.linspace(-1, 1, out.numel()).view(out.shape).to(out))]


def functional(layer, *more):
    """The layer as a function of its input and its parameters."""
    return lambda x, weight, bias: torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x, *more))


def assert_close(found, expected, bound):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and error(one, other.double()) < bound


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("layout", ["start_end", "duration_start"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_boundary_matching_is_the_dense_layer_and_its_convolution(size, layout, dtype, bound):
    layer, dense, features = matching(size, layout)
    layer.to(dtype)
    parameters = features.to(dtype), layer.weight, layer.bias
    exact = [t.detach().double() for t in parameters]
    assert_close(with_gradients(functional(layer), *parameters), with_gradients(dense, *exact), bound)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("style", [0, 1, 2])
@pytest.mark.parametrize("size", GRAPH_SIZES.values(), ids=GRAPH_SIZES)
def test_graph_align_is_the_dense_layer_with_and_without_its_convolution(size, style, dtype, bound):
    layer, align, dense, x = aligned(size, style)
    # G-TAD passes these with style 2: the neighbours in two graphs, some of them twice.
    index = torch.randint(0, size[0], (2, size[0], 6)) if style == 2 else None
    parameters = x.to(dtype), layer.to(dtype).weight, layer.bias
    exact = [t.detach().double() for t in parameters]
    assert_close(
        with_gradients(functional(layer, index), *parameters),
        with_gradients(lambda x, weight, bias: F.conv2d(dense(x, index), weight, bias).relu(), *exact),
        bound,
    )
    align.to(dtype)
    found = with_gradients(lambda x: align(x, index), parameters[0])
    assert_close(found, with_gradients(lambda x: dense(x, index), exact[0]), bound)
    assert found[0].is_contiguous()


def test_cells_that_are_no_proposals_give_the_bias():
    layer, _, features = matching(SIZES["odd"], "start_end")
    out = layer(features)
    below = torch.ones(23, 23, dtype=torch.bool).tril(-1)
    assert torch.equal(out[:, :, below], layer.bias.relu()[None, :, None].expand(2, -1, int(below.sum())))


def test_the_ratio_is_how_far_a_proposal_is_extended():
    layer = BoundaryMatching(15, 0.25, 4, 2, 3, 5).double()
    intervals = bmn_intervals(15, 0.25)
    intervals[intervals != intervals] = -40
    matrix = torch.from_numpy(sampling_weights(intervals, 15, 4, 2)).double().flatten(1)
    features = torch.randn(2, 3, 15).double()
    expected = F.conv3d((features @ matrix).unflatten(-1, (4, 15, 15)), layer.weight, layer.bias).relu()[:, :, 0]
    torch.testing.assert_close(layer(features), expected, atol=1e-12, rtol=0)


def test_points_of_a_bin_can_be_set():
    x = torch.randn(1, 2, 20)
    one, many = (GraphAlign(t=20, d=20, samp=samp)(x) for samp in (1, 0))
    short = slice(0, 8)  # bins of these proposals are at most one snippet long
    assert torch.equal(one[:, :, short], many[:, :, short]) and not torch.equal(one, many)


def test_weights_load_from_the_convolutions_that_are_replaced():
    """In place of the convolution, the layer has the same names in the model's state, and no others."""
    published = nn.Sequential(nn.Conv3d(6, 10, (4, 1, 1), stride=(4, 1, 1)), nn.ReLU())
    layer, dense, features = matching(SIZES["short"], "start_end")
    own = nn.Sequential(layer, nn.ReLU())
    own.load_state_dict(published.state_dict())
    out = dense(features, *published[0].state_dict().values())
    torch.testing.assert_close(own(features), out, atol=1e-5, rtol=1e-5)
    assert own.state_dict().keys() == published.state_dict().keys()
    published.load_state_dict(own.state_dict())

    layer, align, _, x = aligned(GRAPH_SIZES["short"], 1)
    published = nn.Conv2d(6 * 9, 10, kernel_size=1)
    layer.load_state_dict(published.state_dict())
    torch.testing.assert_close(layer(x), published(align(x)).relu(), atol=1e-5, rtol=1e-5)
    assert layer.state_dict().keys() == published.state_dict().keys() and not align.state_dict()


def layers(style=1):
    """One of each kind, with an input."""
    conv, align, _, x = aligned(GRAPH_SIZES["odd"], style)
    match, _, features = matching(SIZES["odd"], "start_end")
    return (match, features), (conv, x), (align, x)


def test_an_optimizer_step_keeps_the_arrangement_in_memory():
    for layer, x in layers()[:2]:
        before = layer.weight.stride()
        layer(x).sum().backward()
        torch.optim.Adam(layer.parameters()).step()
        assert layer.weight.stride() == copy.deepcopy(layer).double().float().weight.stride() == before


def test_a_plan_follows_its_module_and_stays_exact():
    for layer, x in layers(style=0):
        exact = copy.deepcopy(layer).double()
        assert layer.half().plan_weights.dtype == torch.float32
        moved = layer.to("meta").to_empty(device="cpu").double()
        moved.load_state_dict(exact.state_dict())
        assert torch.equal(moved.plan_weights, exact.plan_weights)
        assert torch.equal(moved(x.double()), exact(x.double()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_and_autocast(dtype):
    # Style 0, since a graph of rounded features can have other neighbours.
    for layer, x in layers(style=0):
        with torch.no_grad():
            exact = copy.deepcopy(layer).double()(x.double())
            low = copy.deepcopy(layer).to(dtype)(x.to(dtype))
            with torch.autocast("cpu", dtype):
                cast = layer(x)
        assert low.dtype == dtype and error(low, exact) < 2e-2
        assert error(cast, exact) < 2e-2
        assert cast.dtype == (dtype if hasattr(layer, "weight") else torch.float32)


@pytest.mark.slow  # compiles C++
def test_layers_compile_to_one_graph_with_gradients():
    for layer, x in layers():
        compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
        assert all(
            torch.equal(a, b) for a, b in zip(with_gradients(layer, x), with_gradients(compiled, x), strict=True)
        )


def test_repeats_have_the_same_bits():
    for layer, x in layers():
        first, second = (with_gradients(layer, x) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_package_offers_the_layers():
    assert bcnet_fast.layers.BoundaryMatching is BoundaryMatching


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BoundaryMatching(0), "temporal_dim is 0, expected at least 1"),
        (lambda: BoundaryMatching(9, max_duration=0), "max_duration is 0, expected at least 1"),
        (lambda: BoundaryMatching(9, num_samples=0), "num_samples is 0, expected at least 1"),
        (lambda: BoundaryMatching(9, num_samples_per_bin=-1), "num_samples_per_bin is -1, expected at least 1"),
        (
            lambda: BoundaryMatching(9, layout="end_start"),
            "layout is 'end_start', expected start_end or duration_start",
        ),
        (lambda: GraphAlign(t=0), "t is 0, expected at least 1"),
        (lambda: GraphAlign(k=0), "k is 0, expected at least 1"),
        (lambda: GraphAlign(style=3), "style is 3, expected 0, 1 or 2"),
        (lambda: GraphAlign(samp=-1), "points_per_bin is -1, expected at least 0"),
        (lambda: GraphAlignConv(style=1, bins=(4, 0)), r"bins\[1\] is 0, expected at least 1"),
        (lambda: GraphAlignConv(h_dim_3d=0), "h_dim_3d is 0, expected at least 1"),
        (
            lambda: BoundaryMatching(9, hidden_dim_1d=4)(torch.zeros(1, 4, 8)),
            r"features has shape \[1, 4, 8\], expected \[B, C, T\] with T = 9",
        ),
        (
            lambda: BoundaryMatching(9, hidden_dim_1d=4)(torch.zeros(1, 3, 9)),
            r"weight has shape \[32, 4, 512\], expected \[32, 3, O\]",
        ),
        (lambda: GraphAlign(t=9, d=9, style=2)(torch.zeros(1, 3, 9)), r"index is None, expected \[B, T, K\]"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
