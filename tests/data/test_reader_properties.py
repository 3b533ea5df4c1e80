"""Readers of users' files: a result or one clear line, whatever the file holds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bcnet_fast.data.annotations import read_annotations
from bcnet_fast.data.class_scores import read_class_scores
from bcnet_fast.data.features import open_features
from bcnet_fast.errors import InputError
from bcnet_fast.results.reader import read_results

properties = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
# Keys that the formats know, so that documents go some way in.
keys = st.sampled_from(
    ["database", "results", "annotations", "segment", "score", "label", "duration", "subset", "class", "v", "fps"]
) | st.text(max_size=3)
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
READERS = [read_annotations, read_results, read_class_scores]


def read(reader, path) -> None:
    """The file is read, or refused in one line that names it."""
    try:
        reader(path)
    except InputError as error:
        assert path.name in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@properties
@given(documents)
def test_any_json_is_read_or_refused(tmp_path, reader, document):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    read(reader, path)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@properties
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path, reader, content):
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    read(reader, path)


@properties
@given(st.binary(max_size=200), st.integers(0, 127))
def test_a_damaged_array_is_read_or_refused(tmp_path, junk, cut):
    path = tmp_path / "video.npy"
    np.save(path, np.zeros((3, 4), np.float32))
    path.write_bytes(path.read_bytes()[:cut] + junk)

    def open_and_load(path):
        archive = open_features(path.parent, feature_dim=4)
        for name in archive.ids:
            archive.load(name)

    read(open_and_load, path)
