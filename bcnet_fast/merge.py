"""Join the parts of `infer --shard` or `--ray` to one result file.

    python -m bcnet_fast.merge PARTS --output out.json --features PATH
        one submission JSON, with the bytes of a single run; tells which videos of the archive have no result

    python -m bcnet_fast.merge PARTS --output out.parquet --videos ids.txt
        one Parquet file with the columns video, rank, start, end, score, label

Exit code: 0 every video has a result; 1 some failed or are missing (the others are written); 2 bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from .cli.parser import Parser, command_parser, run
from .errors import InputError
from .results.merge import merge, read_ids
from .results.parquet import SUFFIX
from .results.parts import Part, parts_in
from .storage.optional import require_pyarrow
from .storage.output import require_storable, require_writable
from .storage.remote import exists
from .text import shown


def build_parser() -> Parser:
    parser = command_parser("merge", __doc__, ("parts", "output", "features", "videos"))
    parser.add_argument(
        "parts", metavar="PARTS", help="folder or address of the parts, the --output of infer --shard or --ray"
    )
    parser.add_argument("--output", metavar="FILE", required=True, help="file or address to write, .json or .parquet")
    archive = parser.add_mutually_exclusive_group()
    archive.add_argument("--features", metavar="PATH", help="features of all videos, to list those without a result")
    archive.add_argument(
        "--videos", metavar="FILE", help="the same from their ids, one a line, sorted as by LC_ALL=C sort"
    )
    parser.add_argument(
        "--unfinished", metavar="FILE", help="write the videos without a result, one a line, with status and error"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


def _ids(parts: str, features: str | None, videos: str | None) -> Iterable[str] | None:
    """The ids of the archive. InputError: it cannot be listed, or the run had a part of it only."""
    if videos is not None:
        return read_ids(videos)
    if features is None:
        return None
    settings = Part(parts_in(parts)[0]).header.settings if parts_in(parts) else {}
    if settings.get("subset") is not None:
        raise InputError(
            f"{parts} has the subset {settings['subset']!r} of the archive, expected its ids from --videos FILE"
        )
    from .data.features import open_features  # which imports PyTorch: two seconds

    data = settings.get("data")
    strip_prefix = isinstance(data, dict) and bool(data.get("strip_prefix"))
    return open_features(features, feature_dim=None, strip_prefix=strip_prefix).ids


def main(argv: list[str] | None = None) -> int:
    options = build_parser().parse_args(sys.argv[1:] if argv is None else argv)
    output = require_storable(options.output)
    if output.suffix not in (".json", SUFFIX):
        raise InputError(f"--output is {options.output}, expected a name that ends with .json or {SUFFIX}")
    if output.suffix == SUFFIX:
        require_pyarrow()
    if exists(output) and not options.overwrite:
        raise InputError(f"{options.output} exists; replace it with --overwrite")
    if options.unfinished:
        require_writable(options.unfinished)
    ids = _ids(options.parts, options.features, options.videos)
    report = merge(options.parts, output, videos=ids, unfinished=options.unfinished)
    print(report.summary())
    for line in report.unfinished:
        print(shown(line), file=sys.stderr)
    more = report.failed + report.missing - len(report.unfinished)
    if more:
        where = f"see {options.unfinished}" if options.unfinished else "list them with --unfinished FILE"
        print(f"and {more} more; {where}", file=sys.stderr)
    return 0 if report.complete else 1


if __name__ == "__main__":
    run(main)
