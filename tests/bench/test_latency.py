"""bench/latency.py: the work that its floors are made of, the fit of growth, and the baseline's post-processing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.networks import SMALL

import bcnet_fast
from bcnet_fast.config import Config
from bcnet_fast.errors import InputError
from bcnet_fast.ops import native


def test_work_of_the_released_network():
    """Computed by hand for T 256, P 1218, width 400, inner 512, hidden 2048, clip 2048 and the 89,664 taps of the
    plan."""
    from support.floors import bcnet_work, strassen_work

    from bcnet_fast.config import BCNetConfig
    from bcnet_fast.geometry.anchors import make_anchors
    from bcnet_fast.ops.sampling_plan import interpolated_plan

    taps = interpolated_plan(make_anchors(256, 64), 256).taps
    assert 2.2 < taps / (1218 * 32) < 2.4
    backbone = 3 * 256 * (2048 // 4 * 512 + 512 // 4 * 512 + 512 // 4 * 400)
    attention = 256 * 400 * 512 * 4 + 2 * 256 * 256 * 512
    feedforward = 2 * 256 * 400 * 2048
    half, whole = bcnet_work(BCNetConfig(), 0.5), bcnet_work(BCNetConfig(), 1.0)
    assert whole["backbones"] == 2 * backbone
    assert whole["boundary prediction"] == 35 * attention + 12 * feedforward + 256 * 400 * 3
    difference = 256 * 400 * 512 * 6 + 3 * 256 * 256 * 512
    heads_and_convolutions = 2 * 256 * 400 + 2 * 3 * 256 * 400 // 4 * 64
    assert whole["frame level"] == attention + difference + 4 * feedforward + heads_and_convolutions
    # Projected, then gathered: a product with 2048 channels a snippet, and a row added for each tap; two streams.
    projected = 256 * 2048 * 1536 + taps * 1536
    first_layer = 1218 * 512 * 2048 + 256 * 2048 * 2048 + taps * 2048
    stream = taps * 64 + projected + 2 * 1218 * 1218 * 512 + 1218 * 512 * 2048 + first_layer + 1218 * 2048 * 2048
    assert whole["clip level, every anchor"] == 2 * stream + 3 * 1218 * 2048 * 512
    needed = 1218 * (3 * 2048 * 512 + 3 * 1218 * 512 + 4 * 2048 * 2048 + 3 * 2048)
    assert whole["clip level, matched anchors"] == needed
    assert half["clip level, matched anchors"] == needed / 2
    assert {name for name in whole if whole[name] != half[name]} == {"clip level, matched anchors"}
    assert sum(whole.values()) == pytest.approx(70.9e9, rel=1e-2)
    # Linear layers, except float64 ones, projected samples, and heads.
    boundary_and_frames = (35 * 4 + 6) * 256 * 400 * 512 + 16 * feedforward
    every_anchor = 2 * 1218 * (2 * 512 * 2048 + 2048 * 2048) + 3 * 1218 * 2048 * 512
    every = boundary_and_frames + every_anchor + 1218 * (3 * 2048 * 512 + 4 * 2048 * 2048)
    assert strassen_work(BCNetConfig(), 1.0) == every
    assert strassen_work(BCNetConfig(width=40), 1.0) == 0  # too small for it


def test_exponent_of_a_power_law():
    from support.growth import exponent

    sizes = [128, 256, 1024]
    assert exponent(sizes, [3e-4 * size**1.7 for size in sizes]) == pytest.approx(1.7)


def test_python_post_processing_is_the_packages(rng):
    """All three stages of a video of two windows, one of them cut short."""
    from support.systems import PROTOCOL, plain

    from bcnet_fast.config import AnchorProposalConfig, BCNetConfig, Config
    from bcnet_fast.geometry.anchors import make_anchors
    from bcnet_fast.networks.outputs import BCNetOutput
    from bcnet_fast.proposals import ProposalGenerator

    config = Config(
        "own",
        model=BCNetConfig(window=48, max_duration=20),
        proposals=AnchorProposalConfig(window_top=40, top=60, max_snippets=16.0),
    )
    anchors = len(make_anchors(48, 20))
    frames = [torch.from_numpy(rng.random((2, 48)).astype(np.float32)) for _ in range(5)]
    # A negative regression gives no proposal.
    clips = [torch.from_numpy(rng.uniform(low, 1, (2, anchors)).astype(np.float32)) for low in (-0.2, 0, 0)]
    output, lengths = BCNetOutput(*frames, *clips), torch.tensor([48, 31])
    slow = plain(lambda features: output, config)
    expected, found = (
        ProposalGenerator(config, PROTOCOL).window_proposals(output, lengths),
        slow.postprocess(output, lengths),
    )
    assert found.window.bincount().tolist() == [40, 40]
    for name, column in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), column, rtol=0, atol=1e-12)

    columns = found.segments + 10 * found.window[:, None], found.scores, found.decayed
    for ours, theirs in zip(
        ProposalGenerator(config, PROTOCOL).video_proposals(*columns), slow.merge(*columns), strict=True
    ):
        assert len(theirs) == 60
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("peaks", [False, True])
@pytest.mark.parametrize("layout", ["start_end", "duration_start"])
def test_python_post_processing_of_maps_is_the_packages(rng, layout, peaks):
    from support.systems import PROTOCOL, plain

    from bcnet_fast.config import BMNConfig, Config, MapProposalConfig
    from bcnet_fast.geometry.proposal_map import proposal_map
    from bcnet_fast.networks.outputs import MapOutput
    from bcnet_fast.proposals import ProposalGenerator

    settings = MapProposalConfig(
        window_top=30, top=40, max_snippets=9.0, iou_threshold=(0.3, 0.9), boundary_peaks=peaks, boundary_scores=peaks
    )
    config = Config("own", BMNConfig(window=16, max_duration=12, map_layout=layout), proposals=settings)
    shape = proposal_map(config.model).shape
    scores = [torch.from_numpy(rng.random((2, *of_one)).astype(np.float32)) for of_one in ((16,), (16,), (2, *shape))]
    output, lengths = MapOutput(*scores), torch.tensor([16, 11])
    slow = plain(lambda features: output, config)
    expected, found = (
        ProposalGenerator(config, PROTOCOL).window_proposals(output, lengths),
        slow.postprocess(output, lengths),
    )
    assert len(found.window) > 40
    for name, column in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), column, rtol=0, atol=1e-12)
    columns = found.segments + 10 * found.window[:, None], found.scores, found.decayed
    for ours, theirs in zip(
        ProposalGenerator(config, PROTOCOL).video_proposals(*columns), slow.merge(*columns), strict=True
    ):
        assert len(theirs) == 40
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_work_over_a_map():
    """Computed by hand for BMN's release: 5050 cells, and the taps of their plan."""
    from support import floors

    from bcnet_fast.config import BMNConfig
    from bcnet_fast.geometry.proposal_map import proposal_map, sampling_plan

    model = BMNConfig()
    taps = sampling_plan(model, proposal_map(model).valid.ravel().nonzero()[0]).taps
    work = floors.network_work(model)
    assert work["sequence"] == 100 * (3 * 100 * 256 + 3 * 3 * 64 * 256 + 2 * 256 + 3 * 256 * 256)
    assert work["sampling and its projection"] == 32 * 100 * 256 * 512 + taps * 512
    assert work["layers over the map"] == 5050 * (512 * 128 + 2 * 9 * 128 * 128 + 2 * 128)


def test_matched_anchors_and_the_threshold_for_a_share(rng):
    from support.systems import matched_anchors, threshold_for

    from bcnet_fast.config import AnchorProposalConfig, BCNetConfig, Config
    from bcnet_fast.geometry.anchors import make_anchors, matching_table
    from bcnet_fast.networks.outputs import BCNetOutput

    def config(threshold: float) -> Config:
        return Config(
            "own", BCNetConfig(window=24, max_duration=12), proposals=AnchorProposalConfig(boundary_threshold=threshold)
        )

    anchors = len(make_anchors(24, 12))
    frames = [torch.from_numpy(rng.random((1, 24))) for _ in range(5)]
    output = BCNetOutput(*frames, *(torch.zeros(1, anchors, dtype=torch.float64) for _ in range(3)))
    lengths = torch.tensor([24])
    # All snippets are boundaries, so all pairs of the window match.
    everything = {matching_table(24, 12)[s, d - 1] for s in range(24) for d in range(1, 13) if s + d < 24}
    assert set(matched_anchors(output, lengths, config(0.0))[0].nonzero()[:, 0].tolist()) == everything
    shares = {t: float(matched_anchors(output, lengths, config(t)).float().mean()) for t in np.linspace(0, 1, 41)}
    wanted = shares[0.5]
    assert (
        float(
            matched_anchors(output, lengths, config(threshold_for(wanted, output, lengths, config(0.7)))).float().mean()
        )
        == wanted
    )


@pytest.mark.parametrize("system", ["bcnet", "bmn", "gtad"])
def test_every_step_that_is_timed_of_the_package_runs(system):
    from support.systems import Engine

    model = bcnet_fast.load("synthetic", model=system, device="cpu")
    engine, lengths = Engine(model), torch.tensor([96])
    output = engine.network(torch.randn(1, 32, 96), lengths)
    engine.candidates(output, lengths)
    found = engine.postprocess(output, lengths)
    segments, scores = engine.merge(found.segments, found.scores, found.decayed)
    assert len(segments) == len(scores)


@pytest.mark.slow  # draws all weights of the release
def test_bcnet_is_timed_with_the_weights_of_the_golden_outputs(tmp_path):
    from support.systems import write_checkpoint

    from bcnet_fast.storage.checkpoint import read_config

    assert read_config(write_checkpoint(tmp_path, "bcnet", "thumos14")).model.feature_dim == 2048


def test_help_works_and_an_unknown_variant_is_one_line(capsys):
    import latency

    with pytest.raises(SystemExit, match="0"):
        latency.main(["--help"])
    assert "--quick" in capsys.readouterr().out
    with pytest.raises(InputError, match="--only nothing: expected one of reference"):
        latency.main(["--only", "nothing"])


@pytest.mark.skipif(native.module is None, reason=str(native.reason))
def test_timed_kernels_give_the_same_scores_and_tell_their_work():
    from engine_profile import KERNELS, timed_kernels

    model = bcnet_fast.load(Config("own", SMALL), device="cpu")
    features = torch.randn(1, SMALL.feature_dim, SMALL.window)
    expected, calls = model(features), []
    module = native.module
    with timed_kernels(calls):
        found = model(features)
    assert native.module is module
    assert all(torch.equal(found.columns()[name], scores) for name, scores in expected.columns().items())
    assert all(any(name.startswith(kernel.replace("_", " ")) for kernel in KERNELS) for name, *_ in calls)
    products = {name: count for name, count, _ in calls}
    assert products["linear 24 x 12 -> 3"] == 24 * 12 * 3
    assert products["attention 24 x 24, 2 streams, float32"] == 24 * 24 * 3 * 16
    # Two of the frame level's convolutions, in float64, take 16 channels in 4 groups.
    assert products["convolution 24 x 16 -> 16, float64"] == 3 * 24 * 16 * 16 / 4
