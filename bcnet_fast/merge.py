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
from dataclasses import dataclass

from .cli.parser import Parser, command_parser, run
from .errors import InputError
from .results.merge import merge, read_ids
from .results.parquet import SUFFIX
from .results.parts import NAME, Part, parts_in
from .storage.address import Place, place_of
from .storage.optional import require_pyarrow
from .storage.output import Paths, require_apart, require_storable, require_writable
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


@dataclass(frozen=True)
class MergeOptions:
    """Options of `merge`. A field has the meaning of the flag with the same name."""

    parts: str
    output: Place
    features: str | None = None
    videos: str | None = None
    unfinished: str | None = None


def parse(argv: list[str] | None) -> MergeOptions:
    """Flags to options. InputError: the output exists or cannot be written."""
    flags = build_parser().parse_args(argv)
    output = require_storable(flags.output)
    if output.suffix not in (".json", SUFFIX):
        raise InputError(f"--output is {flags.output}, expected a name that ends with .json or {SUFFIX}")
    if output.suffix == SUFFIX:
        require_pyarrow()
    if exists(output) and not flags.overwrite:
        raise InputError(f"{flags.output} exists; replace it with --overwrite")
    if flags.unfinished:
        require_writable(flags.unfinished)
    return MergeOptions(flags.parts, output, flags.features, flags.videos, flags.unfinished)


def _require_apart(options: MergeOptions, **inputs: Paths) -> None:
    """InputError: an output is an input or the other output, or would be read as a part."""
    outputs = {"--output": options.output, "--unfinished": options.unfinished}
    for flag, path in outputs.items():
        if path is not None and NAME.fullmatch(place_of(path).name):
            raise InputError(f"{flag} {path} is named like a part, expected another name")
    require_apart(outputs, **inputs)


def ids_of_archive(options: MergeOptions) -> Iterable[str] | None:
    """The ids of all videos, None if not stated. InputError: they cannot be listed, or the run had a part only."""
    if options.videos is not None:
        return read_ids(options.videos)
    if options.features is None:
        return None
    parts = parts_in(options.parts)
    settings = Part(parts[0]).header.settings if parts else {}
    if settings.get("subset") is not None:
        raise InputError(
            f"{options.parts} has the subset {settings['subset']!r} of the archive, expected its ids from --videos FILE"
        )
    from .data.features import open_features  # imports PyTorch, which takes two seconds

    data = settings.get("data")
    strip_prefix = isinstance(data, dict) and bool(data.get("strip_prefix"))
    archive = open_features(options.features, feature_dim=None, strip_prefix=strip_prefix)
    _require_apart(options, features={file for video in archive.ids for file in archive.files(video)})
    return archive.ids


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    _require_apart(options, parts=parts_in(options.parts), videos=options.videos)
    report = merge(options.parts, options.output, videos=ids_of_archive(options), unfinished=options.unfinished)
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
