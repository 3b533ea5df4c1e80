"""Proposals from the maps of BMN and G-TAD, against the public codes' lists, small cases by hand, and a plain loop."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from bcnet_fast.config import AnchorProposalConfig, BMNConfig, Config, GTADConfig, MapProposalConfig
from bcnet_fast.data.annotations import VideoAnnotation
from bcnet_fast.data.class_scores import ClassScores
from bcnet_fast.data.timing import RescaledTime, SnippetTime, TimeResolver
from bcnet_fast.errors import InputError
from bcnet_fast.evaluation import Results
from bcnet_fast.geometry.proposal_map import proposal_map
from bcnet_fast.networks.outputs import MapOutput
from bcnet_fast.presets import PRESETS
from bcnet_fast.proposals import ProposalGenerator
from bcnet_fast.proposals.candidates import cell_candidates, likely_boundaries
from bcnet_fast.protocols import DEFAULT, RELEASES, CandidateRules, Protocol
from bcnet_fast.results.fusion import fuse

BMN, GTAD = RELEASES["bmn"], RELEASES["gtad"]
BMN_ANET, GTAD_ANET = PRESETS["bmn"]["activitynet13"], PRESETS["gtad"]["activitynet13"]
GTAD_THUMOS = PRESETS["gtad"]["thumos14"]
UNLIMITED = replace(GTAD_THUMOS, proposals=replace(GTAD_THUMOS.proposals, max_snippets=None))
WHOLE = {100: torch.tensor([100]), 256: torch.tensor([256, 256])}


def stored_output(path, *names: str) -> MapOutput:
    """Scores of one window, in the order of MapOutput's fields."""
    arrays = np.load(path)
    return MapOutput(*(torch.from_numpy(arrays[name])[None] for name in names))


@pytest.fixture(scope="module")
def outputs(golden) -> dict[str, MapOutput]:
    folder, names = golden / "bmn_gtad", ("start_g8", "end_g8", "iou_map_g8")
    windows = (stored_output(folder / f"gtad_thumos_forward{window}.npz", *names) for window in ("", "_winB"))
    return {
        "bmn": stored_output(folder / "bmn_forward.npz", "start", "end", "confidence_map"),
        "gtad_thumos": MapOutput.cat(list(windows)),
        "gtad_anet": stored_output(folder / "gtad_anet_forward.npz", *names),
    }


@pytest.fixture(scope="module")
def expected(golden) -> dict[str, np.lib.npyio.NpzFile]:
    names = ("bmn", "gtad_thumos", "gtad_anet")
    return {name: np.load(golden / "bmn_gtad" / f"{name}_post.npz") for name in names}


CASES = {
    "bmn": (BMN_ANET, BMN, [4950]),
    "gtad_thumos": (UNLIMITED, GTAD, [14304] * 2),
    "gtad_anet": (GTAD_ANET, GTAD, [1615]),
}


@pytest.mark.parametrize("name", CASES)
def test_release_rows_are_those_of_the_public_code_in_its_order(outputs, expected, name):
    """The stored checksum is over the public code's own rows: segments in snippets, then scores, bit for bit."""
    config, protocol, counts = CASES[name]
    found = cell_candidates(outputs[name], WHOLE[config.model.window], config, protocol.candidates)
    checksums = np.atleast_1d(expected[name]["rows_sha256"])
    for taken, scores, count, checksum in zip(found.taken, found.scores, counts, checksums, strict=True):
        assert taken.sum() == count
        rows = found.segments[taken].numpy().astype("<i8").tobytes() + scores[taken].numpy().astype("<f8").tobytes()
        assert hashlib.sha256(rows).hexdigest() == checksum


def assert_list(segments: torch.Tensor, scores: torch.Tensor, stored: np.ndarray, scale: float, shift: int = 0) -> None:
    """`stored` [n, 3]: score, start and end."""
    np.testing.assert_allclose(segments.numpy() * scale + shift, stored[:, 1:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(scores.numpy(), stored[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "kept"), [("bmn", 100), ("gtad_anet", 100)])
def test_release_soft_nms_of_a_rescaled_video_is_its_only_one(outputs, expected, name, kept):
    config, protocol, _ = CASES[name]
    found = ProposalGenerator(config, protocol).window_proposals(outputs[name], WHOLE[100])
    assert_list(found.segments, found.decayed, expected[name]["softnms"][:kept], 1 / 100)
    final = ProposalGenerator(config, protocol).video_proposals(found.segments, found.scores, found.decayed)
    assert_list(*final, expected[name]["softnms"][:kept], 1 / 100)


def test_release_of_bmn_in_seconds(outputs, expected):
    stored = expected["bmn"]
    video = str(stored["video"]).removeprefix("v_")
    about = VideoAnnotation(video, duration=float(stored["duration_second"]), frames=int(stored["duration_frame"]))
    times = TimeResolver(BMN_ANET, table={video: about})
    found = ProposalGenerator(BMN_ANET, BMN).window_proposals(outputs["bmn"], WHOLE[100])
    segments, scores = ProposalGenerator(BMN_ANET, BMN).video_proposals(found.segments, found.scores, found.decayed)
    seconds = times.resolve(video, 100, whole_snippets=BMN.windows.whole_snippets).seconds(segments)
    assert_list(seconds, scores, stored["final"], 1.0)
    # 3285 frames are 205 whole snippets of 16.
    assert times.resolve(video, 100).seconds(100.0) == about.duration
    assert times.resolve(video, 100, whole_snippets=True).duration == pytest.approx(about.duration * 3280 / 3285)


def test_release_of_bmn_asks_for_the_number_of_frames():
    times = TimeResolver(BMN_ANET, table={"x": VideoAnnotation("x", duration=9.0, fps=30.0)})
    with pytest.raises(InputError, match=r"video 'x' has no known number of frames.*; give --times FILE"):
        times.resolve("x", 100, whole_snippets=True)


def thumos_video(outputs, expected) -> tuple[torch.Tensor, torch.Tensor]:
    found = ProposalGenerator(GTAD_THUMOS, GTAD).window_proposals(outputs["gtad_thumos"], WHOLE[256])
    offsets = expected["gtad_thumos"]["offset_frames"]
    for window, name in enumerate("AB"):
        mine = found.window == window
        stored = expected["gtad_thumos"][f"softnms_{name}"]
        assert_list(found.segments[mine], found.decayed[mine], stored, 5.0, offsets[window])
    segments = found.segments + torch.from_numpy(offsets // 5)[found.window, None]
    return ProposalGenerator(GTAD_THUMOS, GTAD).video_proposals(segments, found.scores, found.decayed)


def test_release_of_g_tad_on_two_windows_decays_twice(outputs, expected):
    assert_list(*thumos_video(outputs, expected), expected["gtad_thumos"]["softnms_merged"], 5.0)


def detections(video: str, seconds: np.ndarray, scores: np.ndarray, classes: ClassScores, rule: str, **more) -> Results:
    return fuse(Results.from_dict({video: np.column_stack([seconds, scores])}), classes, rule, **more)


def test_release_detections_of_g_tad_on_thumos(outputs, expected):
    stored = expected["gtad_thumos"]
    video, fps, frames = str(stored["video"]), float(stored["fps"]), int(stored["num_frames"])
    segments, scores = thumos_video(outputs, expected)
    seconds = SnippetTime(5.0, 0.0, fps, None).seconds(segments.numpy())
    classes = ClassScores((video,), tuple(stored["class_names"].tolist()), stored["uNet_scores20"][None])
    found = detections(
        video, seconds, scores.numpy(), classes, "gtad", videos={video: VideoAnnotation(video, fps=fps, frames=frames)}
    )
    assert [found.label_names[label] for label in found.label] == stored["det_label"].tolist()
    np.testing.assert_array_equal(found.scores, stored["det_score"])
    # For proposals that begin after the video's end, the public code moves only the end: they end before they begin.
    # Here they have no length; neither overlaps anything.
    segments = stored["det_segment"].copy()
    inverted = segments[:, 0] > segments[:, 1]
    assert inverted.sum() == 78
    segments[inverted, 0] = segments[inverted, 1]
    np.testing.assert_array_equal(found.segments, segments)


def test_release_detections_of_g_tad_on_activitynet(outputs, expected):
    stored = expected["gtad_anet"]
    video = str(stored["video"])
    found = ProposalGenerator(GTAD_ANET, GTAD).window_proposals(outputs["gtad_anet"], WHOLE[100])
    segments, scores = ProposalGenerator(GTAD_ANET, GTAD).video_proposals(found.segments, found.scores, found.decayed)
    seconds = RescaledTime(100, float(stored["duration_second"])).seconds(segments.numpy())
    classes = ClassScores((video,), tuple(map(str, range(200))), stored["class_scores"][None])
    result = detections(video, seconds, scores.numpy(), classes, "product", top_k=2)
    # The public code lists all detections of the best class first.
    order = np.argsort(np.arange(200) % 2, kind="stable")
    assert [int(result.label_names[label]) for label in result.label[order]] == stored["det_label"].tolist()
    np.testing.assert_allclose(result.scores[order], stored["det_score"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.segments[order], stored["det_segment"], rtol=0, atol=1e-12)


def bmn(window: int, longest: int, layout: str = "start_end", **settings) -> Config:
    model = BMNConfig(window=window, max_duration=longest, map_layout=layout)
    return Config("own", model, proposals=MapProposalConfig(**{"max_snippets": None, **settings}))


def map_of(config: Config, regression: float, classification: float, start, end, background=None) -> MapOutput:
    """One window whose cells are all alike."""
    shape = proposal_map(config.model).shape
    confidence = torch.stack([torch.full(shape, regression), torch.full(shape, classification)])
    background = None if background is None else torch.full((1, *shape), background)
    return MapOutput(torch.tensor([start]), torch.tensor([end]), confidence[None], background)


def rows_of(found, window: int = 0) -> dict[tuple[int, int], float]:
    """Segment -> score of the candidates of one window, in their order."""
    taken = found.taken[window]
    pairs = zip(found.segments[taken].tolist(), found.scores[window][taken].tolist(), strict=True)
    return {tuple(segment): score for segment, score in pairs}


START, END = [0.5, 0.25, 1.0], [0.5, 0.125, 0.25]
FULL = {(0, 1): 1 / 16, (0, 2): 1 / 8, (0, 3): 1 / 8, (1, 2): 1 / 16, (1, 3): 1 / 16, (2, 3): 1 / 4}


@pytest.mark.parametrize("layout", ["start_end", "duration_start"])
def test_both_layouts_read_the_end_at_the_boundary_after_the_last_snippet(layout):
    config = bmn(3, 3, layout)
    output = map_of(config, 0.5, 2.0, START, END)
    found = rows_of(cell_candidates(output, torch.tensor([3]), config, DEFAULT.candidates))
    assert found == FULL
    assert list(found) == sorted(FULL, key=(lambda s: s) if layout == "start_end" else (lambda s: (s[1] - s[0], s[0])))
    short = replace(config, model=replace(config.model, max_duration=2))
    output = map_of(short, 0.5, 2.0, START, END)
    del found[0, 3]
    assert rows_of(cell_candidates(output, torch.tensor([3]), short, DEFAULT.candidates)) == found


def test_nothing_is_proposed_on_padding_unless_the_protocol_says_so():
    config = bmn(3, 3)
    output = MapOutput.cat([map_of(config, 0.5, 2.0, START, END)] * 3)
    lengths = torch.tensor([3, 2, 1])
    found = cell_candidates(output, lengths, config, DEFAULT.candidates)
    assert rows_of(found, 0) == FULL
    # Snippet 1 is the last one, so its probability stands for the boundary after it.
    assert rows_of(found, 1) == {(0, 1): 1 / 16, (0, 2): 1 / 16, (1, 2): 1 / 32}
    assert rows_of(found, 2) == {(0, 1): 1 / 4}
    assert (found.scores[~found.taken] == 0).all()
    padded = cell_candidates(output, lengths, config, CandidateRules(score_padding=True))
    assert [rows_of(padded, window) for window in range(3)] == [FULL] * 3


def test_a_release_leaves_out_what_reaches_the_window_s_end():
    config = bmn(3, 3)
    found = cell_candidates(map_of(config, 0.5, 2.0, START, END), torch.tensor([3]), config, BMN.candidates)
    assert rows_of(found) == {segment: score for segment, score in FULL.items() if segment[1] < 3}


def test_the_background_and_the_boundaries_are_factors_of_the_confidence():
    config = bmn(3, 3, boundary_scores=False)
    output = map_of(config, 0.5, 0.5, START, END, background=0.75)
    assert rows_of(cell_candidates(output, torch.tensor([3]), config, DEFAULT.candidates)) == dict.fromkeys(
        FULL, 1 / 16
    )


def test_likely_boundaries_are_strict_peaks_and_what_is_above_half_of_the_highest():
    #                      first   plateau     half  highest   peak       last
    values = torch.tensor([[0.0, 0.25, 0.25, 0.5, 1.0, 0.125, 0.25, 0.125, 0.875]])
    starts, ends = likely_boundaries(values, values, torch.tensor([9]))
    assert starts[0].nonzero().flatten().tolist() == [0, 4, 6]
    assert ends[0].nonzero().flatten().tolist() == [4, 6, 8]
    # With three snippets the highest is 0.25, and the plateau is above half of it.
    starts, ends = likely_boundaries(values, values, torch.tensor([3]))
    assert starts[0].nonzero().flatten().tolist() == [0, 1]
    assert ends[0].nonzero().flatten().tolist() == [1, 2]


def test_the_gate_takes_cells_between_likely_boundaries():
    config = bmn(4, 4, "duration_start", boundary_peaks=True, boundary_scores=False)
    output = map_of(config, 1.0, 1.0, [0.0, 0.1, 0.9, 0.0], [0.0, 0.9, 0.1, 0.0])
    # Starts 0 and 2; ends 1 and 3, and the window's end with 3.
    gated = [(0, 1), (2, 3), (2, 4), (0, 3), (0, 4)]
    assert list(rows_of(cell_candidates(output, torch.tensor([4]), config, DEFAULT.candidates))) == gated
    found = cell_candidates(output, torch.tensor([4]), config, GTAD.candidates)
    assert list(rows_of(found)) == [segment for segment in gated if segment[1] < 4]


def test_long_candidates_are_not_proposed_and_still_count_for_the_last_one():
    config = bmn(3, 2, max_snippets=2.0, boundary_scores=False)
    output = map_of(config, 0.5, 1.0, START, END)
    assert rows_of(cell_candidates(output, torch.tensor([3]), config, DEFAULT.candidates)) == {
        (0, 1): 0.5, (0, 2): 0.0, (1, 2): 0.5, (1, 3): 0.0, (2, 3): 0.5
    }  # fmt: skip
    drop_last = DEFAULT.with_switch("drop_last")
    for settings, kept in (({"max_snippets": 2.0}, 3), ({"max_snippets": None, "sigma": 100.0}, 4)):
        found = ProposalGenerator(bmn(3, 2, boundary_scores=False, **settings), drop_last).window_proposals(
            output, torch.tensor([3])
        )
        assert len(found.scores) == kept
    single = bmn(1, 1)
    one = map_of(single, 0.5, 1.0, [1.0], [1.0])
    assert len(ProposalGenerator(single, DEFAULT).window_proposals(one, torch.tensor([1])).scores) == 1
    assert len(ProposalGenerator(single, drop_last).window_proposals(one, torch.tensor([1])).scores) == 0


def test_equal_scores_come_in_the_order_of_the_map():
    config = bmn(6, 1)
    output = map_of(config, 0.5, 0.5, [0.0, 1.0, 1.0, 0.0, 1.0, 1.0], [1.0] * 6)
    found = ProposalGenerator(config, DEFAULT).window_proposals(MapOutput.cat([output, output]), torch.tensor([6, 6]))
    assert found.segments[:, 0].tolist() == [1, 2, 4, 5] * 2
    assert found.window.tolist() == [0] * 4 + [1] * 4
    assert found.scores.tolist() == found.decayed.tolist() == [0.25] * 8


def test_a_window_without_candidates_gives_no_proposals():
    config = bmn(5, 3)
    output = map_of(config, 0.0, 1.0, [1.0] * 5, [1.0] * 5)
    found = ProposalGenerator(config, DEFAULT).window_proposals(MapOutput.cat([output, output]), torch.tensor([5, 2]))
    segments, scores = ProposalGenerator(config, DEFAULT).video_proposals(found.segments, found.scores, found.decayed)
    assert len(found.window) == len(segments) == len(scores) == 0


def random_output(config: Config, windows: int) -> MapOutput:
    shape = (windows, *proposal_map(config.model).shape)
    boundaries = torch.rand(2, windows, config.model.window).mul(10).round() / 10  # rounded: equal neighbours
    return MapOutput(*boundaries, torch.rand(windows, 2, *shape[1:]), torch.rand(shape))


def plain_rows(output: MapOutput, window: int, length: int, config: Config, protocol: Protocol) -> dict:
    """The candidates of one window by loops over boundaries, in the map's order."""
    settings, size, longest = config.proposals, config.model.window, config.model.max_duration
    length = size if protocol.candidates.score_padding else length
    start, end = (curve[window].double().tolist() for curve in (output.start, output.end))

    def likely(curve: list[float], t: int) -> bool:
        if not 0 < t < length - 1:
            return False
        return curve[t - 1] < curve[t] > curve[t + 1] or curve[t] > 0.5 * max(curve[:length])

    found = {}
    for first in range(length):
        for after in range(first + 1, min(first + longest, length) + 1):
            if protocol.candidates.skip_window_end and after == size:
                continue
            stop = min(after, length - 1)
            if settings.boundary_peaks:
                if not (first == 0 or likely(start, first)) or not (stop == length - 1 or likely(end, stop)):
                    continue
            by_start = getattr(config.model, "map_layout", None) == "start_end"
            cell = (first, after - 1) if by_start else (after - first - 1, first)
            regression, classification = output.confidence[(window, slice(None), *cell)].double().tolist()
            score = start[first] * end[stop] if settings.boundary_scores else 1.0
            score *= classification * regression * (1 - output.background[(window, *cell)].item())
            too_long = settings.max_snippets is not None and after - first >= settings.max_snippets
            found[first, after] = 0.0 if too_long else score
    return found


@pytest.mark.parametrize("protocol", [DEFAULT, BMN, GTAD], ids=["default", "bmn", "gtad"])
@pytest.mark.parametrize("settings", [{}, {"boundary_peaks": True, "boundary_scores": False, "max_snippets": 5.5}])
@pytest.mark.parametrize(
    "model",
    [
        BMNConfig(window=13, max_duration=13),
        BMNConfig(window=13, max_duration=4),
        BMNConfig(window=13, max_duration=20, map_layout="duration_start"),
        GTADConfig(window=13, max_duration=7),
        GTADConfig(window=1, max_duration=1),
    ],
    ids=["bmn", "bmn-short", "bmn-durations", "gtad", "one-snippet"],
)
def test_candidates_equal_a_loop_over_boundaries(model, settings, protocol):
    config = Config("own", model, proposals=MapProposalConfig(**settings))
    lengths = torch.tensor([13, 9, 2, 1]).clamp(max=model.window)
    output = random_output(config, 4)
    found = cell_candidates(output, lengths, config, protocol.candidates)
    for window, length in enumerate(lengths.tolist()):
        wanted, rows = plain_rows(output, window, length, config, protocol), rows_of(found, window)
        assert rows.keys() == wanted.keys()
        for segment, score in rows.items():
            assert score == pytest.approx(wanted[segment], rel=1e-12), segment


def test_every_release_switch_changes_the_proposals_alone():
    """A switch that changes nothing would be a switch that is not connected."""
    config = Config("own", GTADConfig(window=20, max_duration=8), proposals=MapProposalConfig(window_top=400))
    output, lengths = random_output(config, 3), torch.tensor([20, 20, 11])

    def final(protocol: Protocol) -> list[list[float]]:
        found = ProposalGenerator(config, protocol).window_proposals(output, lengths)
        shifted = found.segments + 10 * found.window[:, None]
        segments, scores = ProposalGenerator(config, protocol).video_proposals(shifted, found.scores, found.decayed)
        return torch.column_stack([segments, scores]).tolist()

    baseline = final(DEFAULT)
    for switch in ("score_padding", "skip_window_end", "drop_last", "decay_twice"):
        assert final(DEFAULT.with_switch(switch)) != baseline, switch


def test_windows_of_a_batch_do_not_touch_each_other():
    config = Config("own", GTADConfig(window=20, max_duration=8), proposals=MapProposalConfig(window_top=7))
    output, lengths = random_output(config, 3), torch.tensor([20, 4, 11])
    together = ProposalGenerator(config, DEFAULT).window_proposals(output, lengths)
    for window in range(3):
        one = slice(window, window + 1)
        alone = ProposalGenerator(config, DEFAULT).window_proposals(
            output.map(lambda scores, one=one: scores[one]), lengths[one]
        )
        assert 0 < len(alone.scores) <= 7
        for column in ("segments", "scores", "decayed"):
            assert torch.equal(getattr(alone, column), getattr(together, column)[together.window == window])


def test_one_soft_nms_gives_a_rescaled_video_what_two_gave():
    """Without decay twice, the second pass over the picks of a single window picks the same in the same order."""
    for config in (PRESETS["bcnet"]["activitynet13"], BMN_ANET):
        assert config.data.rescale and config.proposals.top == config.proposals.window_top
        draw = torch.rand(300, 2, dtype=torch.float64).mul(100).sort(dim=1).values
        scores, offsets = torch.rand(300, dtype=torch.float64), torch.tensor([0, 300])
        decayed, kept = ProposalGenerator(config, DEFAULT).suppress(draw, scores, offsets, offsets.diff(), 100)
        once = ProposalGenerator(config, DEFAULT).video_proposals(draw[kept], scores[kept], decayed)
        again = torch.tensor([0, 100])
        twice, order = ProposalGenerator(config, DEFAULT).suppress(draw[kept], scores[kept], again, again.diff(), 100)
        assert torch.equal(once[0], draw[kept][order]) and torch.equal(once[1], twice)


def test_a_rescaled_video_keeps_its_best_proposals():
    settings = AnchorProposalConfig(window_top=100, top=2)
    config = replace(PRESETS["bcnet"]["activitynet13"], proposals=settings)
    segments, scores = torch.tensor([[1.0, 9.0], [0.0, 5.0], [2.0, 3.0]]), torch.tensor([0.5, 0.25, 0.125])
    final = ProposalGenerator(config, RELEASES["bcnet"]).video_proposals(segments, scores, scores)
    assert final[0].tolist() == [[1.0, 9.0], [0.0, 5.0]] and final[1].tolist() == [0.5, 0.25]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_gives_the_same_proposals(outputs, name):
    config, protocol, _ = CASES[name]
    lengths = WHOLE[config.model.window]
    wanted = ProposalGenerator(config, protocol).window_proposals(outputs[name], lengths)
    found = ProposalGenerator(config, protocol).window_proposals(outputs[name].map(torch.Tensor.cuda), lengths.cuda())
    for column, value in vars(wanted).items():
        assert torch.equal(getattr(found, column), value), column


def test_scores_of_another_system_are_refused():
    output = map_of(bmn(3, 3), 0.5, 0.5, [0.5] * 3, [0.5] * 3)
    with pytest.raises(TypeError, match="section is BCNetConfig, expected BMNConfig or GTADConfig"):
        ProposalGenerator(PRESETS["bcnet"]["thumos14"], DEFAULT).window_proposals(output, torch.tensor([3]))
