"""The page of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..results.boundaries import Boundaries
from ..results.view import ViewOptions, ViewReport, view
from .options import InferOptions
from .refine import RefineOptions


def make_page(
    options: InferOptions | RefineOptions,
    curves: Mapping[str, Boundaries] | None = None,
    boundaries: str | None = None,
    files: Mapping[str, Path] | None = None,
) -> ViewReport | None:
    """Make the page of --page from the output of a finished run; None without that flag.

    curves: boundary probabilities of this run.
    boundaries: folder of those of this and earlier runs.
    files: video files by id, to which the page links.
    """
    if options.page is None:
        return None
    about = ViewOptions(
        results=options.output,
        output=options.page,
        ground_truth=options.ground_truth,
        # An annotation file of --times, which may state the subsets as well, is not shown.
        subset=options.subset if options.ground_truth else None,
        boundaries=boundaries,
    )
    return view(about, curves, files or None)
