"""The seeded generator: the same for everyone, readable by the package's own readers, and a fair task."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from bcnet_fast.data.annotations import read_annotations
from bcnet_fast.data.features import open_features
from bcnet_fast.data.synthetic import SyntheticConfig, make_videos, write_dataset
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
    instance = next(make_videos(1, seed=0, subset="validation")).annotation.instances[0]
    assert (instance.label, round(instance.start, 6), round(instance.end, 6)) == ("action_2", 4.457432, 10.738624)


def test_instances_are_ordered_and_inside_the_video():
    for video in make_videos(20, seed=3, subset="training"):
        annotation = video.annotation
        assert video.features.shape == (annotation.frames // CONFIG.stride, CONFIG.feature_dim)
        assert video.features.dtype == np.float32 and np.isfinite(video.features).all()
        times = np.array([(i.start, i.end) for i in annotation.instances]).reshape(-1)
        assert (np.diff(times) > 0).all()
        assert not len(times) or (times[0] > 0 and times[-1] <= annotation.duration)
        assert annotation.duration == pytest.approx(annotation.frames / annotation.fps)


def test_lengths_and_gaps_vary_and_videos_hold_several_instances():
    videos = [video.annotation for video in make_videos(40, seed=4, subset="training")]
    lengths = np.array([i.end - i.start for video in videos for i in video.instances])
    assert np.percentile(lengths, 95) > 2.5 * np.percentile(lengths, 5)
    assert np.median([len(video.instances) for video in videos]) >= 5
    assert len({i.label for video in videos for i in video.instances}) == CONFIG.classes


def test_actions_and_lookalikes_show_in_the_features_where_they_happen():
    silent = dataclasses.replace(CONFIG, signal=0.0)
    loud = dataclasses.replace(CONFIG, signal=30.0, lookalikes=0.0, scenes=1, gain=0.0)
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
    with pytest.raises(InputError, match="expected a folder to write to"):
        write_dataset(tmp_path / "file", [])
