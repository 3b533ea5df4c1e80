"""Kill shards at random moments, resume and merge them, and compare with an undisturbed single run.

    python tests/attack/kill_shards.py --kills 50 [--json FILE]

SIGKILL hits the process alone, one of its workers, or all of them.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "bench")]

from helpers.processes import PATIENCE_S, children, group_lives, inference, kill, started, wait_until, write_archive

from bcnet_fast import infer, merge
from bcnet_fast.data.shard import Shard
from bcnet_fast.results.parts import Part, parts_in
from bcnet_fast.storage.output import write_json


def campaign(folder: Path, *, kills: int, shards: int, part_format: str, seed: int) -> dict[str, Any]:
    """Kill runs of shards `kills` times, complete them, and count lost and doubled videos in the merged result.

    Whenever all videos are done before that, the result is compared and the shards begin anew.
    """
    draw = random.Random(seed)
    write_archive(folder)
    expected, parts = folder / "expected.json", folder / "parts"
    assert infer.main(inference(folder, expected)) == 0
    counts = dict.fromkeys(("runs", "kills", "main", "worker", "group", "results"), 0)
    found = {"lost": 0, "doubled": 0, "left behind": 0, "equal": True}
    while counts["kills"] < kills:
        pending = [shard for shard in range(shards) if _missing(folder, Shard(shard, shards))]
        if pending:
            shard, whom = draw.choice(pending), draw.choice(["main", "worker", "group"])
            killed = _killed(folder, Shard(shard, shards), part_format, whom, draw)
            counts["kills"] += killed
            counts[whom] += killed
            counts["runs"] += 1
        else:
            compare(folder, expected, found)
            counts["results"] += 1
            shutil.rmtree(parts)
    for shard in range(shards):
        with started("infer", _flags(folder, Shard(shard, shards), part_format)) as process:
            errors = process.communicate(timeout=PATIENCE_S)[1]
            assert process.returncode == 0, errors
        counts["runs"] += 1
    compare(folder, expected, found)
    counts["results"] += 1
    return counts | found


def _flags(folder: Path, shard: Shard, part_format: str) -> list[str]:
    more = ("--shard", shard, "--part-format", part_format, "--part-videos", 1, "--resume", "--workers", 1)
    return inference(folder, folder / "parts", *more)


def _missing(folder: Path, shard: Shard) -> set[str]:
    """Videos of a shard that are in no part."""
    parts = folder / "parts"
    done = {record.video for path in parts_in(parts) for record in Part(path).records()} if parts.exists() else set()
    return {path.stem for path in (folder / "features").iterdir() if path.stem in shard} - done


def _killed(folder: Path, shard: Shard, part_format: str, whom: str, draw: random.Random) -> bool:
    """Run a shard and kill it while its network is loaded, between its first parts or later; False: it ended before."""
    parts = folder / "parts"
    before = len(parts_in(parts)) if parts.exists() else 0
    goal, delay = before + draw.randrange(3), 0.3 * draw.random()
    with started("infer", _flags(folder, shard, part_format)) as process:
        wait_until(lambda: process.poll() is not None or (parts.exists() and len(parts_in(parts)) >= goal))
        time.sleep(delay)
        running = process.poll() is None and (whom != "worker" or bool(children(process.pid)))
        kill(process.pid, whom)
        if whom == "worker":  # whose run reads its video again, and goes on
            process.communicate(timeout=PATIENCE_S)
        else:
            process.wait(PATIENCE_S)
            wait_until(lambda: not group_lives(process.pid))
    return running


def compare(folder: Path, expected: Path, found: dict[str, Any]) -> None:
    parts, output = folder / "parts", folder / "merged.json"
    arguments = [parts, "--output", output, "--features", folder / "features", "--overwrite"]
    code = merge.main([str(argument) for argument in arguments])
    names = [record.video for path in parts_in(parts) for record in Part(path).records()]
    results = json.loads(output.read_text())["results"]
    found["lost"] += len(json.loads(expected.read_text())["results"].keys() - results.keys())
    found["doubled"] += len(names) - len(set(names))
    found["left behind"] += len(list(parts.iterdir())) - len(parts_in(parts))
    found["equal"] &= code == 0 and output.read_bytes() == expected.read_bytes()


def main() -> int:
    from support.environment import begin

    from bcnet_fast.cli.parser import Parser

    parser = Parser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="for each format of parts")
    parser.add_argument("--shards", type=int, default=2, metavar="N", help="that share the archive")
    parser.add_argument("--seed", type=int, default=0, help="of whom is killed when")
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
