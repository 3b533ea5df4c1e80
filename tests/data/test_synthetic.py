"""The seeded generator: the same for everyone, readable by the package's own readers, and a fair task."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from helpers.sweeps import sweep

from bcnet_fast.data.annotations import Instance, VideoAnnotation, read_annotations
from bcnet_fast.data.features import open_features
from bcnet_fast.data.synthetic import SyntheticConfig, make_videos, statistics_of, write_dataset
from bcnet_fast.errors import InputError

CONFIG = SyntheticConfig()


def test_videos_depend_on_seed_subset_and_index_alone():
    first = list(make_videos(3, seed=1, subset="validation"))
    again = list(make_videos(2, seed=1, subset="validation"))
    for a, b in zip(first, again, strict=False):
        assert a.annotation == b.annotation
        np.testing.assert_array_equal(a.features, b.features)
    others = [next(make_videos(1, seed=2, subset="validation")), next(make_videos(1, seed=1, subset="training"))]
    assert len({video.features.tobytes() for video in [*first, *others]}) == 5


def test_a_known_seed_gives_known_instances():
    _, video = make_videos(2, seed=0, subset="validation")
    instance = video.annotation.instances[0]
    assert (instance.label, round(instance.start, 6), round(instance.end, 6)) == ("action_4", 12.71191, 18.582996)


def test_instances_are_ordered_and_inside_the_video():
    for video in make_videos(20, seed=3, subset="training"):
        annotation = video.annotation
        assert video.features.shape == (annotation.frames // CONFIG.stride, CONFIG.feature_dim)
        assert video.features.dtype == np.float32 and np.isfinite(video.features).all()
        times = np.array([(i.start, i.end) for i in annotation.instances]).reshape(-1)
        assert (np.diff(times) > 0).all()
        assert not len(times) or (times[0] > 0 and times[-1] <= annotation.duration)
        assert annotation.duration == pytest.approx(annotation.frames / annotation.fps)


def test_defaults_are_the_statistics_of_thumos14(shared):
    path = shared / "data" / "annotations" / "thumos_anno_eval.json"
    found = statistics_of(read_annotations(path, "validation").values(), str(path))
    np.testing.assert_allclose(found.pop("alike"), CONFIG.alike, atol=0.011)
    for name, value in found.items():
        assert getattr(CONFIG, name) == value


FEW_LONG = SyntheticConfig(
    instances=(1.0, 3.0, 5.0), instance_s=(5.0, 20.0, 80.0), gap_s=(2.0, 10.0, 40.0), alike=(0.2, 0.8)
)


@sweep("config", [FEW_LONG, CONFIG], ids=["few_long", "thumos14"])
def test_videos_have_the_statistics_that_were_asked_for(config):
    """Read back from 400 videos; the tolerances are about twice the change from another seed."""
    small = dataclasses.replace(config, feature_dim=1)
    found = statistics_of([v.annotation for v in make_videos(400, seed=4, subset="training", config=small)], "")
    ranks = np.linspace(0.005, 0.995, 21)
    for name, tolerance in (("instances", 0.35), ("instance_s", 0.25), ("gap_s", 0.25)):
        asked = getattr(config, name)
        wanted = np.interp(ranks, np.linspace(0, 1, len(asked)), asked)
        # Short gaps grow by the rest of the video's last snippet; few videos say little about the rare extremes.
        np.testing.assert_allclose(found[name][5:-2], wanted[5:-2], rtol=tolerance)
    np.testing.assert_allclose(found["alike"], config.alike, atol=0.15)


def test_statistics_of_a_hand_made_pair():
    """Repeated, empty and impossible instances do not count, and where instances overlap there is no gap."""
    first = [(1.0, 3.0), (1.0, 3.0), (2.0, 4.0), (4.5, 4.5), (7.0, 12.0)]
    second = [(0.0, 8.0)]
    videos = [
        VideoAnnotation("v", 10.0, 25.0, instances=tuple(Instance(*segment, "x") for segment in segments))
        for segments in (first, second)
    ]
    found = statistics_of(videos, "file")
    ranks = np.linspace(0.005, 0.995, 21)
    for name, values in (("instances", [1, 2]), ("instance_s", [2, 2, 8]), ("gap_s", [1, 6, 0, 2])):
        np.testing.assert_allclose(found[name], np.quantile(values, ranks), atol=0.006)
    with pytest.raises(InputError, match="file has instances in 1 video, expected at least 2"):
        statistics_of(videos[:1], "file")


def test_statistics_where_little_is_known():
    """No durations, instances of a few milliseconds, lengths that are all alike or independent whole numbers."""
    rng = np.random.default_rng(0)
    starts = np.arange(10.0)
    videos = [
        VideoAnnotation(
            str(i), instances=tuple(Instance(s, s + 0.1 * n, "x") for s, n in zip(starts, of_one, strict=True))
        )
        for i, of_one in enumerate(rng.integers(1, 5, (200, 10)))
    ]
    found = statistics_of(videos, "file")
    assert found["alike"][0] < 0.02 and max(found["gap_s"]) <= 1
    brief = [VideoAnnotation(str(i), 9.0, instances=(Instance(1.0, 1.001, "x"),)) for i in range(2)]
    found = statistics_of(brief, "file")
    assert set(found["instance_s"]) == {0.01} and found["alike"][0] == 0
    video = next(make_videos(1, seed=0, subset="training", config=SyntheticConfig(**found)))
    assert np.isfinite(video.features).all()


def test_every_class_happens():
    videos = [video.annotation for video in make_videos(40, seed=4, subset="training")]
    assert len({i.label for video in videos for i in video.instances}) == CONFIG.classes


def test_lookalikes_fill_gaps_with_activity_that_is_no_instance():
    shares = []
    for pause_s in (CONFIG.pause_s, (1e6, 1e6)):
        config = dataclasses.replace(CONFIG, signal=30.0, scenes=1, gap_s=(30.0, 60.0), pause_s=pause_s)
        video = next(make_videos(1, seed=3, subset="training", config=config))
        time = (np.arange(len(video.features)) + 0.5) * config.stride / config.fps
        outside = np.ones(len(time), bool)
        for instance in video.annotation.instances:
            outside &= (time < instance.start - 0.7) | (time > instance.end + 0.7)
        distance = np.linalg.norm(video.features[outside] - np.median(video.features, axis=0), axis=1)
        shares.append((distance > 12).mean())
    assert shares[0] > 0.1 and shares[1] < 0.01


def test_actions_and_lookalikes_show_in_the_features_where_they_happen():
    silent = dataclasses.replace(CONFIG, signal=0.0)
    loud = dataclasses.replace(CONFIG, signal=30.0, pause_s=(1e6, 1e6), scenes=1, gain=0.0)
    video = next(make_videos(1, seed=5, subset="training", config=loud))
    quiet = next(make_videos(1, seed=5, subset="training", config=silent))
    assert abs(quiet.features.std() - 1) < 0.05
    time = (np.arange(len(video.features)) + 0.5) * loud.stride / loud.fps
    inside = np.zeros(len(time), bool)
    outside = np.ones(len(time), bool)
    for instance in video.annotation.instances:
        inside |= (time > instance.start + 0.6) & (time < instance.end - 0.6)
        outside &= (time < instance.start - 0.6) | (time > instance.end + 0.6)
    background = video.features[outside].mean(axis=0)
    distance = np.linalg.norm(video.features - background, axis=1)
    assert distance[inside].min() > distance[outside].max()


def test_written_data_set_is_read_back_by_the_package(tmp_path):
    videos = list(make_videos(3, seed=6, subset="validation"))
    features, annotations = write_dataset(tmp_path / "new", iter(videos))
    assert json.loads(annotations.read_text())["database"].keys() == {v.annotation.id for v in videos}
    assert read_annotations(annotations, "validation") == {v.annotation.id: v.annotation for v in videos}
    archive = open_features(features, feature_dim=CONFIG.feature_dim)
    for video in videos:
        np.testing.assert_array_equal(archive.load(video.annotation.id).features, video.features)
    assert np.load(features / "validation_0000.npy").shape == videos[0].features.shape


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_dataset(tmp_path / "file", [])
