"""`infer`, `merge` and the others with addresses: the bytes of a local run, whatever fails, is slow or is killed."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.hub import REPO, hub_server
from helpers.infer import flags
from helpers.s3 import s3_server

from bcnet_fast import evaluate, extract, infer, inspect, merge, train
from bcnet_fast.errors import InputError
from bcnet_fast.results.parts import parts_in
from bcnet_fast.storage.address import Address
from bcnet_fast.storage.remote import listed

fsspec = pytest.importorskip("fsspec", reason="needs fsspec, of the extra remote")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def upload(fs, root: str, features: Path, checkpoint: Path) -> None:
    for path in features.iterdir():
        fs.pipe_file(f"{root}/features/{path.name}", path.read_bytes())
    fs.pipe_file(f"{root}/small.safetensors", checkpoint.read_bytes())


@pytest.fixture
def memory(features, checkpoint, tmp_path):
    """The archive and the checkpoint, at an address."""
    fs, root = fsspec.filesystem("memory"), f"/{tmp_path.name}"
    upload(fs, root, features, checkpoint)
    yield f"memory:/{root}", fs
    fs.rm("/", recursive=True)


def inputs(root: str, output: Any, *more: object) -> list[str]:
    checkpoint: Any = f"{root}/small.safetensors"
    features: Any = f"{root}/features"
    return flags(checkpoint, features, *more, output=output)


def run(root: str, output: object, *more: object) -> int:
    return infer.main(inputs(root, output, *more))


def expected_of(root: str, folder: Path) -> bytes:
    """The files that one run writes to this machine."""
    assert run(root, folder / "expected.json") == 0
    return (folder / "expected.json").read_bytes()


def test_a_result_at_an_address_has_the_bytes_of_a_local_one(memory, tmp_path, capsys):
    root, fs = memory
    expected = expected_of(root, tmp_path)
    output = f"{root}/out.json"
    assert run(root, output) == 0
    assert fs.cat_file(output) == expected
    with pytest.raises(InputError, match=r"out\.json exists; replace it with --overwrite"):
        run(root, output)
    assert run(root, output, "--resume") == 0 and "4 of 4 videos are already done" in capsys.readouterr().out
    fs.pipe_file(f"{root}/features/a.npy", b"nothing")  # newer than the result
    assert run(root, output, "--resume") == 1 and "failed: a: " in capsys.readouterr().err
    assert [name for name in fs.find(root) if ".tmp" in name or "partial" in name] == []
    assert not list((tmp_path / "cache" / "bcnet_fast").iterdir())


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_parts_at_an_address_join_to_the_bytes_of_one_run(memory, tmp_path, kind, capsys):
    root, fs = memory
    expected = expected_of(root, tmp_path)
    for _ in range(2):  # the second time there is nothing to do
        for shard in range(2):
            more = ("--shard", f"{shard}/2", "--resume", "--part-videos", 1, "--part-format", kind)
            assert run(root, f"{root}/parts", *more) == 0
    assert len(parts_in(Address(f"{root}/parts"))) == 4
    output = f"{root}/merged.json"
    assert merge.main([f"{root}/parts", "--output", output, "--features", f"{root}/features"]) == 0
    assert fs.cat_file(output) == expected
    # Two runs of one shard at the same time see no parts of each other: the work is done twice, and counted once.
    second = f"{root}/second"
    assert run(root, second, "--shard", "1/2", "--part-format", kind) == 0
    for part in fs.ls(second, detail=False):
        fs.mv(part, f"{root}/parts/{Path(part).name}")
    again = tmp_path / "again.json"
    capsys.readouterr()
    assert merge.main([f"{root}/parts", "--output", str(again), "--features", f"{root}/features"]) == 0
    assert "4 duplicates removed" in capsys.readouterr().out and again.read_bytes() == expected


def test_two_runs_of_a_shard_never_write_the_same_part(memory):
    root, fs = memory
    for _ in range(2):
        assert run(root, f"{root}/parts", "--shard", "0/1", "--resume", "--retry-failed") == 0
        for part in fs.ls(f"{root}/parts", detail=False):
            fs.mv(part, f"{root}/kept/{Path(part).name}")
    assert len(fs.ls(f"{root}/kept", detail=False)) == 2


def test_a_result_that_cannot_be_stored_is_told_before_the_work(memory, tmp_path, monkeypatch):
    root, fs = memory
    monkeypatch.setattr(type(fs), "put_file", lambda *args, **options: (_ for _ in ()).throw(PermissionError("no")))
    monkeypatch.setattr("bcnet_fast.inference.run.Run.predict", lambda *args: pytest.fail("it has begun"))
    for more in ((), ("--shard", "0/1")):
        with pytest.raises(InputError, match=r"^memory://\S+ cannot be reached \(no\)$"):
            run(root, f"{root}/new/out.json", *more)


def test_inspect_and_evaluate_read_addresses(memory, tmp_path, capsys):
    root, fs = memory
    fs.pipe_file(f"{root}/expected.json", expected_of(root, tmp_path))
    video = {"duration": 20, "subset": "test", "annotations": [{"segment": [1, 9], "label": "x"}]}
    truth = {"database": dict.fromkeys("abcd", video)}
    fs.pipe_file(f"{root}/truth.json", json.dumps(truth).encode())
    assert inspect.main([f"{root}/features", "--checkpoint", f"{root}/small.safetensors", "--fps", "25"]) == 0
    assert "usable: 4 videos" in capsys.readouterr().out
    files = ["--proposals", f"{root}/expected.json", "--ground-truth", f"{root}/truth.json"]
    assert evaluate.main([*files, "--metric", "thumos14"]) == 0
    fs.pipe_file(f"{root}/truth.json", b"{")
    with pytest.raises(InputError, match=r"^memory://\S+/other.json"):
        fs.pipe_file(f"{root}/other.json", b"{")
        evaluate.main([*files[:3], f"{root}/other.json", "--metric", "thumos14"])


@pytest.mark.parametrize(
    ("main", "arguments", "name"),
    [
        (infer.main, ["--features", "x", "--output", "o.json", "--plot", "s3://b/p?k=secret"], "--plot"),
        (infer.main, ["--features", "x", "--output", "o.json", "--refine", "gs://b/w.safetensors"], "--refine"),
        (
            train.main,
            ["--features", "s3://b/x", "--output", "s3://b/run"],
            "--output",
        ),
        (extract.main, ["clip.mp4", "--output", "https://me:secret@host/x"], "--output"),
    ],
)
def test_an_address_where_none_is_allowed_is_one_line(main, arguments, name):
    with pytest.raises(InputError) as error:
        main(arguments)
    text = str(error.value)
    assert text.startswith(f"{name} is ") and "expected a local path" in text and "secret" not in text


def test_settings_and_output_have_no_signature(memory, tmp_path, capsys):
    """A signature changes with each run: neither the fingerprint nor the output has it."""
    root, _ = memory
    secret = Address(f"{root}/features?X-Amz-Signature=secret")
    assert "secret" not in f"{secret}{secret!r}{json.dumps({'features': str(secret)})}"
    assert run(root, tmp_path / "out.json") == 0
    settings = json.loads((tmp_path / "out.json").read_text())["external_data"]["settings"]
    assert settings["features"] == f"{root}/features"


@pytest.fixture(scope="module")
def s3():
    """A server, and an environment for the libraries of users of S3."""
    pytest.importorskip("s3fs", reason="needs s3fs")
    pytest.importorskip("moto.server", reason="needs moto[server]")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with s3_server() as (faulty, url):
        about = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hunter2"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**about, "AWS_DEFAULT_REGION": "us-east-1"}.items():
                patch.setenv(name, value)
            fs = fsspec.filesystem("s3", skip_instance_cache=True)
            fs.mkdir("bucket")
            yield faulty, fs


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_s3_that_fails_is_slow_and_whose_users_are_killed_gives_the_bytes_of_a_local_run(
    s3, checkpoint, features, tmp_path, rng, kind
):
    faulty, fs = s3
    root = f"s3://bucket/{kind}"
    for number in range(20):
        np.save(features / f"more_{number}.npy", rng.standard_normal((20 + 7 * number, 10)).astype(np.float32))
    faulty.plan = lambda number: None
    upload(fs, root, features, checkpoint)
    expected = expected_of(root, tmp_path)
    chance = random.Random(7)
    faulty.plan = lambda number: "error" if number % 6 == 0 else 0.3 if number % 17 == 0 else None
    command = [sys.executable, "-m", "bcnet_fast.infer"]
    kills = 0
    for shard in range(2):
        about = ("--shard", f"{shard}/2", "--resume", "--part-videos", 2, "--part-format", kind, "--workers", 1)
        arguments = [*command, *inputs(root, f"{root}/parts", *about)]
        while True:
            process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            if kills < 4 * (shard + 1):
                time.sleep(chance.uniform(2.5, 7))
                if process.poll() is None:
                    os.kill(process.pid, signal.SIGKILL)
                    kills += 1
            _, errors = process.communicate(timeout=120)
            assert "hunter2" not in errors
            if process.returncode >= 0:
                assert process.returncode == 0, errors
                break
    assert kills and faulty.errors > 10
    output = f"{root}/merged.json"
    assert merge.main([f"{root}/parts", "--output", output, "--features", f"{root}/features"]) == 0
    faulty.plan = lambda number: None
    assert fs.cat_file(output) == expected


@pytest.mark.slow
def test_ray_reads_and_writes_s3_that_fails(s3, checkpoint, features, tmp_path):
    """The workers have addresses alone, and the driver's environment."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'bcnet_fast[ray]'")
    faulty, fs = s3
    root = "s3://bucket/ray"
    faulty.plan = lambda number: None
    upload(fs, root, features, checkpoint)
    expected, before = expected_of(root, tmp_path), faulty.errors
    faulty.plan = lambda number: "error" if number % 7 == 0 else None
    command = [sys.executable, "-m", "bcnet_fast.infer", *inputs(root, f"{root}/parts", "--ray", "--workers", 2)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert faulty.errors > before and "hunter2" not in done.stdout + done.stderr
    output = f"{root}/merged.json"
    assert merge.main([f"{root}/parts", "--output", output, "--features", f"{root}/features"]) == 0
    faulty.plan = lambda number: None
    assert fs.cat_file(output) == expected


@pytest.mark.slow
def test_s3_lists_page_by_page(s3, checkpoint, features):
    faulty, fs = s3
    faulty.plan = lambda number: None
    fs.pipe({f"bucket/many/{number:05d}.npy": b"x" for number in range(2500)})
    before = faulty.requests
    found = dict(listed(Address("s3://bucket/many")))
    assert len(found) == 2500 and all(facts and facts[0] == 1 and facts[1] > 1e18 for facts in found.values())
    assert faulty.requests - before <= 5


@pytest.fixture
def gs(monkeypatch):
    """Google's storage on this machine, with an empty bucket."""
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks the kind of a bucket by a way of its own
    pytest.importorskip("gcsfs", reason="needs gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server._api._httpd.server_port}")
    yield fsspec.filesystem("gs", skip_instance_cache=True)
    server.stop()


@pytest.mark.slow
def test_gs_gives_the_bytes_of_a_local_run(gs, checkpoint, features, tmp_path):
    root = "gs://bucket/archive"
    upload(gs, root, features, checkpoint)
    expected = expected_of(root, tmp_path)
    assert run(root, f"{root}/out.json") == 0
    for shard in range(2):
        assert run(root, f"{root}/parts", "--shard", f"{shard}/2") == 0
    assert merge.main([f"{root}/parts", "--output", f"{root}/merged.json", "--features", f"{root}/features"]) == 0
    assert gs.cat_file(f"{root}/out.json") == gs.cat_file(f"{root}/merged.json") == expected


@pytest.mark.slow
def test_a_data_set_of_the_hugging_face_hub_is_read(checkpoint, features, tmp_path):
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    assert infer.main(flags(checkpoint, features, output=tmp_path / "local.json")) == 0
    with hub_server(features.parent) as url:
        # A process of its own: the variable counts when the hub's library is imported.
        def run_from(name: str, *more: object) -> subprocess.CompletedProcess:
            address: Any = f"hf://datasets/{REPO}/{name}"
            arguments = flags(checkpoint, address, *more, output=tmp_path / "hub.json")
            command = [sys.executable, "-m", "bcnet_fast.infer", *arguments]
            return subprocess.run(command, env=os.environ | {"HF_ENDPOINT": url}, capture_output=True, text=True)

        assert run_from(features.name).returncode == 0
        found, expected = (json.loads((tmp_path / name).read_text()) for name in ("hub.json", "local.json"))
        assert found["results"] == expected["results"]
        assert "4 of 4 videos are already done" in run_from(features.name, "--resume").stdout
        missing = run_from("nothing", "--overwrite")
        assert missing.returncode == 2 and "nothing does not exist or has no file" in missing.stderr
