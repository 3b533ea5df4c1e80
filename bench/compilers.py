"""The native extension as two compilers build it, beside each other.

    python bench/compilers.py [--compiler clang++] [--json FILE] [--threads N]

Builds the extension once more with another compiler (some minutes), and times its functions beside those of the one
that is installed: each in a process of its own, in turn, so that a disturbance of the machine meets both. Medians of
means of some calls, and their ratio; above 1, the other compiler's code is the slower one.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from support import extension_cases
from support.environment import ROOT, begin
from support.tables import print_table

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.errors import BackendError
from bcnet_fast.ops import native
from bcnet_fast.storage.output import write_json

ROUNDS = 31  # the first one warms up


def build(compiler: str, folder: str) -> str:
    """Build the extension for the CPU with a compiler, and return its path."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder, "--build-temp", f"{folder}/temp"]
    wanted = {"CC": compiler, "CXX": compiler, "BCNET_FAST_NATIVE": "1", "BCNET_FAST_CUDA": "0"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | wanted, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(f"{compiler} cannot build the extension: {(done.stderr or done.stdout).strip()[-300:]}")
    return str(next(Path(folder, "bcnet_fast").glob("_C.*")))


class Build:
    """A process that times one build."""

    def __init__(self, path: str, threads: int) -> None:
        command = [sys.executable, extension_cases.__file__, path, str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._asks, self._answers = self._process.stdin, self._process.stdout
        self.compiler, self.cases = json.loads(self._answers.readline())

    def milliseconds(self, case: str) -> float:
        print(case, file=self._asks, flush=True)
        return float(self._answers.readline())

    def close(self) -> None:
        self._process.communicate()


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--compiler", metavar="NAME", default="clang++", help="the other one (default clang++)")
    parser.add_argument("--threads", type=int, metavar="N", default=1, help="threads of a function (default 1)")
    parser.add_argument("--json", metavar="FILE", help="write the results")
    args = parser.parse_args(argv)
    if native.module is None:
        raise BackendError(native.reason)
    facts = begin(args.threads, [args.json])
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        paths = native.module.__file__, build(args.compiler, folder)
        both = [stack.enter_context(contextlib.closing(Build(path, args.threads))) for path in paths]
        for case in both[0].cases:
            times = [[each.milliseconds(case) for each in both] for _ in range(ROUNDS)][1:]
            ours, theirs = map(statistics.median, zip(*times, strict=True))
            rows.append({"function": case, "ms": ours, "other_ms": theirs, "ratio": theirs / ours})
    compilers = [each.compiler for each in both]
    print_table(["function", *(f"ms by {name}" for name in compilers), "ratio"], [list(row.values()) for row in rows])
    if args.json:
        write_json(args.json, {"environment": facts, "compilers": compilers, "rows": rows})
    return 0


if __name__ == "__main__":
    run(main)
