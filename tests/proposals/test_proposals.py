"""Candidates, matching, refinement, confidence and both Soft-NMS passes, against golden rows and a plain loop."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from support.plain_match import match_one_window, search

from bcnet_fast.config import AnchorProposalConfig, BCNetConfig, Config
from bcnet_fast.geometry.anchors import make_anchors, matching_table
from bcnet_fast.networks.outputs import BCNetOutput
from bcnet_fast.ops import MatchedProposals
from bcnet_fast.presets import PRESETS
from bcnet_fast.proposals import ProposalGenerator
from bcnet_fast.proposals import suppression as proposals
from bcnet_fast.proposals.candidates import match_candidates
from bcnet_fast.protocols import DEFAULT, NAMES, RELEASES, Protocol, protocol_for

THUMOS14 = PRESETS["bcnet"]["thumos14"]
RELEASE = RELEASES["bcnet"]
FRAMES = 5  # of a snippet


def network_output(*columns: np.ndarray) -> BCNetOutput:
    """Scores of one window, in the order of BCNetOutput's fields."""
    return BCNetOutput(*(torch.from_numpy(np.ascontiguousarray(column))[None] for column in columns))


@pytest.fixture(scope="module")
def windows(golden) -> dict[str, BCNetOutput]:
    model, rows = np.load(golden / "bcnet" / "model.npz"), np.load(golden / "bcnet" / "proposals.npz")
    unused = np.zeros(256)
    return {
        "model": network_output(
            *model["bpm"].T[[1, 2, 0]],
            model["frame_cls_a"],
            model["frame_cls_b"],
            *model["confidence_a"].T,
            model["confidence_b"],
        ),
        "synthetic": network_output(
            rows["synthetic_start"],
            rows["synthetic_end"],
            unused,
            unused,
            unused,
            *rows["synthetic_am"].T,
            rows["synthetic_bm"],
        ),
    }


def joined(*outputs: BCNetOutput) -> BCNetOutput:
    fields = [f.name for f in dataclasses.fields(BCNetOutput)]
    return BCNetOutput(*(torch.cat([getattr(output, name) for output in outputs]) for name in fields))


@pytest.fixture(scope="module")
def expected(golden):
    return np.load(golden / "bcnet" / "proposals.npz")


def proposals_of(found: MatchedProposals, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boundaries, segments and scores of one window, without padding."""
    count = found.counts[window]
    return tuple(column[window, :count].numpy() for column in (found.boundaries, found.segments, found.scores))


@pytest.mark.parametrize("name", ["model", "synthetic"])
def test_release_rows_come_out_one_by_one(windows, expected, name):
    found = match_candidates(windows[name], torch.tensor([256]), THUMOS14, RELEASE.candidates)
    boundaries, segments, scores = proposals_of(found, 0)
    rows, indices = expected[f"{name}_rows"], expected[f"{name}_aux"].astype(np.int64)
    np.testing.assert_array_equal(boundaries, indices[:, :2])
    start, end = boundaries.T
    np.testing.assert_array_equal(matching_table(256, 64)[start, end - start - 1], indices[:, 2])
    np.testing.assert_array_equal(segments * FRAMES, rows[:, :2])
    # The release lists proposals of 300 frames and more, and gives them the score 0 before Soft-NMS.
    kept = rows[:, 1] - rows[:, 0] < 300
    np.testing.assert_array_equal(scores, np.where(kept, rows[:, 7], 0.0))


@pytest.mark.parametrize("name", ["model", "synthetic"])
def test_release_soft_nms_of_a_window_and_of_its_video(windows, expected, name):
    found = ProposalGenerator(THUMOS14, RELEASE).window_proposals(windows[name], torch.tensor([256]))
    for segments, scores, stored in (
        (found.segments, found.decayed, expected[f"{name}_nms120"]),
        (
            *ProposalGenerator(THUMOS14, RELEASE).video_proposals(found.segments, found.scores, found.decayed),
            expected[f"{name}_nms120_then_nms1000"],
        ),
    ):
        np.testing.assert_array_equal(segments.numpy() * FRAMES, stored[:, 1:])
        np.testing.assert_allclose(scores.numpy(), stored[:, 0], atol=1e-12, rtol=1e-9)


def test_release_video_of_two_windows(windows, expected):
    both = joined(windows["model"], windows["synthetic"])
    found = ProposalGenerator(THUMOS14, RELEASE).window_proposals(both, torch.tensor([256, 256]))
    shifted = found.segments + 128 * found.window[:, None]
    segments, scores = ProposalGenerator(THUMOS14, RELEASE).video_proposals(shifted, found.scores, found.decayed)
    np.testing.assert_array_equal(segments.numpy() * FRAMES, expected["two_window_unrounded"][:, 1:])
    np.testing.assert_allclose(scores.numpy(), expected["two_window_unrounded"][:, 0], atol=1e-12, rtol=1e-9)


def random_output(rng: np.random.Generator, config: BCNetConfig) -> BCNetOutput:
    anchors = len(make_anchors(config.window, config.max_duration))
    return network_output(
        *(np.round(rng.random(config.window), 1).astype(np.float32) for _ in range(5)),  # rounded: equal neighbours
        *(rng.random(anchors).astype(np.float32) ** 0.2 for _ in range(2)),
        rng.random(anchors).astype(np.float32),
    )


@pytest.mark.parametrize(
    ("window", "longest", "length", "max_snippets"),
    [(3, 3, 3, None), (17, 9, 17, 7.5), (32, 40, 20, None), (61, 31, 2, 10.0), (100, 100, 99, None)],
)
def test_default_candidates_equal_a_loop_over_pairs(window, longest, length, max_snippets, rng):
    config = Config(
        "own",
        model=BCNetConfig(window=window, max_duration=longest),
        proposals=AnchorProposalConfig(max_snippets=max_snippets),
    )
    outputs = [random_output(rng, config.model) for _ in range(3)]
    found = match_candidates(joined(*outputs), torch.tensor([length] * 3), config, DEFAULT.candidates)
    anchors = make_anchors(window, longest).tolist()
    for w, output in enumerate(outputs):
        scores = (output.start, output.end, output.classification, output.regression, output.background)
        columns = [column[0].double().tolist() for column in scores]
        rows = match_one_window(*columns, anchors, search(anchors), longest, length=length, max_snippets=max_snippets)
        boundaries, segments, scores = proposals_of(found, w)
        expected = np.array(rows).reshape(-1, 5)
        np.testing.assert_array_equal(boundaries, expected[:, :2])
        np.testing.assert_array_equal(segments, expected[:, 2:4])
        np.testing.assert_array_equal(scores, expected[:, 4])


def test_every_release_switch_changes_the_proposals_alone(windows):
    """A switch that changes nothing would be a switch that is not connected."""
    both = joined(windows["model"], windows["synthetic"])
    lengths = torch.tensor([256, 130])

    def final(protocol: Protocol) -> torch.Tensor:
        found = ProposalGenerator(THUMOS14, protocol).window_proposals(both, lengths)
        columns = ProposalGenerator(THUMOS14, protocol).video_proposals(found.segments, found.scores, found.decayed)
        return torch.cat([columns[0], columns[1][:, None]], dim=1)

    baseline = final(DEFAULT)
    for switch in ("score_padding", "clamp_boundaries", "drop_last", "decay_twice"):
        changed = final(DEFAULT.with_switch(switch))
        assert changed.shape != baseline.shape or not torch.equal(changed, baseline), switch


def test_a_window_without_candidates_gives_no_proposals():
    zeros = np.zeros(256)
    flat = network_output(zeros, zeros, zeros, zeros, zeros, np.zeros(1218), np.zeros(1218), np.zeros(1218))
    found = ProposalGenerator(THUMOS14, DEFAULT).window_proposals(joined(flat, flat), torch.tensor([256, 256]))
    segments, scores = ProposalGenerator(THUMOS14, DEFAULT).video_proposals(found.segments, found.scores, found.decayed)
    assert len(found.window) == len(segments) == len(scores) == 0


def test_a_single_proposal_is_kept_by_default_and_lost_by_the_release(windows):
    segments, scores = torch.tensor([[3.0, 9.0]]).double(), torch.tensor([0.5]).double()
    kept = ProposalGenerator(THUMOS14, DEFAULT).video_proposals(segments, scores, scores)
    assert kept[0].tolist() == [[3.0, 9.0]] and kept[1].tolist() == [0.5]
    assert len(ProposalGenerator(THUMOS14, RELEASE).video_proposals(segments, scores, scores)[1]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_windows_as_a_gpu_takes_them_give_the_same_proposals(name, monkeypatch):
    """With the unused rows still among the others, since a GPU would have to be waited for to leave them out."""
    config = Config("small", model=BCNetConfig(window=40, max_duration=20))
    shapes = {"start": 40, "end": 40, "actionness": 40, "frame_action": 40, "frame_background": 40}
    anchors = len(make_anchors(40, 20))
    shapes |= dict.fromkeys(("regression", "classification", "background"), anchors)
    output = BCNetOutput(**{field: torch.rand(3, size) for field, size in shapes.items()})
    lengths = torch.tensor([40, 1, 13])  # in the second window there is no pair
    expected = ProposalGenerator(config, protocol_for(name, config)).window_proposals(output, lengths)
    monkeypatch.setattr(proposals, "_on_host", proposals._on_device)
    found = ProposalGenerator(config, protocol_for(name, config)).window_proposals(output, lengths)
    assert len(expected.scores) > 10
    for column, wanted in vars(expected).items():
        assert torch.equal(getattr(found, column), wanted), column
