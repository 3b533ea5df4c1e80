"""`infer --ray` and `predict` on a cluster of this machine: the bytes and values of one process, whatever is killed.

Without Ray only the first tests run. The long part is in tests/attack/kill_ray.py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.infer import CONFIG
from helpers.infer import flags as infer_flags
from helpers.networks import SMALL
from helpers.paths import ROOT
from helpers.processes import wait_until

from bcnet_fast import infer, merge
from bcnet_fast.data.shard import Shard
from bcnet_fast.data.timing import TimeFlags, TimeOptions
from bcnet_fast.errors import InputError
from bcnet_fast.inference import ray_cluster
from bcnet_fast.inference.options import InferOptions
from bcnet_fast.inference.predict import Failure
from bcnet_fast.inference.ray_worker import Job, Worker
from bcnet_fast.inference.run import open_inputs
from bcnet_fast.inference.shards import about_run
from bcnet_fast.networks.reference.bcnet import BCNet
from bcnet_fast.results.parts import parts_in
from bcnet_fast.results.reader import read_results
from bcnet_fast.storage.checkpoint import save_checkpoint
from bcnet_fast.storage.optional import require_pyarrow

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'bcnet_fast[ray]'"
)
BAD = "broken"
LENGTHS = {f"video_{number}": 20 + 9 * number for number in range(12)}  # snippets
VIDEOS = len(LENGTHS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_checkpoint(path, BCNet(SMALL).state_dict(), CONFIG)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """A folder of features, and the result of one process beside it."""
    draw = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("archive") / "features"
    folder.mkdir()
    for video, length in LENGTHS.items():
        np.save(folder / f"{video}.npy", draw.standard_normal((length, 10)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def expected(checkpoint, archive) -> Path:
    path = archive.parent / "expected.json"
    assert infer.main(infer_flags(checkpoint, archive, "--device", "cpu", output=path)) == 0
    return path


@pytest.fixture(scope="module")
def cluster():
    """Three CPUs: two workers, and one to read datasets."""
    with ray_cluster.cluster("local", 3) as ray:
        yield ray


def merged(archive: Path, parts: Path) -> tuple[int, bytes]:
    output = parts.with_name("merged.json")
    arguments = [parts, "--output", output, "--features", archive, "--overwrite"]
    return merge.main([str(argument) for argument in arguments]), output.read_bytes()


@pytest.mark.parametrize(
    "more, message",
    [
        (("--ray", "--shard", "0/1"), "--ray and --shard exclude each other, expected one of them"),
        (("--ray", "clip.mp4"), "--ray is 'clip.mp4', expected HOST:PORT of a cluster"),
        (("--ray", "127.0.0.1:9"), r"--ray 127.0.0.1:9 does not answer \(.+\), expected a cluster that runs"),
        (("--cpus-per-worker", 2), "--cpus-per-worker needs --ray"),
        (("--shard", "0/1", "--gpus-per-worker", 1), "--gpus-per-worker needs --ray"),
        (("--ray", "--cpus-per-worker", 0), "--cpus-per-worker is 0, expected at least 1"),
        (("--ray", "--profile"), "--profile and --trace time one process, expected no --ray"),
        (("--ray", "--page", "out.html"), "--page needs the results of all shards, expected no --ray"),
        (("--ray", "--device", "cuda"), "--device is cuda with --ray, expected --gpus-per-worker too"),
    ],
)
def test_flags_that_do_not_fit_are_refused(checkpoint, archive, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        infer.main(infer_flags(checkpoint, archive, *more, output=tmp_path / "parts"))
    assert not (tmp_path / "parts").exists()


def test_a_missing_ray_is_one_line_that_names_its_extra(checkpoint, archive, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"^Ray is not installed, which --ray needs: pip install 'bcnet_fast\[ray\]'"):
        infer.main(infer_flags(checkpoint, archive, "--ray", output=tmp_path / "parts"))
    assert not (tmp_path / "parts").exists()


def test_a_cluster_that_does_not_start_is_one_line(monkeypatch):
    """Ray raises `Exception` itself where a loaded machine takes too long."""

    def init(**_):
        raise Exception("The current node timed out during startup. Perhaps\nmore")

    ray = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: None)
    monkeypatch.setattr(ray_cluster, "require_ray", lambda: ray)
    with pytest.raises(InputError, match=r"^--ray local: The current node timed out during startup. Perhaps; expected"):
        with ray_cluster.cluster("local", 2):
            pass


@pytest.fixture
def job(checkpoint, archive, tmp_path) -> Job:
    """The orders of a driver to its workers."""
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "marker").touch()
    times = TimeOptions(TimeFlags(fps=25))
    options = InferOptions(
        str(archive), str(parts), checkpoint=str(checkpoint), time=times, device="cpu", part_videos=1, resume=True
    )
    inputs = open_inputs(options)
    return Job(options, inputs, about_run(options, inputs), str(tmp_path), "marker")


def test_a_worker_does_one_video_or_gives_it_up_and_then_the_rest(job):
    shard, worker = Shard(0, 1), Worker(job)
    assert worker.ready().error is None
    first, second, *rest = worker.left(shard).left
    assert len(rest) == VIDEOS - 2
    assert second not in worker.run_one(shard, second).left
    assert worker.give_up(shard, first, "killed").report.failures == (Failure(first, "killed"),)
    report = worker.run(shard).report
    assert (report.videos, report.failures) == (VIDEOS - 1, (Failure(first, "killed"),))
    assert len(parts_in(job.options.output)) == VIDEOS


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"marker": "other"},
            r"the Ray worker on \S+ does not see the folder .*parts that infer --ray was started with",
        ),
        (
            {"features": "gone"},
            r"the Ray worker on \S+ does not see gone, which .*expected storage that all machines have",
        ),
        (
            {"version": "0.0.1"},
            r"the Ray worker on \S+ has bcnet_fast .*, expected 0.0.1 as where infer --ray was started",
        ),
        ({"precision": "fp64"}, r"the Ray worker on \S+ has other values of precision"),
    ],
    ids=["output", "features", "version", "settings"],
)
def test_a_worker_on_a_machine_that_lacks_something_says_so_in_one_line(job, changes, message):
    of_job = {name: value for name, value in changes.items() if name in ("marker", "version")}
    of_options = {name: value for name, value in changes.items() if name not in of_job}
    worker = Worker(replace(job, options=replace(job.options, **of_options), **of_job))
    assert re.match(message, worker.ready().error or "")


@needs_ray
class TestOnACluster:
    @pytest.fixture(autouse=True)
    def _running(self, cluster):
        self.ray = cluster

    def test_the_result_is_that_of_one_process_although_a_worker_is_killed_and_a_video_is_bad(
        self, checkpoint, archive, expected, tmp_path, capsys
    ):
        features, parts, killed = tmp_path / "features", tmp_path / "parts", []
        features.mkdir()
        for path in archive.iterdir():
            (features / path.name).hardlink_to(path)
        (features / f"{BAD}.npy").write_bytes(b"nothing")

        def kill() -> None:
            wait_until(lambda: parts.exists() and len(parts_in(parts)) >= 2 and bool(holders(parts)))
            for process in holders(parts):
                os.kill(process, signal.SIGKILL)
                killed.append(process)

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        flags = infer_flags(checkpoint, features, "--device", "cpu", "--ray", output=parts)
        assert infer.main([*flags, "--workers", "2", "--part-videos", "1"]) == 1
        thread.join()
        output, errors = capsys.readouterr()
        assert killed and f"parts: {VIDEOS} videos, " in output and f"failed: {BAD}: " in errors
        assert merged(features, parts)[0] == 1
        with pytest.raises(InputError, match="continue with --resume, or replace them with --overwrite"):
            infer.main(flags)
        with pytest.raises(InputError, match="from a run with other values of precision"):
            infer.main([*flags, "--resume", "--precision", "fp64"])
        (features / f"{BAD}.npy").unlink()
        before = parts_in(parts)
        assert infer.main([*flags, "--resume", "--workers", "1"]) == 0
        assert parts_in(parts) == before == sorted(parts.iterdir())
        code, found = merged(features, parts)
        settings = f'"features": "{features}"'.encode()
        assert code == 0 and found.replace(settings, f'"features": "{archive}"'.encode()) == expected.read_bytes()

    def test_a_dataset_of_features_becomes_one_of_proposals_and_errors(self, checkpoint, archive, expected):
        from bcnet_fast.inference.ray import predict

        rows = [{"video": path.stem, "features": np.load(path)} for path in sorted(archive.iterdir())]
        rows.append({"video": BAD, "features": np.full((30, 10), np.nan, np.float32)})
        found = predict(
            self.ray.data.from_items(rows), str(checkpoint), fps=25, workers=1, videos_a_batch=4
        ).to_pandas()
        errors = found[found["error"].notna()]
        assert errors["video"].tolist() == [BAD] and "NaN" in errors["error"].iloc[0]
        wanted = read_results(expected).to_dict()
        good = found[found["error"].isna()]
        assert set(good["video"]) == set(wanted)
        for video, rows_of in good.groupby("video"):
            assert rows_of["rank"].tolist() == list(range(1, len(rows_of) + 1))
            assert rows_of["score"].tolist() == [entry["score"] for entry in wanted[video]]
            assert rows_of[["start", "end"]].values.tolist() == [entry["segment"] for entry in wanted[video]]

    def test_the_pipeline_of_the_page_runs(self, checkpoint, archive, tmp_path):
        page = (ROOT / "docs/how_to/archives.md").read_text(encoding="utf-8")
        [block] = re.findall(r"^```py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        # Ray's workers have a folder of their own, and this cluster has fewer of them.
        for stated, here in {
            "features.parquet": tmp_path / "features.parquet",
            "best.safetensors": checkpoint,
            "proposals/": tmp_path / "proposals",
            "workers=4": "workers=1",
        }.items():
            assert block.count(stated) == 1
            block = block.replace(stated, str(here))
        arrays = {path.stem: np.load(path).tolist() for path in archive.iterdir()}
        pyarrow = require_pyarrow()
        table = pyarrow.table({"video": list(arrays), "features": list(arrays.values())})
        pyarrow.parquet.write_table(table, tmp_path / "features.parquet")
        exec(compile(block, "archives.md", "exec"), {})
        found = pyarrow.parquet.read_table(tmp_path / "proposals").to_pydict()
        assert set(found["video"]) == set(arrays) and not any(found["error"])


def holders(parts: Path) -> list[int]:
    """Processes that hold a shard."""
    found = set()
    locks = list(parts.glob(".part-*.lock"))
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        for lock in locks:
            try:
                if os.path.samefile(link, lock):
                    found.add(int(link.parts[2]))
            except OSError:
                continue
    return sorted(found - {os.getpid()})
