"""Kill runs at random moments and resume them: their files are those of an undisturbed run, byte for byte.

A command runs in a forked process that leads a group of its own. After a random time, the process, one of its workers
or the whole group is killed, and the command is run again at once, often to be killed again, and in the end to its end.
Failures are an exit code other than 0 or a traceback of a run that was not killed, workers that outlive their parent by
a minute, a file under its final name that is not whole, and a final file or byte that differs from a run without kills.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import shutil
import signal
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from attack.reach_targets import RECIPE
from attack.target import quietly
from attack.targets import COMMANDS
from helpers.processes import children, group_lives, inference, write_archive
from helpers.refine import WIDE, checkpoint
from helpers.training import EASY, arguments
from helpers.videos import write_video

from bcnet_fast import infer, merge
from bcnet_fast.cli.parser import run as run_command
from bcnet_fast.config import BMNConfig
from bcnet_fast.data.synthetic import make_videos, write_dataset
from bcnet_fast.networks.reference import NETWORKS

PATIENCE_S = 60
ORPHANS_S = 60  # after which workers without a parent have ended
ENDS = 0.3  # share of the resumed runs that are not killed
WHOM = {"main": "main process", "worker": "a worker", "group": "process group"}
# Command, whom a kill hits, and workers. The first ones have every command once.
KINDS = [
    ("infer", "main", 2),
    ("train", "main", 1),
    ("convert", "main", 0),
    ("refine", "group", 2),
    ("extract", "main", 0),
    ("merge", "main", 0),
    ("infer", "group", 2),
    ("train", "worker", 1),
    ("refine", "worker", 2),
    ("infer", "worker", 2),
    ("train", "group", 1),
    ("refine", "main", 2),
    ("extract", "worker", 1),
    ("extract", "main", 1),
]
COMMANDS_KILLED = len({command for command, *_ in KINDS})


@dataclass(frozen=True)
class Run:
    """A command that is killed. whom: main, worker or group."""

    command: str
    whom: str
    flags: list[str]
    output: Path
    expected: Path

    @property
    def name(self) -> str:
        return f"{self.command}: {WHOM[self.whom]}"


class Kills:
    """Runs of commands below `root`, and their files without kills."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        root.mkdir()
        self.random = random.Random(f"kills-{seed}")
        write_archive(root, videos=3, window_stride=24)
        subsets = (("training", 4), ("validation", 2))
        videos = [v for name, count in subsets for v in make_videos(count, seed=1, subset=name, config=EASY)]
        write_dataset(root / "data", videos)
        model = BMNConfig(base_channels=64, sampled_channels=64)
        torch.save({"epoch": 1, "state_dict": NETWORKS["bmn"](model).state_dict()}, root / "bmn.pth.tar")
        checkpoint(root / "pgcn.safetensors", model=WIDE)
        quietly(root, infer.main, *inference(root, root / "parts", "--shard", "0/1", "--part-videos", 1))
        quietly(root, merge.main, str(root / "parts"), "--output", str(root / "proposals.json"))
        (root / "recipe.toml").write_text(RECIPE)
        for number in range(4):
            write_video(root / "clips" / f"{number}.mp4", 200)
        self.runs = [self._run(*kind) for kind in KINDS]
        self.seconds: dict[Path, float] = {}  # of an undisturbed run, by the folder of its files
        self.kills: collections.Counter[str] = collections.Counter()
        self.compared: collections.Counter[str] = collections.Counter()
        self.orphans: list[tuple[int, float]] = []
        self.unfinished: set[Path] = set()  # outputs of runs that were killed

    def _run(self, command: str, whom: str, workers: int) -> Run:
        output, expected = self.root / f"{command}-{workers}-{whom}", self.root / f"{command}-{workers}"
        output.mkdir()
        return Run(command, whom, [str(flag) for flag in self._flags(command, workers)], output, expected)

    def _flags(self, command: str, workers: int) -> list[Any]:
        root, resumed = self.root, ("--workers", workers, "--resume")
        if command == "infer":
            return inference(root, Path("out.json"), *resumed)
        if command == "train":
            return arguments(root / "data", Path("run"), *resumed, model="gtad")
        if command == "convert":
            return ["--bmn", root / "bmn.pth.tar", "--preset", "activitynet13", "--output", "out.safetensors"]
        if command == "refine":
            flags = ["--proposals", root / "proposals.json", "--features", root / "features", "--fps", 25]
            flags += ["--checkpoint", root / "pgcn.safetensors", "--device", "cpu"]
            return [*flags, "--output", "out.json", *resumed]
        if command == "extract":
            flags = [root / "clips", "--backbone", "frame-index", "--recipe", root / "recipe.toml", "--device", "cpu"]
            return [*flags, "--decoder-threads", 1, "--workers", workers, "--output", "features"]
        return [root / "parts", "--overwrite", "--output", "out.json"]

    def kill(self, number: int) -> list[str]:
        """Run commands until one is killed, and return the failures on the way."""
        run = self.runs[number % len(self.runs)]
        self._require_expected(run)
        problems: list[str] = []
        while True:
            process = self._started(run, run.output)
            may_end = run.output in self.unfinished and self.random.random() < ENDS
            is_killed = not may_end and self._kill(run, process)
            self.kills[run.name] += is_killed
            if is_killed and run.whom != "worker":
                os.waitpid(process, 0)
                self.unfinished.add(run.output)
                self.orphans.append((process, time.monotonic() + ORPHANS_S))
                problems += self.of_parts(run)
            else:
                problems += self._finished(run, process)
            problems += self.of_orphans()
            if is_killed or problems:
                return problems

    def complete(self, run: Run) -> list[str]:
        """Wait for workers, run a command to its end if it was killed, and return the failures."""
        problems: list[str] = []
        while self.orphans:
            problems += self.of_orphans()
            time.sleep(0.1)
        if run.output in self.unfinished:
            problems += self._finished(run, self._started(run, run.output))
        return problems

    def _require_expected(self, run: Run) -> None:
        """Run a command without kills, if no other run has done so."""
        if run.expected in self.seconds:
            return
        run.expected.mkdir()
        began = time.monotonic()
        problems = self._ended(self._started(run, run.expected))
        if problems:
            raise RuntimeError(f"{run.command} fails without kills: {problems}")
        self.seconds[run.expected] = time.monotonic() - began

    def _finished(self, run: Run, process: int) -> list[str]:
        """Wait for the end of a run, compare its files, and remove them."""
        problems = [*self._ended(process), *self.of_files(run)]
        shutil.rmtree(run.output)
        run.output.mkdir()
        self.unfinished.discard(run.output)
        return problems

    def _kill(self, run: Run, process: int) -> bool:
        """Wait a random time and kill. False: the process has ended before."""
        until = time.monotonic() + self.random.random() * self.seconds[run.expected]
        while time.monotonic() < until or (run.whom == "worker" and not children(process)):
            if not _runs(process):
                return False
            time.sleep(0.001)
        if not _runs(process):
            return False
        if run.whom == "group":
            os.killpg(process, signal.SIGKILL)
        elif run.whom == "main":
            os.kill(process, signal.SIGKILL)
        else:
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(self.random.choice(children(process)), signal.SIGKILL)
                return True
            return False
        return True

    def _started(self, run: Run, folder: Path) -> int:
        """Fork a process that runs the command in `folder`, and wait until it leads its group."""
        ready, begun = os.pipe()
        process = os.fork()
        if process == 0:
            code = 70
            try:
                os.setsid()
                os.close(begun)
                os.chdir(folder)
                os.dup2(os.open(self.root / "errors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                run_command(lambda: COMMANDS[run.command](run.flags))
            except SystemExit as leaving:
                code = int(leaving.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(begun)
        os.read(ready, 1)  # until the process closes its end
        os.close(ready)
        return process

    def _ended(self, process: int) -> list[str]:
        until = time.monotonic() + PATIENCE_S
        while _runs(process):
            if time.monotonic() > until + waited_for_a_core(process):
                os.killpg(process, signal.SIGKILL)
                os.waitpid(process, 0)
                return ["hang"]
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        errors = (self.root / "errors").read_text()
        problems = [] if code == 0 else [f"exit code {code}"]
        problems += ["traceback"] * ("Traceback" in errors)
        return [f"{', '.join(problems)}: {errors[-1500:]}"] if problems else []

    def of_parts(self, run: Run) -> list[str]:
        """Check that a kill leaves only whole files under final names."""
        if run.command == "train":  # whose files change with each epoch
            return []
        found, expected = _files(run.output), _files(run.expected)
        unlike = [name for name in found.keys() & expected.keys() if found[name] != expected[name]]
        return [f"{name} after a kill is not whole" for name in unlike]

    def of_files(self, run: Run) -> list[str]:
        """Check that a finished run leaves the same files as without kills."""
        found, expected = _files(run.output), _files(run.expected)
        problems = [f"{name} is left" for name in found.keys() - expected.keys()]
        problems += [f"{name} is missing" for name in expected.keys() - found.keys()]
        problems += [f"{name} differs" for name in expected.keys() & found.keys() if found[name] != expected[name]]
        self.compared[run.name] += 1
        return problems

    def of_orphans(self) -> list[str]:
        """Workers of killed processes must end soon."""
        self.orphans = [(group, until) for group, until in self.orphans if group_lives(group)]
        late = [group for group, until in self.orphans if time.monotonic() > until]
        for group in late:
            os.killpg(group, signal.SIGKILL)
        return ["workers outlive their parent"] * len(late)

    def facts(self) -> dict[str, Any]:
        """Kills and comparisons by command and by whom was killed."""
        names = sorted({run.name for run in self.runs})
        return {name: {"kills": self.kills[name], "compared": self.compared[name]} for name in names}


def waited_for_a_core(process: int) -> float:
    """Seconds in which a process could run but others had the cores: no part of its own time."""
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _runs(process: int) -> bool:
    """Whether a child of this process has not ended; it stays to be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _files(folder: Path) -> dict[str, bytes]:
    """Content of all files, empty for folders; without TensorBoard's, which have the time in their names."""
    found = {}
    for parent, folders, names in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *names)):
            with contextlib.suppress(FileNotFoundError):  # a worker without a parent may still write and remove
                found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else b""
    return {name: content for name, content in found.items() if "tensorboard" not in name}
