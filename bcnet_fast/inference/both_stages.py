"""Proposals and their refinement in one run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..data.class_scores import score_files
from ..errors import InputError
from ..storage.output import require_apart
from .options import InferOptions
from .refine import RefineOptions, RefineReport, refine
from .run import InferReport, infer
from .running import require_fresh, result_files
from .second_stage_model import BACKENDS, PRECISIONS
from .streams import class_names, read_configs


def proposals_beside(output: str) -> str:
    """The proposal file from which `output` is refined: `out.proposals.json` beside `out.json`."""
    return str(Path(output).with_suffix(".proposals.json"))


def infer_and_refine(options: InferOptions) -> tuple[InferReport, RefineReport]:
    """Run `infer` into a file beside the output, then `refine` that file; same result as both commands by hand.

    InputError: as both raise it; a wrong option of the second stage is an error before the first one runs.
    """
    if not options.refine:
        raise InputError("--refine has no checkpoint, expected at least one")
    proposals = proposals_beside(options.output)
    for path in (options.output, proposals):
        require_fresh(path, resume=options.resume, overwrite=options.overwrite)
    # What only one of the two runs knows of.
    require_apart(
        {
            "--output": [*result_files(options.output), *result_files(proposals)],
            "--trace": options.trace,
            "--page": options.page,
        },
        checkpoint=options.checkpoint,
        refine=options.refine,
        times=options.time.times,
        labels=score_files(options.labels),
        ground_truth=options.ground_truth,
    )
    class_names(read_configs(options.refine), options.refine, None)
    features = options.keep_features if options.videos else options.features
    if features is None:
        raise InputError("--refine reads the features again, expected --keep-features DIR with videos")
    first = replace(options, output=proposals, refine=None, labels=None, plot=None, plot_format=None, srt=None)
    report = infer(first)
    # Newly found proposals change the file, and with it the input of the second stage.
    changed = report.windows > 0
    shared = ("subset", "time", "limits", "device", "protocol", "labels", "plot", "plot_format", "srt", "best")
    shared += ("ground_truth", "workers", "profile")
    refined = refine(
        RefineOptions(
            proposals=proposals,
            features=(features,),
            checkpoint=options.refine,
            output=options.output,
            precision=options.precision if options.precision in PRECISIONS else "fp32",
            backend=options.backend if options.backend in BACKENDS else "auto",
            resume=options.resume and not changed,
            overwrite=options.overwrite or changed,
            **{name: getattr(options, name) for name in shared},
        )
    )
    return report, refined
