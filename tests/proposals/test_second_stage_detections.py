"""Detections of second-stage networks: fusion, suppression, regression and mAP are those of the public codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.second_stage import SEED, STAGE2, listed
from support import seeded_second_stage

from bcnet_fast.config import DetectionConfig, RegressionStats
from bcnet_fast.data.annotations import Instance, VideoAnnotation
from bcnet_fast.evaluation import mean_average_precision
from bcnet_fast.geometry.proposal_windows import relative_segments
from bcnet_fast.networks.outputs import SecondStageOutput
from bcnet_fast.presets import SECOND_STAGE_PRESETS
from bcnet_fast.proposals.second_stage import Detections, StreamScores, detect, fuse_streams, stream_scores

FLOW_AND_RGB = ("flow", "rgb"), (1.2, 1.0)
RGB_AND_FLOW = ("rgb", "flow"), (1.0, 1.2)
PGCN, ANET, MUSES = (
    SECOND_STAGE_PRESETS[system][data].detections
    for system, data in (("pgcn", "thumos14"), ("pgcn", "activitynet13"), ("muses", "thumos14"))
)


def detections(videos, streams, weights, settings: DetectionConfig, classes: int = 20, **options) -> list[Detections]:
    found = []
    for video in videos:
        drawn = (
            seeded_second_stage.raw_scores(stream, video.name, video.labels, video.best_iou, classes, SEED)
            for stream in streams
        )
        scores = fuse_streams([StreamScores(*one) for one in drawn], weights)
        found.append(detect(scores, relative_segments(video.proposals, video.frames), settings, **options))
    return found


def rows(found: list[Detections], numbers: list[int] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Video, class and (start, end, score) of all detections, in the order of the golden files."""
    numbers = numbers or list(range(len(found)))
    video = np.concatenate([np.full(len(one.scores), number) for number, one in zip(numbers, found, strict=True)])
    label = np.concatenate([one.classes for one in found])
    columns = np.concatenate([np.column_stack([one.segments, one.scores]) for one in found])
    order = np.lexsort([-columns[:, 2], video, label])
    return video[order], label[order], columns[order]


def assert_golden(found: list[Detections], known, name: str, every: int = 1, numbers: list[int] | None = None) -> None:
    video, label, columns = (column[::every] for column in rows(found, numbers))
    assert np.array_equal(video, known[f"{name}_video"])
    assert np.array_equal(label, known[f"{name}_class"])
    np.testing.assert_allclose(columns, known[f"{name}_det"], rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def videos():
    return listed("thumos_test")


def test_detections_of_pgcn_are_the_golden_ones(videos):
    known = np.load(STAGE2 / "post_pgcn.npz")
    assert_golden(detections(videos[:2], ["flow"], [1], PGCN), known, "pgcn_flow")
    fused = detections(videos[:12], *FLOW_AND_RGB, DetectionConfig(nms_threshold=0.32))
    assert_golden(fused, known, "pgcn_fused", every=8)


def test_detections_on_activitynet_are_the_golden_ones():
    known, anet = np.load(STAGE2 / "post_pgcn.npz"), listed("anet")
    assert_golden(detections(anet, ["rgb"], [1], ANET, classes=200), known, "pgcn_anet")


def test_detections_of_muses_are_the_golden_ones(videos):
    known = np.load(STAGE2 / "post_muses.npz")
    assert_golden(detections(videos[:1], ["rgb"], [1], MUSES), known, "muses_rgb")
    fused = detections([*videos[:3], videos[12]], *RGB_AND_FLOW, MUSES)
    assert_golden(fused, known, "muses_fused", numbers=[0, 1, 2, 12])


CASES = {
    "pgcn_flow": (["flow"], [1], PGCN, {}),
    "pgcn_fused": (*FLOW_AND_RGB, DetectionConfig(nms_threshold=0.32), {}),
    "pgcn_fused_noreg": (*FLOW_AND_RGB, DetectionConfig(nms_threshold=0.2), {"regress": False}),
    "muses_rgb": (["rgb"], [1], MUSES, {}),
    "muses_fused": (*RGB_AND_FLOW, MUSES, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_average_precisions_are_the_golden_ones(videos, case):
    streams, weights, settings, options = CASES[case]
    known = json.loads((STAGE2 / "map.json").read_text())[case]
    used = videos if case.startswith("muses") else videos[:12]
    found = detections(used, streams, weights, settings, **options)
    assert sum(len(one.scores) for one in found) == known["detections"]
    results = {
        video.name: [
            {"label": str(label), "segment": segment, "score": score}
            for label, segment, score in zip(
                one.classes.tolist(), one.segments.tolist(), one.scores.tolist(), strict=True
            )
        ]
        for video, one in zip(used, found, strict=True)
    }
    truth = {
        video.name: VideoAnnotation(
            video.name,
            instances=tuple(
                Instance(*segment, str(label - 1))
                for label, segment in zip(
                    video.instance_labels, relative_segments(video.instances, video.frames).tolist(), strict=True
                )
            ),
        )
        for video in used
    }
    report = mean_average_precision(truth, results, tiou_thresholds=known["iou"])
    expected = np.array([known["ap"][int(label)] for label in report.labels])
    np.testing.assert_allclose(report.average_precision, expected, rtol=0, atol=1e-12)


def test_no_proposals_give_no_detections():
    scores = StreamScores(np.zeros((0, 4)), np.zeros((0, 3)), np.zeros((0, 3, 2)))
    found = detect(scores, np.zeros((0, 2)), PGCN)
    assert found.classes.shape == found.scores.shape == (0,) and found.segments.shape == (0, 2)


@pytest.mark.filterwarnings("error")
def test_of_two_empty_segments_at_one_place_the_better_stays():
    scores = StreamScores(np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 0.5]]), np.zeros((3, 1)), np.zeros((3, 1, 2)))
    found = detect(scores, np.array([[0.5, 0.5], [0.5, 0.5], [0.7, 0.7]]), PGCN)
    assert found.segments[:, 0].tolist() == [0.5, 0.7]


def test_the_best_pairs_are_kept_and_cut_to_the_video():
    activity = np.array([[0.0, 3.0, 1.0], [0.0, 2.0, -1.0]])
    regression = np.zeros((2, 2, 2))
    regression[0, 0] = 2.0, 0.0
    scores = StreamScores(activity, np.zeros((2, 2)), regression)
    found = detect(scores, np.array([[0.5, 0.9], [0.0, 0.2]]), DetectionConfig(top=2, nms_threshold=0.5))
    assert found.classes.tolist() == [0, 0]
    np.testing.assert_allclose(found.segments, [[1.0, 1.0], [0.0, 0.2]])
    unregressed = detect(scores, np.array([[0.5, 0.9], [0.0, 0.2]]), DetectionConfig(top=2), regress=False)
    assert unregressed.segments.tolist() == [[0.5, 0.9], [0.0, 0.2]]


def test_the_network_s_regression_is_put_back_into_its_units():
    output = SecondStageOutput(torch.zeros(1, 3), torch.zeros(1, 2), torch.ones(1, 2, 2))
    scores = stream_scores(output, RegressionStats((0.25, -0.5), (2.0, 4.0)))
    assert scores.regression.tolist() == [[[2.25, 3.5]] * 2]
    assert scores.activity.dtype == np.float64
    with pytest.raises(ValueError, match="reg_stats"):
        stream_scores(output, None)


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 0.0), (2.0, -1.0)])
def test_weights_that_are_no_shares_are_refused(weights):
    scores = StreamScores(np.zeros((1, 3)), np.zeros((1, 2)), np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match=r"weights is \[.*\], expected 2 numbers of a positive sum"):
        fuse_streams([scores, scores], weights)


def test_streams_of_other_proposals_are_refused():
    one, two = (StreamScores(np.zeros((n, 3)), np.zeros((n, 2)), np.zeros((n, 2, 2))) for n in (1, 2))
    with pytest.raises(ValueError, match=r"activity has shapes \[\[1, 3\], \[2, 3\]\], expected one for all streams"):
        fuse_streams([one, two], (1.0, 1.0))
