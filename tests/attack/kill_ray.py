"""Kill workers, machines and drivers of `infer --ray`, resume and merge, and compare with an undisturbed single run.

    python tests/attack/kill_ray.py --kills 20 [--json FILE]

On a cluster of several machines, all of which are processes of this one, and on a local cluster. All kills are by -9. A
machine that is lost is its Ray process, with which its workers end; another one joins the cluster.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "bench")]

from attack.kill_shards import compare
from helpers.processes import PATIENCE_S, inference, started, wait_until, write_archive

from bcnet_fast import infer
from bcnet_fast.inference.ray_cluster import LOCAL
from bcnet_fast.results.parts import parts_in
from bcnet_fast.storage.output import write_json

WORKERS, VIDEOS = 2, 16
# Lost machines are noticed in seconds instead of half a minute.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}


class Machines:
    """A cluster of a head and WORKERS machines with one CPU each, all of them on this one."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20, "_system_config": QUICK}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self._join() for _ in range(WORKERS)]
        self.address = self.cluster.address

    def _join(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20)

    def replace(self, draw: random.Random) -> None:
        """Lose a machine, and let another one join."""
        number = draw.randrange(WORKERS)
        self.cluster.remove_node(self.nodes[number], allow_graceful=False)
        self.nodes[number] = self._join()

    def close(self) -> None:
        self.cluster.shutdown()


@contextlib.contextmanager
def machines() -> Iterator[Machines]:
    found = Machines()
    try:
        yield found
    finally:
        found.close()


def campaign(folder: Path, *, kills: int, part_format: str, seed: int, several: Machines | None) -> dict[str, Any]:
    """Kill runs `kills` times, complete them, and count lost and doubled videos in the merged results.

    several: the machines of a cluster. None: each run starts one on this machine.
    """
    draw = random.Random(seed)
    write_archive(folder, VIDEOS)
    expected, parts = folder / "expected.json", folder / "parts"
    assert infer.main(inference(folder, expected)) == 0
    counts: dict[str, int] = dict.fromkeys(("runs", "kills", "worker", "machine", "driver", "results"), 0)
    found = {"lost": 0, "doubled": 0, "left behind": 0, "equal": True}
    choices = ["worker", "machine", "driver"] if several else ["worker", "driver"]
    complete = False
    while not complete:
        with started("infer", flags(folder, several, part_format)) as driver:
            counts["runs"] += 1
            while driver.poll() is None:
                if counts["kills"] < kills and _is_time(driver, parts, draw):
                    whom = draw.choice(choices)
                    if _kill(driver, whom, several, draw):
                        counts["kills"] += 1
                        counts[whom] += 1
                time.sleep(0.05)
            code, errors = driver.returncode, driver.communicate()[1]
        if code == 0:
            compare(folder, expected, found)
            counts["results"] += 1
            complete = counts["kills"] >= kills
            shutil.rmtree(parts)
        else:
            # Killed, or lost with the machine that it was connected to.
            assert code < 0 or "Traceback" not in errors or "ray" in errors, errors
    return counts | found


def flags(folder: Path, several: Machines | None, part_format: str) -> list[str]:
    more = ("--part-format", part_format, "--part-videos", 1, "--resume", "--workers", WORKERS)
    return inference(folder, folder / "parts", *more, "--ray", several.address if several else LOCAL)


def _is_time(driver: subprocess.Popen, parts: Path, draw: random.Random) -> bool:
    """Wait until a worker loads its network, or for the next parts, and a moment longer; False: the run has ended."""
    goal = _count(parts) + draw.randrange(3)
    wait_until(lambda: driver.poll() is not None or (bool(workers()) and _count(parts) >= goal))
    time.sleep(0.5 * draw.random())
    return driver.poll() is None


def _count(parts: Path) -> int:
    return len(parts_in(parts)) if parts.exists() else 0


def workers() -> list[int]:
    """The computing processes of the clusters that this process has started."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,stat,args"], capture_output=True, text=True, check=True).stdout
    found = [line.split(None, 3) for line in listed.splitlines()[1:]]
    parents = {int(process): int(parent) for process, parent, *_ in found}

    def is_ours(process: int) -> bool:
        while process in parents and process != os.getpid():
            process = parents[process]
        return process == os.getpid()

    ours = [int(process) for process, _, state, name in found if name.startswith("ray::Worker") and state[0] != "Z"]
    return [process for process in ours if is_ours(process)]


def _kill(driver: subprocess.Popen, whom: str, several: Machines | None, draw: random.Random) -> bool:
    """Send SIGKILL; False: there was nothing left to kill."""
    if whom == "machine":
        assert several is not None
        several.replace(draw)
        return True
    if whom == "driver":
        driver.kill()
        driver.wait(PATIENCE_S)
        return True
    running = workers()
    if not running:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(draw.choice(running), signal.SIGKILL)
        return True
    return False


def main() -> int:
    from support.environment import begin

    from bcnet_fast.cli.parser import Parser

    parser = Parser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="for each kind of cluster and parts")
    parser.add_argument("--seed", type=int, default=0, help="of whom is killed when")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    options = parser.parse_args()
    record = begin(1, [options.json])
    rows = []
    kinds = (("several machines", "jsonl"), ("several machines", "parquet"), ("local", "jsonl"))
    for seed, (kind, part_format) in enumerate(kinds, options.seed):
        with (
            tempfile.TemporaryDirectory() as folder,
            machines() if kind != "local" else contextlib.nullcontext() as several,
        ):
            found = campaign(Path(folder), kills=options.kills, part_format=part_format, seed=seed, several=several)
        rows.append({"cluster": kind, "part_format": part_format, **found})
        print(rows[-1], flush=True)
    if options.json:
        write_json(options.json, {"environment": record, "rows": rows}, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
