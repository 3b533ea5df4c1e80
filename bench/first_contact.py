"""The first contact with a GPU: in eight minutes, whether everything is right on it, and how fast it is.

    python bench/first_contact.py --out DIR [--budget SECONDS]            on a machine with an NVIDIA GPU
    python bench/first_contact.py --out DIR --device cpu                  the same on a CPU, with small shapes

Needs the checkout, torch, Triton, NumPy and safetensors. Each step is a process of its own with a limit, so that a
crash or a hang costs that step alone. In DIR: report.md (failures first, then a table a step) and results.jsonl (one
line a step), both complete after every step; the kernels of one replay as CSV files and traces; logs/ and work/.

Exit code: 0 no step failed, 1 some did, 2 bad arguments, 130 interrupted. docs/first_contact.md has more.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from contact.runner import FAILING, Interrupted, Run
from contact.steps import STEPS


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line. The package's own is not there yet: nothing has to be installed."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help\n")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results, new or empty")
    parser.add_argument("--budget", type=float, default=460.0, metavar="SECONDS", help="for all steps (default: 460)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device to run on (default: cuda)")
    parser.add_argument("--steps", nargs="+", metavar="NAME", help=f"some of: {', '.join(step.name for step in STEPS)}")
    args = parser.parse_args(argv)
    if not args.budget > 0:
        parser.error(f"--budget: expected a number above 0, found {args.budget:g}")
    known = [step.name for step in STEPS]
    if unknown := [name for name in args.steps or () if name not in known]:
        parser.error(f"--steps: expected some of {', '.join(known)}, found {unknown[0]!r}")
    steps = [step for step in STEPS if args.steps is None or step.name in args.steps]
    if args.device == "cpu":  # which may be shared with other work
        steps = [replace(step, limit=3 * step.limit) for step in steps]
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if any(args.out.iterdir()):
            parser.error(f"--out {args.out}: expected a new or empty folder, found files in it")
    except OSError as error:
        parser.error(f"--out {args.out}: expected a folder to write to, found: {error.strerror}")

    work = Run(steps, args.out.resolve(), args.device, args.budget, lambda line: print(line, flush=True))
    try:
        results = work.all()
    except Interrupted:
        print(f"interrupted; what is known: {args.out / 'report.md'}", file=sys.stderr)
        return 130
    failing = [result.step for result in results if result.status in FAILING]
    print(f"{len(failing)} of {len(results)} steps failed: {', '.join(failing)}" if failing else "no step failed")
    print(f"report: {args.out / 'report.md'}")
    return 1 if failing else 0


if __name__ == "__main__":
    sys.exit(main())
