"""`infer --ray` while workers, machines and drivers are killed, stopped and out of disk: the bytes of a single run.

tests/attack/kill_ray.py makes any number of kills.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys

import pytest
from attack.kill_ray import campaign, flags, machines, workers
from attack.kill_shards import compare
from helpers.disks import FULL, PLENTY, mounted
from helpers.processes import PATIENCE_S, inference, started, wait_until, write_archive

from bcnet_fast import infer, merge
from bcnet_fast.results.parts import parts_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes and signals as on Linux"),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'bcnet_fast[ray]'"
    ),
]
UNDISTURBED = {"lost": 0, "doubled": 0, "left behind": 0, "equal": True}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = write_archive(tmp_path_factory.mktemp("archive"))
    assert infer.main(inference(folder, folder / "expected.json")) == 0
    return folder


def test_killed_workers_machines_and_drivers_lose_and_double_nothing(tmp_path):
    with machines() as several:
        found = campaign(tmp_path, kills=12, part_format="jsonl", seed=12, several=several)
    assert found["kills"] == 12 and found == found | UNDISTURBED


def test_a_killed_local_cluster_loses_and_doubles_nothing(tmp_path):
    found = campaign(tmp_path, kills=6, part_format="parquet", seed=6, several=None)
    assert found["kills"] == 6 and found == found | UNDISTURBED


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_finished_and_refuses_a_second_run(archive, tmp_path, number, code):
    parts = archive / "parts"
    with started("infer", flags(archive, None, "jsonl")) as driver:
        wait_until(lambda: parts.exists() and len(parts_in(parts)) >= 2)
        computing = workers()
        for process in computing:  # the second run begins before the first one has done its work
            os.kill(process, signal.SIGSTOP)
        with started("infer", flags(archive, None, "jsonl")) as second:
            errors = second.communicate(timeout=PATIENCE_S)[1]
            assert second.returncode == 2 and f"{parts} is in use by another run" in errors
        for process in computing:
            os.kill(process, signal.SIGCONT)
        driver.send_signal(number)
        errors = driver.communicate(timeout=PATIENCE_S)[1]
    assert driver.returncode == code, errors
    kept = sum(len(path.read_bytes().splitlines()) > 0 for path in parts_in(parts))
    assert f"{parts} has {kept} finished videos; continue with --resume" in errors
    assert parts_in(parts) == sorted(parts.iterdir())
    _finish(archive)


def test_a_full_disk_is_one_line_and_keeps_whole_parts(archive, tmp_path):
    parts = archive / "parts"
    parts.mkdir()
    with mounted(parts) as resize:
        size = (archive / "expected.json").stat().st_size
        resize(size * 6 // 10)
        with started("infer", flags(archive, None, "jsonl")) as driver:
            errors = driver.communicate(timeout=PATIENCE_S)[1]
        assert driver.returncode == 2 and f"error: {parts} cannot be written: {FULL.split('|')[0]}" in errors
        assert parts_in(parts) == sorted(path for path in parts.iterdir() if path.name != ".ray.lock")
        resize(PLENTY)
        _finish(archive, remove=False)
    parts.rmdir()


def _finish(archive, remove: bool = True) -> None:
    """Complete a run, and compare it."""
    with started("infer", flags(archive, None, "jsonl")) as driver:
        errors = driver.communicate(timeout=PATIENCE_S)[1]
        assert driver.returncode == 0, errors
    found = UNDISTURBED.copy()
    compare(archive, archive / "expected.json", found)
    assert found == UNDISTURBED
    if remove:
        for path in (archive / "parts").iterdir():
            path.unlink()
        (archive / "parts").rmdir()


def test_a_video_that_kills_its_process_fails_and_the_others_have_results(archive, tmp_path, monkeypatch, capsys):
    """The archive of the workers is that of the driver, and here one that ends the process that reads a video."""
    import ray

    from bcnet_fast.inference import ray as ours

    opened, deadly = ours.open_inputs, "03"

    def open_inputs(options):
        inputs = opened(options)
        load = inputs.archive.load

        def kill_or_load(video):
            if video == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return load(video)

        inputs.archive.load = kill_or_load
        return inputs

    monkeypatch.setattr(ours, "open_inputs", open_inputs)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    parts, output = tmp_path / "parts", tmp_path / "merged.json"
    assert infer.main(inference(archive, parts, "--ray", "--workers", 1)) == 1
    reason = "the process that computed video '03' was killed 2 times, probably because memory ran out"
    assert f"failed: 03: {reason}" in capsys.readouterr().err
    assert merge.main([str(parts), "--output", str(output)]) == 1
    found, expected = (json.loads(path.read_text())["results"] for path in (output, archive / "expected.json"))
    del expected[deadly]
    assert found == expected
