"""Settings that a run records in its outputs; a run that resumes it must have the same."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import __version__
from ..config import Config
from ..storage.address import place_of, shown_address
from .options import InferOptions
from .running import sha256


def run_settings(options: InferOptions, config: Config) -> dict[str, Any]:
    """Everything that determines the results; an interrupted run is resumed only if it is the same."""
    names = ("fusion", "top_k", "precision", "protocol", "plot", "plot_format", "srt", "best")
    return {
        "version": __version__,
        "checkpoint": sha256(options.checkpoint),
        "times": sha256(options.time.times),
        "labels": sha256(options.labels),
        "features": shown_address(options.features),
        "recipe": [options.network.recipe, *options.network.backbone, *options.network.weights],
        "subset": options.subset,
        "every": options.time.every,
        **dataclasses.asdict(options.time.flags),
        **{name: getattr(options, name) for name in names},
        **config.to_dict(),
    }


def version_of(config: Config) -> str:
    """The `version` of a submission file, by which evaluators tell the data sets apart."""
    return "THUMOS14" if config.preset == "thumos14" else "VERSION 1.3"


def details_of(options: InferOptions, config: Config) -> str:
    """Settings in one line, for the summary and the result file."""
    weights = f"checkpoint {place_of(options.checkpoint).name}" if options.checkpoint else "random weights"
    flags = options.time.flags
    stated = [f"{name} {getattr(flags, name):g}" for name in ("fps", "stride", "offset") if getattr(flags, name)]
    if options.time.times:
        stated.append(f"times {place_of(options.time.times).name}")
    parts = [f"bcnet_fast {__version__}", config.model.name, f"preset {config.preset}", weights]
    return ", ".join([*parts, options.precision, f"protocol {options.protocol}", *stated])
