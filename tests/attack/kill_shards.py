"""Kill shards at random moments, resume and merge them, and compare with an undisturbed single run.

    python tests/attack/kill_shards.py --kills 50 [--part-format parquet] [--json FILE]

What is killed by -9 is the process alone, one of its workers, or all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "bench")]

from helpers.processes import PATIENCE_S, children, group_lives, inference, started, wait_until, write_archive

from bcnet_fast import infer, merge
from bcnet_fast.results.parts import Part, parts_in
from bcnet_fast.storage.output import write_json


def kill(process: int, whom: str) -> None:
    """Kill a process alone, its whole group, or one of its workers."""
    with contextlib.suppress(ProcessLookupError):
        if whom == "group":
            os.killpg(process, signal.SIGKILL)
        elif whom == "main":
            os.kill(process, signal.SIGKILL)
        else:
            for worker in children(process)[:1]:
                os.kill(worker, signal.SIGKILL)


def campaign(folder: Path, *, kills: int, shards: int, part_format: str, seed: int) -> dict[str, Any]:
    """Kill `kills` runs of shards, end with undisturbed ones, and count what the merged result lost or has twice.

    When all videos are done before, their parts are deleted and the shards begin anew.
    """
    draw = random.Random(seed)
    write_archive(folder)
    expected, parts, output = folder / "expected.json", folder / "parts", folder / "merged.json"
    assert infer.main(inference(folder, expected)) == 0
    done = {"kills": 0, "main": 0, "worker": 0, "group": 0, "runs": 0, "rounds": 1}
    differences = {"lost": 0, "doubled": 0, "equal": True, "left behind": 0}

    def flags(shard: int) -> list[str]:
        more = ("--shard", f"{shard}/{shards}", "--part-format", part_format, "--part-videos", 1, "--resume")
        return inference(folder, parts, *more, "--workers", 1)

    def compare() -> None:
        arguments = [parts, "--output", output, "--features", folder / "features", "--overwrite"]
        code = merge.main([str(argument) for argument in arguments])
        names = [record.video for path in parts_in(parts) for record in Part(path).records()]
        found = json.loads(output.read_text())["results"]
        differences["lost"] += len(json.loads(expected.read_text())["results"].keys() - found.keys())
        differences["doubled"] += len(names) - len(set(names))
        differences["equal"] &= code == 0 and output.read_bytes() == expected.read_bytes()
        differences["left behind"] += sum(path not in parts_in(parts) for path in parts.iterdir())

    while done["kills"] < kills:
        shard, whom = draw.randrange(shards), draw.choice(["main", "worker", "group"])
        with started("infer", flags(shard)) as process:
            before = len(parts_in(parts)) if parts.exists() else 0
            lock = parts / f".part-{shard:03d}-of-{shards:03d}.lock"
            wait_until(lambda lock=lock, process=process: lock.exists() or process.poll() is not None)
            # Within the loading of the network, within the first parts, or after them.
            goal = before + draw.randrange(3)
            wait_until(lambda goal=goal, process=process: process.poll() is not None or len(parts_in(parts)) >= goal)
            time.sleep(draw.random() * 0.2)
            running = process.poll() is None
            kill(process.pid, whom)
            if whom != "worker":
                process.wait(PATIENCE_S)
                wait_until(lambda: not group_lives(process.pid))
            else:
                process.communicate(timeout=PATIENCE_S)
        done["runs"] += 1
        done["kills"] += running
        done[whom] += running
        if not running and all(_is_done(parts, shard, shards, folder) for shard in range(shards)):
            compare()
            shutil.rmtree(parts)
            done["rounds"] += 1
    for shard in range(shards):
        with started("infer", flags(shard)) as process:
            errors = process.communicate(timeout=PATIENCE_S)[1]
            assert process.returncode == 0, errors
        done["runs"] += 1
    compare()
    return done | differences


def _is_done(parts: Path, shard: int, shards: int, folder: Path) -> bool:
    names = {record.video for path in parts_in(parts) for record in Part(path).records()}
    return names >= {path.stem for path in (folder / "features").iterdir()}


def main() -> int:
    from support.environment import begin

    from bcnet_fast.cli.parser import Parser

    parser = Parser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, metavar="N")
    parser.add_argument("--shards", type=int, default=2, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    options = parser.parse_args()
    record = begin(1, [options.json])
    rows = []
    for part_format in ("jsonl", "parquet"):
        with tempfile.TemporaryDirectory() as folder:
            found = campaign(
                Path(folder), kills=options.kills, shards=options.shards, part_format=part_format, seed=options.seed
            )
        rows.append({"part_format": part_format, "shards": options.shards, **found})
        print(rows[-1], flush=True)
    if options.json:
        write_json(options.json, {"environment": record, "rows": rows}, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
