"""The record of a run's inputs."""

from __future__ import annotations

import os

import pytest

from bcnet_fast.inference.running import sha256


def test_a_folder_is_its_names_and_contents_whatever_bytes_the_names_have(tmp_path):
    folder = os.fsencode(tmp_path / "scores")
    os.mkdir(folder)

    def digest(**files: str) -> str | None:
        for name, text in files.items():
            with open(os.path.join(folder, os.fsencode(name) + b".csv"), "w") as file:
                file.write(text)
        found = sha256(tmp_path / "scores")
        for name in os.listdir(folder):
            os.remove(os.path.join(folder, name))
        return found

    strange = {"a": "1", "caf\udcff": "2"}
    try:
        first = digest(**strange)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    assert first == digest(**strange)
    assert len({first, digest(a="1", b="2"), digest(**(strange | {"a": "3"})), digest(a="1")}) == 4
