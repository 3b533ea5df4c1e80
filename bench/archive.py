"""Archives beyond one process: the cost of shards, the memory for a large archive, and the speed of joining parts.

    python bench/archive.py --folder DIR --make               writes the inputs into DIR: 3 GB, several minutes; with
                                                              --stage, only those of a stage
    python bench/archive.py --folder DIR --stage throughput   one process and shards side by side
    python bench/archive.py --folder DIR --stage memory       infer --shard over 1,000 and more tiny videos
    python bench/archive.py --folder DIR --stage long         one video of up to 1,000,000 snippets
    python bench/archive.py --folder DIR --stage ids          listing, resuming and merging ids
    python bench/archive.py --folder DIR --stage ray          one process beside Ray, on idle cores (extra ray)

Each stage replaces its rows in the file --json and keeps the others. Every measurement is a process of its own, and its
peak memory is the kernel's figure. Times are CPU seconds, which other work on the machine changes little. With Ray,
whose workers are no children of the process, they are seconds that passed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.environment import begin
from support.growth import exponent
from support.s3_listing import FOLDER, s3

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.config import BCNetConfig, Config, DataConfig
from bcnet_fast.errors import InputError
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.presets import PRESETS
from bcnet_fast.results.parquet import Columns
from bcnet_fast.results.part_writer import PartWriter
from bcnet_fast.results.parts import DONE, Header, Record, fingerprint_of, write_part
from bcnet_fast.results.writer import ResultWriter
from bcnet_fast.storage.checkpoint import save_checkpoint
from bcnet_fast.storage.output import write_json

STAGES = ("throughput", "memory", "long", "ids", "ray")
VIDEOS, SNIPPETS, WINDOWS = 16, 512, 3  # of the archive for throughput; windows a video
RAY_WORKERS = 1, 2, 4
# BMN takes little time for a window, so the overhead of a run shows.
NETWORK = PRESETS["bmn"]["thumos14"]
TINY = BCNetConfig(
    feature_dim=10,
    window=24,
    base_channels=16,
    width=12,
    heads=2,
    head_dim=8,
    feedforward=20,
    boundary_layers=2,
    clip_channels=4,
    bins=5,
    max_duration=16,
)
TINY_VIDEOS = (1_000, 10_000, 100_000)
LONG_SNIPPETS = (1_000, 10_000, 100_000, 1_000_000)
# Ids, proposals a video, format of the parts
IDS = (
    (10_000, 100, "jsonl"),
    (10_000, 100, "parquet"),
    (10_000, 10, "jsonl"),
    (100_000, 10, "jsonl"),
    (1_000_000, 10, "jsonl"),
)
LISTS = (10_000, 100_000, 1_000_000)  # files in a folder, and keys of S3
SHARDS, PART_VIDEOS = 8, 1000  # of the parts that are joined
_LEAST_S = 0.01  # what is less is lost in the time of starting
LINKS = 20_000  # to one file: a file system has a limit


_CHILD = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


def child(code: Sequence[str], more: Mapping[str, str] | None = None) -> tuple[float, float]:
    """CPU seconds and peak memory in MiB of a process with one thread. more: variables. InputError: it failed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(more or {})
    # The peak of a process begins with that of the one that starts it: a small one.
    command = [sys.executable, "-c", _CHILD, sys.executable, *code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise InputError(f"{' '.join(code)}: {done.stderr.splitlines()[-2:]}")
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def make(folder: Path, stages: Sequence[str]) -> None:
    """Write checkpoints, archives of features and parts, as far as they are not there."""
    rng = np.random.default_rng(0)
    if "throughput" in stages or "ray" in stages:
        for name, videos in (("large", VIDEOS), ("large_one", 1)):
            make_archive(folder, name, videos, SNIPPETS, NETWORK, rng)
    tiny = Config("small", model=TINY, data=DataConfig(window_stride=12))
    for count in TINY_VIDEOS if "memory" in stages else ():
        make_archive(folder, f"tiny_{count}", count, 20, tiny, rng)
    for snippets in LONG_SNIPPETS if "long" in stages else ():
        make_archive(folder, f"long_{snippets}", 1, snippets, tiny, rng)
    if "ids" in stages:
        for count, proposals, part_format in IDS:
            make_parts(folder / f"parts_{count}_{proposals}_{part_format}", count, proposals, part_format)
            (folder / f"ids_{count}.txt").write_text("".join(f"{video}\n" for video in ids(count)))
        for count in LISTS:
            make_links(folder / f"links_{count}", count)


def make_archive(folder: Path, name: str, videos: int, snippets: int, config: Config, rng: np.random.Generator) -> None:
    """A checkpoint with random weights, and as many videos."""
    torch.manual_seed(0)
    save_checkpoint(folder / f"{name}.safetensors", NETWORKS[config.model.name](config.model).state_dict(), config)
    with new_folder(folder / name) as new:
        for video in ids(videos) if new else ():
            values = rng.standard_normal((snippets, config.model.feature_dim)).astype(np.float32)
            np.save(new / f"{video}.npy", values)


def ids(count: int) -> Iterator[str]:
    return (f"video_{number:07d}" for number in range(count))


def make_parts(folder: Path, count: int, proposals: int, part_format: str) -> None:
    """Parts of SHARDS shards, as runs without interruption write them; videos differ in the id only."""
    rng = np.random.default_rng(0)
    segments = np.sort(rng.uniform(0, 200, (proposals, 2)), axis=1)
    columns = Columns(segments, np.sort(rng.random(proposals))[::-1])
    settings = {"version": "1", "features": "features"}
    about = Header(count, "VERSION 1.3", "made for bench/archive.py", settings, fingerprint_of(settings))
    names = list(ids(count))
    with new_folder(folder) as new:
        for shard in range(SHARDS) if new else ():
            mine = names[shard::SHARDS]
            for part, first in enumerate(range(0, len(mine), PART_VIDEOS)):
                videos = [
                    (Record(video, DONE, None, 1, proposals, 1, [[1, 1]], about.fingerprint), columns)
                    for video in mine[first : first + PART_VIDEOS]
                ]
                path = new / f"part-{shard:03d}-of-{SHARDS:03d}-{part:04d}.{part_format}"
                write_part(path, about, videos, path.suffix)


def make_links(folder: Path, count: int) -> None:
    """One file for each video; listing reads nothing else."""
    with new_folder(folder) as new:
        for number, video in enumerate(ids(count)) if new else ():
            path = new / f"{video}.npy"
            if number % LINKS == 0:
                target = path
                target.write_bytes(b"")
            else:
                path.hardlink_to(target)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path | None]:
    """A folder that gets its name when it is full; None if there is one of this name."""
    if folder.exists():
        yield None
        return
    filling = folder.with_name(f"{folder.name}.filling")
    shutil.rmtree(filling, ignore_errors=True)
    filling.mkdir()
    yield filling
    filling.rename(folder)


PAIRED = """
import json, os, sys, time
from bcnet_fast.infer import main
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
seconds = []
for runs in json.loads(sys.argv[1]):
    began = time.process_time()
    for run in runs:
        main(run)
    seconds.append(time.process_time() - began)
print(json.dumps(seconds))
"""


def throughput(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """CPU milliseconds a window of one process, of one shard of one, and of two shards, as ratios of one process.

    Each variant runs at the same time as one process, on the same core. The core switches between them every few
    milliseconds, so both see the same changes of the machine. One process beside one process shows the remaining noise.
    """
    variants = {"one process": None, "one shard of one": 1, "two shards": 2}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, shards in variants.items():
            base, other = _start(folder, "base", None), _start(folder, "other", shards)
            base_ms, other_ms = _window_ms(base), _window_ms(other)
            found[name].append((other_ms, other_ms / base_ms))
            print(f"{name}: {other_ms:.2f} ms of CPU a window, {other_ms / base_ms:.4f} of one process", flush=True)
    rows = [
        {"variant": name, "cpu_ms": statistics.median(ms), "ratio": statistics.median(ratios), "ratios": ratios}
        for name, (ms, ratios) in ((name, tuple(zip(*pairs, strict=True))) for name, pairs in found.items())
    ]
    return rows + writing(folder)


def _start(folder: Path, name: str, shards: int | None) -> subprocess.Popen:
    """Start a process that prints the CPU seconds of three steps: loading what all runs need, one video, all videos."""
    common = ["--checkpoint", str(folder / "large.safetensors"), "--fps", "25", "--device", "cpu", "--overwrite"]
    parts = folder / f"{name}_parts_{shards}"
    shutil.rmtree(parts, ignore_errors=True)
    if shards is None:
        variants = [["--output", str(folder / f"{name}.json")]]
    else:
        variants = [["--output", str(parts), "--shard", f"{index}/{shards}"] for index in range(shards)]
    steps = [
        [[*common, *variant, "--features", str(folder / features)] for variant in variants]
        for features in ("large_one", "large_one", "large")
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    code = [sys.executable, "-c", PAIRED, json.dumps(steps)]
    return subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def _window_ms(process: subprocess.Popen) -> float:
    """CPU milliseconds a window of a process of `_start`. InputError: it failed."""
    out, error = process.communicate()
    if process.returncode:
        raise InputError(f"{process.args}: {error.splitlines()[-2:]}")
    _, one, every = json.loads(out.splitlines()[-1])
    return 1000 * (every - one) / (WINDOWS * (VIDEOS - 1))


def writing(folder: Path) -> list[dict[str, Any]]:
    """CPU milliseconds to store a video of 100 proposals in the file of one process, and in parts of each format."""
    rng = np.random.default_rng(0)
    columns = np.sort(rng.uniform(0, 200, (100, 2)), axis=1), rng.random(100)
    about = Header(PART_VIDEOS, "VERSION 1.3", "", {}, fingerprint_of({}))
    found = []
    for name in ("file", "jsonl", "parquet"):
        target = folder / f"written_{name}"
        began = time.process_time()
        if name == "file":
            one = ResultWriter(target, {}, overwrite=True)
            for video in ids(PART_VIDEOS):
                one.add(video, *columns)
            one.finish("VERSION 1.3", "")
        else:
            shutil.rmtree(target, ignore_errors=True)
            with contextlib.closing(PartWriter(target, 0, 1, about, lambda _: [[1, 1]], part_format=name)) as parts:
                for video in ids(PART_VIDEOS):
                    parts.add(video, 1, *columns, None)
        found.append({"writing": name, "cpu_ms": 1000 * (time.process_time() - began) / PART_VIDEOS})
        print(found[-1], flush=True)
    return found


def memory(folder: Path, _: int) -> list[dict[str, Any]]:
    """Peak memory of `infer --shard 0/1` over tiny videos, of which each run does all."""
    rows = []
    for count in TINY_VIDEOS:
        shutil.rmtree(folder / "parts", ignore_errors=True)
        name = str(folder / f"tiny_{count}")
        flags = ["--checkpoint", f"{name}.safetensors", "--features", name]
        flags += ["--fps", "25", "--device", "cpu", "--output", str(folder / "parts"), "--shard", "0/1"]
        _, peak = child(["-m", "bcnet_fast.infer", *flags, "--batch-size", "64"])
        rows.append({"videos": count, "peak_mib": peak})
        print(rows[-1], flush=True)
    return rows


def long(folder: Path, _: int) -> list[dict[str, Any]]:
    """CPU seconds and peak memory of `infer` over one video, starting included."""
    rows = []
    for snippets in LONG_SNIPPETS:
        name = str(folder / f"long_{snippets}")
        flags = ["--checkpoint", f"{name}.safetensors", "--features", name, "--fps", "25", "--device", "cpu"]
        seconds, peak = child(["-m", "bcnet_fast.infer", *flags, "--output", f"{name}.json", "--overwrite"])
        rows.append({"snippets": snippets, "seconds": seconds, "peak_mib": peak})
        print(rows[-1], flush=True)
    return rows


RESUME = """
import sys
from pathlib import Path
from bcnet_fast.results.part_writer import PartWriter
from bcnet_fast.results.parts import Part, parts_in
folder, count = Path(sys.argv[1]), int(sys.argv[2])
header = Part(parts_in(folder)[0]).header
if count:
    writer = PartWriter(folder, 0, 1, header, lambda video: [[1, 1]], resume=True)
    assert len(writer.done) == count, len(writer.done)
    writer.close()
"""
LIST = """
import sys
from bcnet_fast.data.features import open_features
assert len(open_features(sys.argv[1], feature_dim=1).ids) == int(sys.argv[2])
"""


def id_stage(folder: Path, _: int) -> list[dict[str, Any]]:
    """CPU seconds and peak memory of listing, resuming and merging; those of starting Python are measured as well."""
    starts = {
        "list": ["-c", "import bcnet_fast.data.features"],
        "resume": ["-c", "import bcnet_fast.results.part_writer"],
        "merge": ["-m", "bcnet_fast.merge", "--help"],
    }
    started = {step: min(child(code) for _ in range(5)) for step, code in starts.items()}
    rows = [{"step": "start", "videos": 0, "seconds": started["merge"][0], "peak_mib": started["merge"][1]}]

    def note(step: str, count: int, code: list[str], environment: Mapping[str, str] | None = None, **more: Any) -> None:
        seconds, peak = child(code, environment)
        seconds = max(seconds - started[step.partition(" ")[0]][0], _LEAST_S)
        rows.append({"step": step, "videos": count, "seconds": seconds, "peak_mib": peak, **more})
        print(rows[-1], flush=True)

    for count in LISTS:
        note("list", count, ["-c", LIST, str(folder / f"links_{count}"), str(count)])
    for count in LISTS:
        with s3(count) as environment:
            note("list keys of S3", count, ["-c", LIST, FOLDER, str(count)], environment)
    for count, proposals, part_format in IDS:
        parts, more = str(folder / f"parts_{count}_{proposals}_{part_format}"), {"proposals": proposals}
        more["format"] = part_format
        note("resume", count, ["-c", RESUME, parts, str(count)], **more)
        merge = ["-m", "bcnet_fast.merge", parts, "--overwrite", "--videos", str(folder / f"ids_{count}.txt")]
        suffix = "json" if part_format == "jsonl" else part_format
        note("merge", count, [*merge, "--output", str(folder / f"merged.{suffix}")], **more)
    return rows


ONE_PROCESS = """
import json, sys
from bcnet_fast.infer import parse
from bcnet_fast.inference.run import infer
report = infer(parse(sys.argv[1:]))
print(json.dumps({"work_s": report.seconds, "windows": report.windows}))
"""
RAY = """
import json, sys
from support.ray_run import timed
from bcnet_fast.infer import parse
print(json.dumps(timed(parse(sys.argv[1:]))))
"""


def ray(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds a window that pass in one process, without its loading, and in workers of Ray that are ready."""
    common = ["--checkpoint", str(folder / "large.safetensors"), "--fps", "25", "--device", "cpu"]
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(repeats):
        for threads in (1, 2):
            all_of, one = (
                said(
                    ONE_PROCESS,
                    [*common, "--features", str(folder / name), "--output", str(folder / "ray.json")],
                    threads,
                )
                for name in ("large", "large_one")
            )
            window_s = (all_of["work_s"] - one["work_s"]) / (all_of["windows"] - one["windows"])
            name = f"one process, {threads} {'threads' if threads > 1 else 'thread'}"
            found.setdefault(name, []).append({"window_ms": 1000 * window_s})
        for workers in RAY_WORKERS:
            shutil.rmtree(folder / "parts", ignore_errors=True)
            flags = [
                "--features",
                str(folder / "large"),
                "--output",
                str(folder / "parts"),
                "--ray",
                "--workers",
                str(workers),
            ]
            row = said(RAY, [*common, *flags], 1)
            row["window_ms"] = 1000 * row["work_s"] / row["windows"]
            name = f"Ray, {workers} {'workers' if workers > 1 else 'worker'}"
            found.setdefault(name, []).append(row)
            print(name, row, flush=True)
    keys = ("window_ms", "start_s", "load_s")
    return [
        {"variant": name, **{key: statistics.median(row[key] for row in rows) for key in keys if key in rows[0]}}
        for name, rows in found.items()
    ]


def said(code: str, arguments: Sequence[str], threads: int) -> dict[str, Any]:
    """The last line that a process prints, which is JSON. InputError: it failed."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
    flags = ["--overwrite", *arguments]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise InputError(f"{' '.join(flags)}: {done.stderr.splitlines()[-2:]}")
    return json.loads(done.stdout.splitlines()[-1])


def growth(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exponents of seconds and memory in the number of videos, for each step and kind of parts."""
    found = []
    keys = dict.fromkeys((row["step"], row.get("proposals"), row.get("format")) for row in rows if row["videos"])
    for key in keys:
        mine = [row for row in rows if (row["step"], row.get("proposals"), row.get("format")) == key]
        sizes = [row["videos"] for row in mine]
        if len(sizes) < 2:
            continue
        found.append(
            {
                **dict(zip(("step", "proposals", "format"), key, strict=True)),
                "seconds": exponent(sizes, [row["seconds"] for row in mine]),
                "memory": exponent(sizes, [row["peak_mib"] for row in mine]),
            }
        )
    return found


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--folder", metavar="DIR", required=True, help="of the inputs")
    parser.add_argument("--make", action="store_true", help="write the inputs")
    parser.add_argument("--stage", choices=STAGES, help="measure")
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="runs for throughput")
    parser.add_argument("--json", metavar="FILE", help="file of the results, in which the stage's rows are replaced")
    args = parser.parse_args(argv)
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if args.make:
        make(folder, [args.stage] if args.stage else STAGES)
    if args.stage:
        record = begin(1, [args.json])
        measure = {"throughput": throughput, "memory": memory, "long": long, "ids": id_stage, "ray": ray}[args.stage]
        rows = measure(folder, args.repeats)
        found = {args.stage: rows}
        if args.stage == "ids":
            found["growth"] = growth(rows)
        if args.json:
            known = json.loads(Path(args.json).read_text()) if Path(args.json).exists() else {}
            write_json(args.json, {**known, "environment": record, **found}, indent=1)
    return 0


if __name__ == "__main__":
    run(main)
