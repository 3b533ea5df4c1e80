"""Attack the commands: `python tests/attack/run.py --inputs 1000 --kills 100 --json bench/results/attack.json`.

Each input is a small file with seeded damage. The command that reads it runs in a forked process with limits on memory
and time, and a hook notes code that is run and files that are opened. Accepted are: the command succeeds; it names the
video that failed, and the others have the results that they have without it (exit code 1); or it ends with one line
that names the file, and leaves no output (exit code 2). Everything else is listed as a failure, with the number of the
input: `--only NUMBER --keep DIR` repeats it and keeps its files. Kills: see kills.py.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # threads of the parent do not exist in forked processes
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]

import h5py  # noqa: E402
import torch  # noqa: E402
from attack.kills import Kills, Run, waited_for_a_core  # noqa: E402
from attack.mutations import NAMES, VALUES, Mutation, dump  # noqa: E402
from attack.target import Target  # noqa: E402
from attack.targets import COMMANDS, build  # noqa: E402
from support.environment import environment  # noqa: E402

from bcnet_fast.cli.parser import run as run_command  # noqa: E402

MEMORY = 1 << 30  # bytes above those of the idle process, as a limit of the process
RESIDENT = 3 << 28  # resident bytes above those of the idle process that count as a failure
SECONDS = 60  # of processor time, and of waiting
CODE_EVENTS = ("exec", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen")


@dataclass
class Outcome:
    """Outcome of a command: exit code or -signal, its output, and the hook's notes."""

    code: int
    out: str
    err: str
    events: list[str]
    seconds: float
    resident: int  # bytes, largest


def forked(target: Target, folder: Path, arguments: list[str]) -> Outcome:
    """Run a command in a forked process in `folder`."""
    began = time.monotonic()
    files = {name: folder.parent / f"{folder.name}.{name}" for name in ("out", "err", "events")}
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _child(target, folder, arguments, files)
    status, usage = _wait(child, began + SECONDS)
    code = os.waitstatus_to_exitcode(status)
    texts = {name: path.read_text("utf-8", "surrogateescape") if path.exists() else "" for name, path in files.items()}
    for path in files.values():
        path.unlink(missing_ok=True)
    events = texts["events"].splitlines()
    return Outcome(code, texts["out"], texts["err"], events, time.monotonic() - began, usage.ru_maxrss * 1024)


def _wait(child: int, until: float) -> tuple[int, Any]:
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage
        if time.monotonic() > until + waited_for_a_core(child):
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def _child(target: Target, folder: Path, arguments: list[str], files: dict[str, Path]) -> None:
    """Never returns."""
    code = 70
    try:
        os.chdir(folder)
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(files[name], os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "ascii", write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "ascii", write_through=True)
        events = os.open(files["events"], os.O_WRONLY | os.O_CREAT, 0o600)
        idle = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (idle + MEMORY, idle + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(_hook(events, folder))
        try:
            run_command(lambda: COMMANDS[arguments[0]](arguments[1:]))
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        except BaseException:
            traceback.print_exc()
    finally:
        os._exit(code)


def _hook(events: int, folder: Path) -> Any:
    """A hook that notes writing outside `folder`, and code that runs from outside this installation's modules."""
    allowed = (str(folder), str(folder.resolve()), "/dev/null")
    modules = (sys.prefix, sys.base_prefix, str(ROOT), "<frozen", "<__array_function__", "av/")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        note = None
        if event == "exec" and not str(getattr(arguments[0], "co_filename", "")).startswith(modules):
            note = f"exec {arguments[0]!r}"
        elif event == "compile" and not str(arguments[1]).startswith((*modules, "<unknown>")):
            note = f"compile {arguments[1]!r}"
        elif event in CODE_EVENTS and event != "exec":
            note = event
        elif event.startswith("socket."):
            note = event
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            path, mode, flags = os.fsdecode(arguments[0]), arguments[1], arguments[2]
            writes = any(letter in (mode or "") for letter in "wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            if writes and not os.path.abspath(path).startswith(allowed):
                note = f"writes {path!r}"
        if note:
            os.write(events, f"{note}\n".encode("utf-8", "backslashreplace"))

    return hook


def problems_of(target: Target, folder: Path, outcome: Outcome, expected: dict[str, Any], idle: int) -> list[str]:
    """Kinds of failures, empty where the command behaved."""
    found = []
    if outcome.code < 0:
        slow = outcome.code in (-signal.SIGKILL, -signal.SIGXCPU)
        found.append("hang" if slow else f"signal {signal.Signals(-outcome.code).name}")
    elif "Traceback (most recent call last)" in outcome.err:
        found.append("traceback")
    elif outcome.code not in (0, 1, 2):
        found.append(f"exit code {outcome.code}")
    if outcome.events:
        found.append(f"hook: {outcome.events[0][:80]}")
    if outcome.resident > idle + RESIDENT:
        found.append("memory")
    if not all(character == "\n" or character.isprintable() for character in outcome.out + outcome.err):
        found.append("control characters printed")
    if outcome.code == 2:
        found += _problems_of_refusal(target, folder, outcome)
    elif outcome.code in (0, 1) and target.command[0] == "infer":
        found += _problems_of_results(target, folder, outcome, expected)
    return found


def _problems_of_refusal(target: Target, folder: Path, outcome: Outcome) -> list[str]:
    found = []
    left = [name for name in target.outputs if list(folder.glob(f"{name}*")) or list(folder.glob(f".{name}*"))]
    if left:
        found.append(f"exit code 2 leaves {left[0]}")
    lines = [line for line in outcome.err.splitlines() if not line.startswith(("note: ", "warning: "))]
    if target.command[0] == "inspect":
        errors = [line.strip() for line in lines if line.startswith(("  ", "error: "))]
    else:
        errors = [line for line in lines if not line[:1].isdigit()]  # progress
        if len(errors) != 1 or not errors[0].startswith("error: "):
            found.append("exit code 2 without one line that begins with error:")
    if not errors or not all(any(name in line for name in target.named) for line in errors):
        found.append("error line without the name of the file")
    return found


def _problems_of_results(target: Target, folder: Path, outcome: Outcome, expected: dict[str, Any]) -> list[str]:
    try:
        results = json.loads((folder / "out.json").read_text(), parse_constant=lambda text: 1 / 0)["results"]
    except Exception as error:
        return [f"no results in the output ({type(error).__name__})"]
    found = []
    if any(results.get(video) != expected.get(video) for video in target.kept):
        found.append("a video that is good has other results")
    failed = [line for line in outcome.err.splitlines() if line.startswith("failed: ")]
    if (outcome.code == 1) != bool(failed):
        found.append("exit code 1 without a failure, or the other way round")
    return found


class Attack:
    """Targets in a temporary folder, and their outcomes without damage."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed = root, seed
        torch.set_num_threads(1)
        self.targets = build(root)
        self.expected: dict[str, dict[str, Any]] = {}
        undamaged: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}  # targets may differ in their victims alone
        for target in self.targets:
            run = (target.folder, target.command)
            undamaged[run] = undamaged[run] if run in undamaged else self._undamaged(target)
            self.expected[target.name] = undamaged[run]
        self.idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _undamaged(self, target: Target) -> dict[str, Any]:
        """Results by video where the command is `infer`.

        It runs in this process, so that nothing is imported in those that are forked.
        """
        with _copy(self.root, target) as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
            before = os.getcwd()
            os.chdir(folder)
            try:
                with contextlib.redirect_stderr(printed):
                    code = COMMANDS[target.command[0]](list(target.command[1:]))
            finally:
                os.chdir(before)
            if code != 0:
                raise RuntimeError(f"{target.name} fails undamaged: {printed.getvalue()}")
            return json.loads((folder / "out.json").read_text())["results"] if target.command[0] == "infer" else {}

    def attack(self, number: int, keep: Path | None = None) -> tuple[Target, str, Outcome, list[str]]:
        """Make input `number`, run it and return its problems."""
        rng = random.Random(f"{self.seed}-{number}")
        target = self.targets[number % len(self.targets)]
        with _copy(self.root, target) as folder:
            arguments = list(target.command)
            what = _mutate(rng, target, folder, arguments)
            if keep:
                shutil.rmtree(keep, ignore_errors=True)
                shutil.copytree(folder, keep, symlinks=True, ignore=_pipes)
            outcome = forked(target, folder, arguments)
            return (
                target,
                what,
                outcome,
                problems_of(target, folder, outcome, self.expected[target.name], self.idle),
            )


def _pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_fifo()]


@contextlib.contextmanager
def _copy(root: Path, target: Target) -> Iterator[Path]:
    folder = root / "work"
    shutil.copytree(root / target.folder, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _mutate(rng: random.Random, target: Target, folder: Path, arguments: list[str]) -> str:
    """Damage the file or argument of a target; returns a description of the damage."""
    if target.victim is None:
        assert target.argument is not None
        value = rng.choice(
            ["1" * 5000, "[" * 30_000, "[" * 900 + "]" * 900, *(dump(value) for value in VALUES), *NAMES]
        )
        name = rng.choice(
            ("model.dropout", "model.window", "train.epochs", "proposals.sigma", "model.x", "x.y", "x", "")
        )
        setting = f"{name}={value}"
        arguments[target.argument] = setting.replace("\0", "")
        return f"--set {setting[:60]!r}"
    victim = folder / target.victim
    mutation: Mutation = rng.choice(target.mutations)
    done = mutation(rng, victim)
    if "features/" in target.victim and rng.random() < 0.1 and (victim.exists() or victim.is_symlink()):
        victim.rename(victim.with_name(rng.choice(NAMES).replace("/", "_")[:100] + victim.suffix))
        return f"{mutation.__name__} ({done}), renamed"
    return f"{mutation.__name__} ({done})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100, metavar="N", help="number of inputs")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="number of kills")
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        metavar="M",
        help="stop after this time, of which kills take half",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all mutations and kills")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one input, with what it printed")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="with --only: keep the damaged files here")
    options = parser.parse_args()
    began, versions = time.monotonic(), environment() | {"h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version}
    until = began + 60 * options.minutes
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary).resolve()
        attack = Attack(root, options.seed)
        gc.collect()
        gc.freeze()  # forked processes need not scan existing objects
        print(f"{len(attack.targets)} targets, ready in {time.monotonic() - began:.1f} s", flush=True)
        if options.only is not None:
            *_, outcome, problems = attack.attack(options.only, options.keep)
            print(outcome.out, outcome.err, ", ".join(problems) or "good", sep="\n")
            return 0
        facts = _kill(root / "kills", options.seed, options.kills, (began + until) / 2)
        facts = _inputs(attack, options.inputs, until) | facts
    failures = [*facts["failures"], *facts["kill_failures"]]
    seconds = time.monotonic() - began
    print(f"{facts['inputs']} inputs and {facts['killed']} kills in {seconds:.0f} s; {len(failures)} failures")
    if options.json:
        facts = {"environment": versions, "seed": options.seed, "seconds": round(seconds, 1), **facts}
        Path(options.json).write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if failures else 0


def _inputs(attack: Attack, count: int, until: float) -> dict[str, Any]:
    """Attack with `count` inputs, and return the figures."""
    kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    failures: list[dict[str, Any]] = []
    longest = resident = done = 0
    for number in range(count):
        target, what, outcome, problems = attack.attack(number)
        done = number + 1
        kinds[target.name][f"exit {outcome.code}"] += 1
        longest, resident = max(longest, outcome.seconds), max(resident, outcome.resident - attack.idle)
        if problems:
            failures.append({"input": number, "target": target.name, "mutation": what, "problems": problems})
            shown = outcome.err.strip().splitlines()[-3:]
            print(f"input {number}: {target.name}, {what}: {', '.join(problems)}; {shown!r:.600}", flush=True)
        if done % 250 == 0:
            print(f"{done} inputs, {len(failures)} failures", flush=True)
        if time.monotonic() > until:
            break
    return {
        "inputs": done,
        "longest_s": round(longest, 2),
        "largest_mib_above_idle": round(resident / 2**20),
        "exit_codes": dict(collections.Counter(code for of_kind in kinds.values() for code in of_kind.elements())),
        "targets": {name: dict(of_kind) for name, of_kind in kinds.items()},
        "failures": failures,
    }


def _kill(root: Path, seed: int, count: int, until: float) -> dict[str, Any]:
    """Kill runs that often, and return the figures."""
    if not count:
        return {"killed": 0, "kills": {}, "kill_failures": []}
    kills = Kills(root, seed)
    failures: list[dict[str, Any]] = []

    def note(number: int | None, run: Run, problems: list[str]) -> None:
        if problems:
            failures.append({"kill": number, "target": run.name, "problems": problems})
            print(f"kill {number}: {run.name}: {', '.join(problems)}", flush=True)

    for number in range(count):
        note(number, kills.runs[number % len(kills.runs)], kills.kill(number))
        if (number + 1) % 50 == 0:
            print(f"{number + 1} kills, {len(failures)} failures", flush=True)
        if time.monotonic() > until:
            break
    for run in kills.runs:
        note(None, run, kills.complete(run))
    killed = sum(of_kind["kills"] for of_kind in kills.facts().values())
    return {"killed": killed, "kills": kills.facts(), "kill_failures": failures}


if __name__ == "__main__":
    sys.exit(main())
