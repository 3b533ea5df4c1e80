"""Effects of other processes and signals on a run: kills, closed pipes, a second run, files that change meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import SMALL
from helpers.paths import ROOT
from helpers.processes import PATIENCE_S, VIDEOS, group_lives, inference, lines, started, wait_until, write_archive
from helpers.sweeps import sweep
from helpers.training import EASY, arguments

from bcnet_fast import convert, evaluate, infer, train
from bcnet_fast.cli.parser import ended_at_once
from bcnet_fast.config import Config
from bcnet_fast.data import features as reading
from bcnet_fast.data.features import FeatureArchive, iterate, open_features
from bcnet_fast.data.synthetic import make_videos, write_dataset
from bcnet_fast.data.workers import read_in_order
from bcnet_fast.errors import InputError
from bcnet_fast.results.writer import ResultWriter
from bcnet_fast.storage import output as storage
from bcnet_fast.storage.checkpoint import save_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and locks as on Linux")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return write_archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    subsets = (("training", 6), ("validation", 2))
    write_dataset(folder, [v for name, count in subsets for v in make_videos(count, seed=1, subset=name, config=EASY)])
    return folder


@sweep("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_when_the_main_process_dies_its_workers_end_and_the_run_can_be_resumed_at_once(archive, tmp_path, number):
    output = tmp_path / "out.json"
    with started("infer", inference(archive, output, "--workers", 2)) as process:
        wait_until(lambda: lines(tmp_path / "out.json.partial") > 2)
        process.send_signal(number)
        errors = process.communicate()[1] if number == signal.SIGTERM else process.wait()
        # At once: the lock is that of the main process alone.
        assert not output.exists()
        assert infer.main(inference(archive, output, "--resume")) == 0
        wait_until(lambda: not group_lives(process.pid), 20)
    assert len(json.loads(output.read_text())["results"]) == VIDEOS
    assert list(tmp_path.iterdir()) == [output]
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert "finished videos; continue with --resume" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    "command", [["-m", "bcnet_fast.infer"], ["-m", "bcnet_fast", "infer"], ["-um", "bcnet_fast.infer"]], ids=" ".join
)
def test_ctrl_c_during_the_imports_of_a_command_ends_it_without_a_traceback(tmp_path, command):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    ended = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")  # 130 in a shell


@pytest.mark.parametrize("command", [["-m", "mine"], ["-um", "mine"], ["-mmine"]], ids=" ".join)
def test_the_library_leaves_ctrl_c_to_its_user(tmp_path, command):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import bcnet_fast")
    code = "import signal\nprint(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    (tmp_path / "mine" / "__main__.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, *command, "-m", "bcnet_fast.infer"]  # flags of that program
    started = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (started.stdout, started.stderr) == ("True\n", "")


def test_imports_that_end_leave_the_handlers_of_signals_as_they_were(monkeypatch):
    def handler(number, frame):
        raise AssertionError

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ended_at_once():
            assert [signal.getsignal(number) for number in before] == [signal.SIG_DFL] * 2
        assert [signal.getsignal(number) for number in before] == [handler] * 2
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def test_a_lock_is_not_inherited(tmp_path):
    writer = ResultWriter(tmp_path / "out.json", {})
    begun, begin = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(begin, b"x")
        time.sleep(PATIENCE_S)
        os._exit(0)
    os.read(begun, 1)
    try:
        with pytest.raises(InputError, match=r"out.json.partial is in use by another run"):
            ResultWriter(tmp_path / "out.json", {})
        writer.close()
        ResultWriter(tmp_path / "out.json", {}).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(begun)
        os.close(begin)


def test_a_second_training_in_a_folder_is_refused(data, tmp_path):
    flags = arguments(data, tmp_path / "run", model="gtad", settings=("train.epochs=100",))
    with started("train", flags) as process:
        wait_until((tmp_path / "run" / "log.csv").exists)
        with pytest.raises(InputError, match="run is in use by another run"):
            train.main([*flags, "--resume"])
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        errors = process.communicate()[1]
    assert process.returncode == 143
    assert "of 100 epochs; continue with --resume" in errors and "Traceback" not in errors
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_a_refused_training_leaves_no_folder(data, tmp_path):
    with pytest.raises(InputError, match="nothing"):
        train.main(arguments(data, tmp_path / "run", "--train-subset", "nothing"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # a process of its own
def test_a_closed_pipe_ends_a_training_with_what_is_finished(data, tmp_path):
    flags = arguments(data, tmp_path / "run", model="gtad", settings=("train.epochs=100",))
    with started("train", flags, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait() == 141
    assert "of 100 epochs; continue with --resume" in errors and "Traceback" not in errors


@pytest.mark.slow  # a process of its own
def test_closed_streams_change_nothing(archive, tmp_path):
    shutil.copytree(archive / "features", tmp_path / "features")
    shutil.copy(archive / "weights.safetensors", tmp_path)
    for file in sorted((tmp_path / "features").iterdir())[1:]:
        file.unlink()
    expected = tmp_path / "expected.json"
    assert infer.main(inference(tmp_path, expected)) == 0
    command = [sys.executable, "-m", "bcnet_fast.infer", *inference(tmp_path, tmp_path / "out.json")]
    shell = " ".join(command) + " <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", shell], timeout=PATIENCE_S).returncode == 0
    assert (tmp_path / "out.json").read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    ("redirection", "code", "errors"),
    [
        (">/dev/full", 2, "error: standard output cannot be written: No space left on device\n"),
        ("2>/dev/full >/dev/null", 0, ""),
        ("--nonsense 2>/dev/full", 2, ""),
        ("--nonsense 2>&-", 2, ""),
    ],
)
def test_full_streams_are_one_line_or_change_nothing(tmp_path, redirection, code, errors):
    segment = {"segment": [1.0, 2.0]}
    video = {"duration": 4.0, "subset": "test", "annotations": [segment | {"label": "x"}]}
    (tmp_path / "truth.json").write_text(json.dumps({"database": {"a": video}}))
    (tmp_path / "found.json").write_text(json.dumps({"results": {"a": [segment | {"score": 0.5}]}}))
    flags = "--proposals found.json --ground-truth truth.json --metric thumos14"
    shell = f"{sys.executable} -m bcnet_fast.evaluate {flags} {redirection}"
    done = subprocess.run(["sh", "-c", shell], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (code, errors)


def test_features_that_were_replaced_are_read_again(archive, tmp_path, rng, capsys):
    (tmp_path / "features").mkdir()
    for number in range(5):
        np.save(tmp_path / "features" / f"{number:02d}.npy", rng.standard_normal((60, 10)).astype(np.float32))
    shutil.copy(archive / "weights.safetensors", tmp_path)
    output, changed = tmp_path / "out.json", tmp_path / "features" / "00.npy"

    class Interrupted(ResultWriter):
        def add(self, video, *columns):
            super().add(video, *columns)
            if len(self.done) == 3:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bcnet_fast.inference.run.ResultWriter", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            infer.main(inference(tmp_path, output))
    for resumed in ("a partial file", "a finished one"):
        np.save(changed, np.load(changed)[::-1])
        capsys.readouterr()
        assert infer.main(inference(tmp_path, output, "--resume")) == 0
        assert "note: 1 video with other feature files than before" in capsys.readouterr().err, resumed
        assert infer.main(inference(tmp_path, tmp_path / "expected.json", "--overwrite")) == 0
        assert output.read_bytes() == (tmp_path / "expected.json").read_bytes(), resumed


def test_an_output_that_is_an_input_is_refused(archive, data, tmp_path):
    shutil.copytree(archive / "features", tmp_path / "features")
    shutil.copy(archive / "weights.safetensors", tmp_path)
    (tmp_path / "link.json").symlink_to(tmp_path / "features" / "00.npy")
    os.link(tmp_path / "weights.safetensors", tmp_path / "same.json")
    shutil.copytree(data / "features", tmp_path / "log.csv")
    evaluated = [tmp_path / "p.json", tmp_path / "t.json"]
    for path in evaluated:
        path.write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ground_truth = ["--metric", "thumos14", "--proposals", str(evaluated[0]), "--ground-truth", str(evaluated[1])]
    weights = str(tmp_path / "same.json")
    for main, flags, message in (
        (infer.main, inference(tmp_path, tmp_path / "features" / "01.npy", "--overwrite"), "--features"),
        (infer.main, inference(tmp_path, tmp_path / "link.json", "--overwrite"), "--features"),
        (infer.main, inference(tmp_path, tmp_path / "same.json", "--overwrite"), "--checkpoint"),
        (infer.main, inference(tmp_path, tmp_path / "new.json", "--trace", weights), "--checkpoint"),
        (evaluate.main, [*ground_truth, "--json", str(evaluated[1])], "--ground-truth"),
        (evaluate.main, [*ground_truth, "--json", str(evaluated[0])], "--proposals"),
        (
            convert.main,
            ["--preset", "thumos14", "--bmn", weights, "--output", weights[:-9] + "weights.safetensors"],
            "--bmn",
        ),
        (train.main, arguments(data, data / "features"), "--features"),
        (train.main, arguments(tmp_path / "x", tmp_path, "--features", str(tmp_path / "log.csv")), "--features"),
    ):
        with pytest.raises(InputError, match=f"is the file of {message}, expected another one"):
            main(flags)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_temporary_files_are_private_and_do_not_outlive_the_next_run(tmp_path, monkeypatch):
    seen = []
    for _ in range(2):
        with storage.atomic_path(tmp_path / "x.json") as path:
            path.write_text("1")
            seen.append(path.parent)
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            storage.require_writable(tmp_path / "other.json")  # leaves files in use
            assert path.exists()
    assert seen[0] != seen[1] and list(tmp_path.iterdir()) == [tmp_path / "x.json"]
    child = os.fork()
    if child == 0:
        with storage.atomic_path(tmp_path / "x.json") as path:
            path.write_text("2")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 2 and (tmp_path / "x.json").read_text() == "1"
    # Another container could leave it, with processes of the same numbers:
    (tmp_path / f".bcnet-{os.getpid()}-0123456789abcdef.tmp").mkdir()
    storage.require_writable(tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == [tmp_path / "x.json"]


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_replaced_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "x.json"
    storage.write_json(path, 1)
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(mode)
    storage.write_json(path, 2)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_files_and_names_are_on_disk_in_order(tmp_path, monkeypatch):
    """Content before the name, so that a power cut leaves no empty file."""
    calls = []
    sync, replace = os.fsync, os.replace

    def noted_sync(descriptor):
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def noted_replace(source, target):
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    config = Config("small", model=SMALL)
    save_checkpoint(tmp_path / "x.safetensors", {"a": torch.zeros(3)}, config)
    assert [Path(call).name for call in calls] == ["x.safetensors", "replace", tmp_path.name]


@pytest.mark.parametrize("deaths", [1, 100])
def test_a_killed_worker_costs_a_retry_or_its_video(archive, tmp_path, monkeypatch, deaths, capfd):
    videos = open_features(archive / "features", feature_dim=10)
    load, here = FeatureArchive.load, os.getpid()

    def dying(self, video):
        if video == "03" and os.getpid() != here and len(list(tmp_path.iterdir())) < deaths:
            (tmp_path / str(time.monotonic_ns())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, video)

    monkeypatch.setattr(FeatureArchive, "load", dying)
    found = dict(iterate(videos, videos.ids, workers=2))
    assert list(found) == videos.ids
    failed = {video: str(error) for video, error in found.items() if isinstance(error, InputError)}
    if deaths == 1:
        assert not failed
    else:
        assert failed == {"03": "the process that read video '03' was killed twice, probably because memory ran out"}
    for video, sequence in found.items():
        if video not in failed:
            assert np.array_equal(
                sequence.features, reading.from_array(np.load(archive / "features" / f"{video}.npy"), 10, "").features
            )
    assert "note: a process that reads features was killed" in capfd.readouterr().err


@pytest.fixture
def noticing():
    """The handler of PyTorch while it counts a worker that has died: it raises wherever the main thread is."""

    def handler(number, frame):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    before = signal.signal(signal.SIGCHLD, handler)
    yield
    signal.signal(signal.SIGCHLD, before)


def test_a_death_noticed_in_the_middle_of_other_work_costs_a_retry(noticing, capfd):
    """Simulates a handler that raises while `next` starts a thread, which turns its error into a KeyError."""

    def results(items, one_by_one):
        for item in items:
            if item == 2 and not one_by_one:
                try:
                    os.kill(os.getpid(), signal.SIGCHLD)
                    time.sleep(PATIENCE_S)
                except RuntimeError:
                    raise KeyError("thread") from None
            yield item

    assert list(read_in_order([1, 2, 3], results)) == [1, 2, 3]
    assert "note: a process that reads features was killed" in capfd.readouterr().err
    os.kill(os.getpid(), signal.SIGCHLD)  # the end of another process, for which the handler would raise again


def test_a_connection_that_ends_before_the_signal_of_a_death_costs_a_retry(noticing, capfd):
    def results(items, one_by_one):
        for item in items:
            if item == 2 and not one_by_one:
                threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGCHLD)).start()
                raise ConnectionResetError(104, "Connection reset by peer")
            yield item

    assert list(read_in_order([1, 2, 3], results)) == [1, 2, 3]
    assert "note: a process that reads features was killed" in capfd.readouterr().err


def test_the_end_of_another_process_is_no_death_where_handlers_call_each_other(capfd):
    """The first loader of a process sets PyTorch's handler, which calls the one that was set before it."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    class Loader:
        def __init__(self, items):
            self.items = items

        def __iter__(self):
            earlier = signal.getsignal(signal.SIGCHLD)
            signal.signal(signal.SIGCHLD, lambda number, frame: earlier(number, frame))
            return self.results()

        def results(self):
            for item in self.items:
                os.kill(os.getpid(), signal.SIGCHLD)
                yield item

    try:
        assert list(read_in_order([1, 2, 3], lambda items, one_by_one: Loader(items))) == [1, 2, 3]
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert capfd.readouterr().err == ""
