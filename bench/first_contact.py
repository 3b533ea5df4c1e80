"""The first contact with a GPU: in eight minutes, whether everything is right on it, and how fast it is.

    python bench/first_contact.py --out DIR [--budget SECONDS]            on a machine with an NVIDIA GPU
    python bench/first_contact.py --out DIR --device cpu                  the same on a CPU, with small shapes

Needs the checkout, torch, Triton, NumPy and safetensors. Each step is a process of its own with a limit, so that a
crash or a hang costs that step alone. In DIR: report.md (failures first, then a table a step) and results.jsonl (one
line a step), both complete after every step; the kernels of one replay as CSV files and traces; logs/ and work/.

Exit code: 0 no step failed, 1 some did, 2 bad arguments, 130 interrupted. docs/first_contact.md has more.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

BENCH = Path(__file__).resolve().parent
# Nothing has to be installed.
sys.path[:0] = [str(BENCH), str(BENCH.parent)]

from contact.runner import FAILING, Interrupted, Run  # noqa: E402
from contact.steps import STEPS, Step  # noqa: E402

from bcnet_fast.cli.parser import Parser, run  # noqa: E402
from bcnet_fast.errors import InputError  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results, new or empty")
    parser.add_argument("--budget", type=float, default=460.0, metavar="SECONDS", help="for all steps together")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device to run on")
    parser.add_argument("--steps", nargs="+", metavar="NAME", help=f"some of: {', '.join(step.name for step in STEPS)}")
    args = parser.parse_args(argv)
    if not args.budget > 0:
        raise InputError(f"--budget: expected a number above 0, found {args.budget:g}")
    steps = _chosen(args.steps)
    if args.device == "cpu":  # which may be shared with other work
        steps = [replace(step, limit=3 * step.limit) for step in steps]
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if any(args.out.iterdir()):
            raise InputError(f"--out {args.out}: expected a new or empty folder, found files in it")
    except OSError as error:
        raise InputError(f"--out {args.out}: expected a folder to write to, found: {error.strerror}") from error

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


def _chosen(names: list[str] | None) -> list[Step]:
    if names is None:
        return list(STEPS)
    if unknown := [name for name in names if name not in {step.name for step in STEPS}]:
        raise InputError(f"--steps: expected some of {', '.join(step.name for step in STEPS)}, found {unknown[0]!r}")
    return [step for step in STEPS if step.name in names]


if __name__ == "__main__":
    run(main)
