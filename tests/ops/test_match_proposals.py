"""match_proposals: every backend against a plain loop over pairs, bit for bit.

On a machine with a GPU the Triton kernel runs there; elsewhere in Triton's interpreter (see conftest.py).
"""

from __future__ import annotations

import csv
import math
import re

import numpy as np
import pytest
import torch
from helpers.accuracy import dtype
from helpers.backends import needs_triton
from helpers.paths import ROOT
from helpers.sweeps import on_backends
from support.plain_match import look_up, match_one_window

from bcnet_fast.ops import MatchedProposals, match_proposals, native, use_backend
from bcnet_fast.ops.match_proposals import _outputs
from bcnet_fast.ops.reference import most_pairs

OP = torch.ops.bcnet_fast.match_proposals.default
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# W, T, D, P: single snippets, D above T, one duration, primes, one more and one less than the kernel's tiles.
SHAPES = [
    *((1, 1, 1, 1), (2, 4, 4, 5), (2, 29, 13, 11), (2, 2, 1, 3), (3, 3, 7, 2), (3, 17, 1, 9), (1, 33, 33, 7)),
    *((1, 48, 31, 130), (1, 65, 70, 1)),
]
NATIVE_OPTIONS = {
    "boundary_threshold": 0.7,
    "min_classification": 0.9,
    "min_regression": 0.8,
    "max_snippets": None,
    "clamp_boundaries": False,
}
native_only = pytest.mark.skipif(native.module is None, reason=str(native.reason))
with_triton = needs_triton("match_proposals")
BACKENDS = ("reference", pytest.param("native", marks=native_only), pytest.param("triton", marks=with_triton))


@pytest.fixture(params=BACKENDS)
def backend(request):
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def device(backend: str) -> str:
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


def inputs(rng: np.random.Generator, size, dtype=torch.float32, steps: int | None = None) -> list[torch.Tensor]:
    """The positional arguments; with `steps`, probabilities are multiples of 1 / steps, so that many are equal."""
    windows, snippets, durations, count = size

    def scores(*shape: int) -> torch.Tensor:
        values = rng.random(shape) if steps is None else rng.integers(0, steps + 1, shape) / steps
        return torch.from_numpy(values).to(dtype)

    frames, columns = [scores(windows, snippets) for _ in range(2)], [scores(windows, count) for _ in range(3)]
    columns[1] = columns[1] * 2.5 - 0.5  # a regression is not bounded
    anchors = torch.from_numpy(rng.integers(-3, snippets + 3, (count, 2)))
    table = torch.from_numpy(rng.integers(0, count, (snippets, durations)).astype(np.int32))
    return [*frames, *columns, anchors, table]


def on(device: str, tensors) -> list[torch.Tensor | None]:
    return [None if t is None else t.to(device) for t in tensors]


def assert_is_the_loop(found: MatchedProposals, tensors, lengths=None, **options) -> int:
    """Compare all windows, padding included; returns the number of pairs."""
    assert [t.dtype for t in found] == [torch.float64, torch.float64, torch.int32, torch.int64]
    segments, scores, boundaries, counts = (t.cpu() for t in found)
    *columns, anchors, table = tensors
    windows, rows = len(columns[0]), most_pairs(*table.shape)
    assert segments.shape == boundaries.shape == (windows, rows, 2)
    assert scores.shape == (windows, rows) and counts.shape == (windows,)
    for w in range(windows):
        expected = match_one_window(
            *(None if c is None else c[w].double().tolist() for c in columns),
            anchors.tolist(),
            look_up(table.tolist()),
            table.shape[1],
            length=None if lengths is None else int(lengths[w]),
            **options,
        )
        assert counts[w] == len(expected)
        padded = np.zeros((rows, 5))
        padded[: len(expected)] = np.reshape(expected, (-1, 5))
        np.testing.assert_array_equal(boundaries[w], padded[:, :2])
        np.testing.assert_array_equal(segments[w], padded[:, 2:4])
        np.testing.assert_array_equal(scores[w], padded[:, 4])
    return int(counts.sum())


def check_all_options(device: str, rng: np.random.Generator, size) -> None:
    windows, snippets = size[:2]
    for steps, clamp, shortened in ((None, False, False), (4, False, True), (4, True, False), (None, True, True)):
        tensors = inputs(rng, size, steps=steps)
        lengths = torch.from_numpy(rng.integers(0, snippets + 1, windows)) if shortened else None
        options = {
            "clamp_boundaries": clamp,
            "max_snippets": snippets / 3 if shortened else None,
            "min_classification": 0.5,
            "min_regression": 0.25,
        }
        found = match_proposals(*on(device, tensors), lengths=on(device, [lengths])[0], **options)
        assert_is_the_loop(found, tensors, lengths, **options)


@on_backends(BACKENDS, "size", [pytest.param(s, id="W{}-T{}-D{}-P{}".format(*s)) for s in SHAPES], interpreted=3)
def test_equals_the_loop(backend, device, poisoned, rng, size):
    check_all_options(device, rng, size)


@on_backends(BACKENDS, "snippets", [251], interpreted=0)
def test_equals_the_loop_at_the_size_of_thumos14(backend, device, poisoned, rng, snippets):
    tensors, lengths = inputs(rng, (1, 256, 64, 1218)), torch.tensor([snippets])
    found = match_proposals(*on(device, tensors), lengths=lengths.to(device), max_snippets=60.0)
    assert_is_the_loop(found, tensors, lengths, max_snippets=60.0)


@with_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="tiles that are too small for a GPU")
def test_the_kernel_needs_no_window_to_fit_its_tiles(monkeypatch, poisoned, rng):
    from bcnet_fast.kernels import match_proposals as kernels

    tiles = {"BLOCK_S": 4, "BLOCK_D": 4, "BLOCK_T": 8}
    monkeypatch.setattr(kernels, "CONFIG", kernels.CONFIG._replace(tiles=tiles))
    with use_backend("triton"):
        check_all_options("cpu", rng, (1, 9, 5, 7))


@on_backends(BACKENDS, "dtype", map(dtype, DTYPES))
def test_thresholds_are_compared_in_float64(backend, device, rng, dtype):
    # 0.7, 0.9 and 0.8 in each dtype, and their neighbours: some of the rounded thresholds lie above their float64.
    tensors = inputs(rng, (2, 40, 20, 30), dtype)
    for tensor, threshold in zip(tensors[:4], (0.7, 0.7, 0.9, 0.8), strict=True):
        edge = torch.tensor(threshold, dtype=dtype)
        near = torch.stack([torch.nextafter(edge, torch.zeros_like(edge)), edge, edge + torch.finfo(dtype).eps])
        tensor.copy_(near[torch.from_numpy(rng.integers(0, 3, tensor.shape))])
    assert assert_is_the_loop(match_proposals(*on(device, tensors)), tensors) > 0


@on_backends(BACKENDS, "threshold", [0.5, 0.51, -math.inf, math.inf], interpreted=2)
def test_a_plateau_is_all_or_nothing(backend, device, poisoned, rng, threshold):
    tensors = inputs(rng, (3, 23, 9, 4))
    for tensor in tensors[:2]:
        tensor.fill_(0.5)
    found = match_proposals(*on(device, tensors), boundary_threshold=threshold)
    pairs = 3 * most_pairs(23, 9) if threshold <= 0.5 else 0
    assert assert_is_the_loop(found, tensors, boundary_threshold=threshold) == pairs


@pytest.mark.parametrize(("snippets", "durations"), [(1, 5), (2, 1), (9, 1), (9, 8), (9, 9), (9, 100), (256, 64)])
def test_rows_are_the_pairs_that_a_window_can_have(snippets, durations):
    assert most_pairs(snippets, durations) == sum(min(durations, snippets - 1 - s) for s in range(snippets))


def test_a_case_by_hand(backend, device):
    # Starts 0 (0.9) and 2 (a peak of 0.5); ends 1 (a peak of 0.25) and 3 (0.75). Anchor 1 is refined, anchor 0 is not.
    rows = [0.9, 0.125, 0.5, 0.25], [0.0, 0.25, 0.125, 0.75], [0.5, 0.95], [0.5, 2.0], [0.75, 0.5]
    scores = [torch.tensor([row], dtype=torch.float64) for row in rows]
    anchors, table = torch.tensor([[5, 6], [1, 4]]), torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]]).int()
    found = match_proposals(*on(device, (*scores, anchors, table)), max_snippets=3)
    assert found.counts.tolist() == [3] and found.scores.shape == (1, 6)
    assert found.boundaries[0, :4].tolist() == [[0, 1], [0, 3], [2, 3], [0, 0]]
    assert found.segments[0, :4].tolist() == [[0, 1], [0.5, 3.5], [1.5, 3.5], [0, 0]]
    assert found.scores[0, :4].tolist() == [0.9 * 0.25 * 0.5 * 0.5 * 0.25, 0, 0.5 * 0.75 * 0.95 * 2 * 0.5, 0]


def test_without_background_its_factor_is_left_out(backend, device, rng):
    tensors = inputs(rng, (2, 19, 7, 5))
    tensors[4] = None
    assert assert_is_the_loop(match_proposals(*on(device, tensors)), tensors) > 0


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64], ids=str)
def test_anchors_of_any_number(backend, device, rng, dtype):
    tensors = inputs(rng, (1, 19, 7, 5))
    tensors[5] = (tensors[5] + 0.37).to(dtype)
    options = {"min_classification": 0.0, "min_regression": -math.inf}
    assert_is_the_loop(match_proposals(*on(device, tensors), **options), tensors, **options)


def test_takes_any_strides_and_leaves_inputs_alone(backend, device, rng):
    tensors = on(device, inputs(rng, (3, 21, 9, 6)))
    strided = [t.mT.contiguous().mT for t in tensors]
    strided[0] = torch.stack([tensors[0]] * 3, dim=2)[..., 1]
    strided[3] = tensors[3].repeat_interleave(2, dim=1)[:, ::2].requires_grad_()
    assert not any(t.is_contiguous() for t in strided)
    lengths = torch.tensor([21, 5, 9, 0, 13, 0], device=device)[::2]
    before = [t.detach().clone() for t in strided]
    found = match_proposals(*strided, lengths=lengths)
    expected = match_proposals(*tensors, lengths=lengths.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(strided, before, strict=True))


@native_only
def test_threads_share_the_windows(rng):
    tensors = inputs(rng, (70, 256, 64, 50))
    outputs = []
    before = torch.get_num_threads()
    with use_backend("native"):
        for threads in (1, 3):
            torch.set_num_threads(threads)
            outputs.append(match_proposals(*tensors))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert_is_the_loop(MatchedProposals(*(t[-2:] for t in outputs[1])), [*(t[-2:] for t in tensors[:5]), *tensors[5:]])


def call_native(tensors, lengths, options, instructions: str) -> MatchedProposals:
    *scores, anchors, table = tensors
    given = [None if t is None else t.numpy() for t in (*scores, anchors.double(), table, lengths)]
    outputs = _outputs(scores[0], table)
    arrays = {name: output.numpy() for name, output in MatchedProposals(*outputs)._asdict().items()}
    native.module.match_proposals(*given, **options, **arrays, threads=1, instruction_set=instructions)
    return MatchedProposals(*outputs)


@native_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_instruction_set_finds_the_same_pairs(poisoned, rng, dtype):
    # Probabilities that are often equal, zeros of both signs among them. In D = 9 snippets there are 0 to 9 ends: less
    # than a vector has places, as many, and more.
    for size in ((9, 61, 20, 5), (25, 33, 9, 40), (6, 14, 30, 3)):
        tensors = inputs(rng, size, dtype, steps=4)
        for probability in tensors[:2]:
            probability[(probability == 0) & (torch.rand(probability.shape) < 0.5)] = -0.0
        lengths = torch.from_numpy(rng.integers(0, size[1] + 1, size[0]))
        for instructions in native.module.INSTRUCTION_SETS:
            for threshold, least, longest, clamp in (
                (0.7, 0.5, 4.5, False),
                (0.25, -1.0, None, True),
                (0.0, 2.0, 7, True),
            ):
                options = {
                    "boundary_threshold": threshold,
                    "min_classification": least,
                    "min_regression": least,
                    "max_snippets": longest,
                    "clamp_boundaries": clamp,
                }
                found = call_native(tensors, lengths, options, instructions)
                assert_is_the_loop(found, tensors, lengths, **options)
        tensors[4] = None


@native_only
def test_every_instruction_set_sees_what_does_not_fit(rng):
    tensors, lengths = inputs(rng, (2, 37, 7, 5)), torch.tensor([37, 0])
    tensors[5] = tensors[5].double()
    bad = [(tensor, math.nan) for tensor in tensors[:6]] + [(tensors[0], math.inf), (tensors[4], -math.inf)]
    bad += [(tensors[6], 5), (tensors[6], -1), (lengths, 38), (lengths, -1)]
    for instructions in native.module.INSTRUCTION_SETS:
        call_native(tensors, lengths, NATIVE_OPTIONS, instructions)
        for tensor, value in bad:
            flat = tensor.view(-1)
            for place in (0, len(flat) // 2, len(flat) - 1):
                kept = flat[place].item()
                flat[place] = value
                with pytest.raises(ValueError, match="a value is out of range"):
                    call_native(tensors, lengths, NATIVE_OPTIONS, instructions)
                flat[place] = kept


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: NaN on the CPU is an error")
def test_nan_on_a_device_is_no_boundary_and_its_score(rng):
    tensors = on("cuda", inputs(rng, (1, 19, 7, 5)))
    tensors[0][0, 4], tensors[2][0, 1] = math.nan, math.nan
    with use_backend("triton"):
        found = match_proposals(*tensors)
    with use_backend("reference"):
        expected = match_proposals(*tensors)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert 4 not in found.boundaries[0, : found.counts[0], 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fits_into_a_cuda_graph(rng):
    tensors, other = (on("cuda", inputs(rng, (4, 256, 64, 1218))) for _ in range(2))
    match_proposals(*tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = match_proposals(*tensors)
    for tensor, values in zip(tensors, other, strict=True):
        tensor.copy_(values)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, match_proposals(*other), strict=True))


@on_backends(BACKENDS, "windows", [2], interpreted=0)
def test_operator_passes_opcheck(backend, device, rng, windows):
    tensors = on(device, inputs(rng, (windows, 13, 6, 5)))
    lengths = torch.tensor([13, 4], device=device)
    scores, tables = tensors[:5], tensors[5:]
    torch.library.opcheck(OP, (scores, *tables, lengths, [0.7, 0.9, 0.8], 5.0, False))
    torch.library.opcheck(OP, (scores[:4], *tables, None, [0.7, 0.9, 0.8], None, True))


def test_compiles_to_one_graph(rng):
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def totals(*tensors):
        found = match_proposals(*(t * 1 for t in tensors))
        return found.segments, found.scores.sum(1), found.counts

    for size in ((2, 30, 12, 7), (3, 9, 20, 5)):
        tensors = inputs(rng, size)
        found = match_proposals(*tensors)
        expected = found.segments, found.scores.sum(1), found.counts
        assert all(torch.equal(a, b) for a, b in zip(totals(*tensors), expected, strict=True))


def test_exports_with_the_number_of_windows_left_open(rng):
    class Model(torch.nn.Module):
        def forward(self, *tensors):
            return match_proposals(*tensors)

    windows = torch.export.Dim("windows", min=1, max=999)
    open_sizes = (*[{0: windows}] * 5, None, None)
    program = torch.export.export(Model(), tuple(inputs(rng, (2, 17, 6, 5))), dynamic_shapes=(open_sizes,))
    other = inputs(rng, (5, 17, 6, 5))
    assert all(torch.equal(a, b) for a, b in zip(program.module()(*other), match_proposals(*other), strict=True))


def good() -> dict[str, torch.Tensor]:
    names = ("start", "end", "classification", "regression", "background", "anchors", "table")
    tensors = dict(zip(names, inputs(np.random.default_rng(0), (2, 5, 3, 4)), strict=True))
    return tensors | {"lengths": torch.tensor([5, 2])}


def at(name: str, index: tuple[int, ...], value: float) -> dict[str, torch.Tensor]:
    tensor = good()[name]
    tensor = tensor if tensor.dtype != torch.int64 or name == "lengths" else tensor.double()
    tensor[index] = value
    return {name: tensor}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"start": [0.5]}, TypeError, "start is list, expected a tensor"),
        ({"background": 0.5}, TypeError, "background is float, expected a tensor"),
        ({"start": torch.zeros(5)}, ValueError, "start has shape [5], expected [W, T] and not empty"),
        ({"start": torch.zeros(0, 5)}, ValueError, "start has shape [0, 5], expected [W, T] and not empty"),
        ({"end": torch.zeros(2, 4)}, ValueError, "end has shape [2, 4], expected [2, 5] to fit the others"),
        ({"end": torch.zeros(2, 5).double()}, TypeError, "end is float64, expected float32"),
        (
            {"start": torch.zeros(2, 5).int()},
            TypeError,
            "start is int32, expected float16, bfloat16, float32 or float64",
        ),
        (
            {"regression": torch.zeros(2, 3)},
            ValueError,
            "regression has shape [2, 3], expected [2, 4] to fit the others",
        ),
        (
            {"background": torch.zeros(1, 4)},
            ValueError,
            "background has shape [1, 4], expected [2, 4] to fit the others",
        ),
        ({"anchors": torch.zeros(4, 3)}, ValueError, "anchors has shape [4, 3], expected [P, 2] and not empty"),
        (
            {"anchors": torch.zeros(4, 2).half()},
            TypeError,
            "anchors is float16, expected int32, int64, float32 or float64",
        ),
        (
            {"table": torch.zeros(4, 3).int()},
            ValueError,
            "table has shape [4, 3], expected [5, D] to fit start, and not empty",
        ),
        ({"table": torch.zeros(5, 3).long()}, TypeError, "table is int64, expected int32"),
        ({"lengths": torch.zeros(3).long()}, ValueError, "lengths has shape [3], expected [2] to fit the others"),
        ({"lengths": torch.zeros(2)}, TypeError, "lengths is float32, expected int64"),
        ({"end": torch.zeros(2, 5, device="meta")}, ValueError, "end is on meta, expected cpu as start is"),
        ({"boundary_threshold": math.nan}, ValueError, "boundary_threshold is nan, expected a number"),
        ({"max_snippets": math.nan}, ValueError, "max_snippets is nan, expected a number"),
        (at("start", (1, 3), math.nan), ValueError, "start is nan at [1, 3] of [2, 5], expected finite numbers"),
        (
            at("background", (0, 2), math.inf),
            ValueError,
            "background is inf at [0, 2] of [2, 4], expected finite numbers",
        ),
        (at("anchors", (1, 0), -math.inf), ValueError, "anchors is -inf at [1, 0] of [4, 2], expected finite numbers"),
        (at("table", (4, 2), 4), ValueError, "table is 4 at [4, 2] of [5, 3], expected numbers from 0 to 3"),
        (at("table", (0, 0), -1), ValueError, "table is -1 at [0, 0] of [5, 3], expected numbers from 0 to 3"),
        (at("lengths", (1,), 6), ValueError, "lengths is 6 at [1] of [2], expected numbers from 0 to 5"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="values on a GPU are not looked at")
def test_bad_input_is_named(backend, change, error, message):
    with pytest.raises(error, match="match_proposals: " + re.escape(message)):
        match_proposals(**(good() | change))


@native_only
def test_native_binding_refuses_what_would_be_copied_or_read_out_of_bounds():
    tensors = [t.numpy() for t in good().values()]
    tensors[5] = tensors[5].astype(np.float64)
    rows = most_pairs(5, 3)
    outputs = [np.zeros((2, rows, 2)), np.zeros((2, rows)), np.zeros((2, rows, 2), np.int32), np.zeros(2, np.int64)]

    def call(changed: int | None = None, array: np.ndarray | None = None) -> None:
        arrays = [*tensors, *outputs]
        if changed is not None:
            arrays[changed] = array
        named = MatchedProposals(*arrays[8:])._asdict()
        native.module.match_proposals(*arrays[:8], **NATIVE_OPTIONS, **named, threads=1)

    call()
    call(7, None)
    for index, array in enumerate([*tensors, *outputs]):
        with pytest.raises(TypeError):
            call(index, array.astype(np.float16))
        with pytest.raises(TypeError):
            call(index, np.repeat(array, 2, axis=0)[::2])
        with pytest.raises(ValueError, match=r"match_proposals: .* expected"):
            call(index, np.concatenate([array, array[:1]]))


def test_table_of_compiled_kernels_covers_the_variant():
    kernels = pytest.importorskip("bcnet_fast.kernels.match_proposals")
    with (ROOT / "bench" / "results" / "aot.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["kernel"] == "match_proposals"]
    assert all(r["spill_bytes"] == "0" and r["blocks_per_sm"] != "0" for r in rows)
    config = kernels.CONFIG
    shipped = "x".join(str(v) for v in config.tiles.values()), str(config.num_warps), str(config.num_stages)
    assert {(r["tiles"], r["warps"], r["stages"]) for r in rows} == {shipped}
    assert {r["target"] for r in rows} == {f"sm_{t}" for t in config.targets}
