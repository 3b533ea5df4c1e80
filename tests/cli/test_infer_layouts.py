"""`infer`, `inspect` and `train` read the layouts for large archives as they read a folder of arrays."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.infer import run
from helpers.layouts import LAYOUTS

from bcnet_fast import inspect


@pytest.mark.parametrize("layout", ["folder_of_fixed", "tars", "hdf5_each"])
def test_infer_and_inspect_read_them_as_files_of_arrays(checkpoint, features, tmp_path, layout, capsys):
    expected = run(checkpoint, features)[1].read_text()
    videos = {path.stem: np.load(path) for path in features.iterdir()}
    path = LAYOUTS[layout](tmp_path, videos)
    code, output = run(checkpoint, path, output=tmp_path / "other.json")
    # The path is among the settings.
    assert code == 0 and output.read_text().replace(str(path), str(features)) == expected
    assert inspect.main([str(path), "--checkpoint", str(checkpoint), "--fps", "25"]) == 0
    assert f"usable: {len(videos)} videos" in capsys.readouterr().out
