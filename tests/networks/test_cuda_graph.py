"""CUDA graphs without a GPU: `Graphed` on simulated streams, which find races and lost memory."""

from __future__ import annotations

import gc
import threading
import warnings

import pytest
import torch
from helpers.cuda_streams import POOL, Race, Streams

from bcnet_fast.networks.engine import cuda_graph as graph
from bcnet_fast.networks.engine.cuda_graph import BATCHES, Graphed, portions
from bcnet_fast.networks.outputs import Output

DEVICES = [torch.device("cpu", index) for index in range(2)]  # the simulation's two devices
WEIGHT = torch.linspace(-1, 1, 12).view(4, 3)


def network(features: torch.Tensor) -> Output:
    """[B, C, T] -> two scores, by products that need a workspace."""
    start = torch.bmm(features, WEIGHT.to(features.dtype).expand(len(features), -1, -1)).relu_()
    return Output(start.flatten(1), start.sum(1))


@pytest.fixture
def cuda(monkeypatch):
    streams = Streams()
    streams.install(monkeypatch)
    monkeypatch.setattr(graph, "_streams_in_use", set())
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("error")
        yield streams
        gc.collect()


def graphed(device: torch.device = DEVICES[0]) -> Graphed:
    return Graphed(network, device, torch.float32)


def assert_right(found: Output, features: torch.Tensor) -> None:
    for name, expected in vars(network(features.float())).items():
        assert torch.equal(getattr(found, name), expected), name


def test_portions_cover_the_batch_and_fill_graphs_up_by_a_third_at_most():
    for batch in range(1, 200):
        parts = portions(batch)
        assert sum(windows for windows, _ in parts) == batch
        assert all(size in BATCHES and windows <= size <= 4 / 3 * windows for windows, size in parts)
    assert portions(6) == [(6, 8)] and portions(5) == [(4, 4), (1, 1)] and portions(70) == [(32, 32), (32, 32), (6, 8)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_batch_gives_what_the_function_gives_and_results_stay(cuda, dtype):
    function = graphed()
    with cuda.watch():
        cases = [torch.randn(batch, 5, 4).to(dtype) for batch in (1, 2, 3, 5, 7, 33, 1, 3, 70)]
        found = [function(features) for features in cases]
    for output, features in zip(found, cases, strict=True):
        assert_right(output, features)
    assert set(function.captured) == set(BATCHES) - {16}


def test_any_number_of_batch_sizes_keeps_a_bounded_number_of_graphs_in_one_pool(cuda):
    function = graphed()
    with cuda.watch():
        for batch in range(1, 100):
            function(torch.randn(batch, 5, 4))
    assert len(function.captured) == len(cuda.captures) == len(BATCHES)
    assert len({id(capture["pool"]) for capture in cuda.captures}) == 1
    assert {capture["mode"] for capture in cuda.captures} == {"thread_local"}


def test_calls_from_many_streams_and_threads_never_race(cuda):
    function, lock = graphed(), threading.Lock()
    failures = []

    def work(number: int) -> None:
        try:
            generator = torch.Generator().manual_seed(number)
            with cuda.on_stream(cuda.Stream(DEVICES[0])), cuda.watch(), torch.inference_mode():
                for batch in (1, 3, 2, 8):
                    features = torch.randn(batch, 5, 4, generator=generator)
                    with lock:  # as Engine does
                        found = function(features)
                    assert_right(found, features)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_networks_on_two_streams_share_no_workspace_and_one_outlives_the_other(cuda):
    first, second = graphed(), graphed()
    features = torch.randn(2, 5, 4)
    one, other = (cuda.Stream(DEVICES[0]) for _ in range(2))
    with cuda.watch():
        for _ in range(3):
            for function, stream in ((first, one), (second, other)):
                with cuda.on_stream(stream):
                    assert_right(function(features), features)
        del first, function
        gc.collect()
        third = graphed()
        with cuda.on_stream(one):
            third(features)
        for stream in (one, other):
            with cuda.on_stream(stream):
                assert_right(second(features), features)


def test_the_simulation_finds_the_races_that_it_is_for(cuda):
    """PyTorch's default, one stream for all captures, makes two graphs race when replayed on two streams."""
    graphs = []
    with cuda.watch():
        for _ in range(2):
            given = torch.randn(2, 5, 4)
            graphs.append((cuda.CUDAGraph(), given))
            with cuda.graph(graphs[-1][0]):
                network(given)
        one, other = (cuda.Stream(DEVICES[0]) for _ in range(2))
        for stream in (one, other):  # after the inputs
            stream.wait_stream(cuda.current())
        with cuda.on_stream(one):
            graphs[0][0].replay()
        with cuda.on_stream(other), pytest.raises(Race, match="workspace"):
            graphs[1][0].replay()
        cuda.Stream(DEVICES[0]).synchronize()
        del graphs[0]
        gc.collect()
        with pytest.raises(Race, match="freed"):
            graphs[0][0].replay()


def test_a_second_device_captures_on_a_stream_of_its_own(cuda):
    features = torch.randn(3, 5, 4)  # from the host
    for device in DEVICES:
        with cuda.watch():
            found = graphed(device)(features)
        assert_right(found, features)
    assert [capture["stream"].device.index for capture in cuda.captures] == [0, 1]


def test_every_network_has_a_stream_while_there_are_any_and_gives_it_back(cuda):
    features = torch.randn(1, 5, 4)
    with cuda.watch():
        functions = [graphed() for _ in range(POOL)]
        for function in functions:
            assert_right(function(features), features)
        assert len({function._stream.cuda_stream for function in functions}) == POOL
        late = graphed()
        with pytest.warns(UserWarning, match="runs without CUDA graphs"):
            assert_right(late(features), features)
        del functions, function
        gc.collect()
        assert_right(graphed()(features), features)


def test_after_a_failed_capture_the_function_runs_by_itself_with_one_warning(cuda):
    function = graphed()
    with cuda.watch():
        cuda.fail = RuntimeError("operation not permitted when stream is capturing")
        features = torch.randn(3, 5, 4)
        with pytest.warns(UserWarning, match="without CUDA graphs, since a capture failed: operation not permitted"):
            assert_right(function(features), features)
        cuda.fail = None
        assert_right(function(torch.randn(3, 5, 4).copy_(features)), features)  # a further warning would be an error
    assert not function.captured


def test_inside_a_capture_of_the_callers_the_function_becomes_part_of_that_graph(cuda):
    function, given = graphed(), torch.zeros(2, 5, 4)
    with cuda.watch():
        whole = cuda.CUDAGraph()
        with cuda.graph(whole):
            scores = function(given)
        given.copy_(torch.randn(2, 5, 4))
        whole.replay()
        cuda.Stream(DEVICES[0]).synchronize()
    assert_right(scores, given)
    assert len(cuda.captures) == 1
