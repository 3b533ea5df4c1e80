"""The public releases' habits that change results, each a named switch: the one table of them.

`DEFAULT` does the sensible thing, the same for all systems. `RELEASES` repeats the public code of each system exactly,
which a comparison with published numbers needs. docs/protocols.md says what each switch changes and by how much.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import Config


@dataclass(frozen=True)
class Protocol:
    """Every switch is off in the default protocol."""

    name: str
    # Windows: up to a fifth of a window at the end of a video is never looked at.
    skip_short_tail: bool = False
    # Windows: proposals may lie on the zeros that pad a short video.
    score_padding: bool = False
    # Labels: snippets and anchors lie half a snippet early, anchors moreover on a whole video frame.
    early_labels: bool = False
    # Labels: instances are cut at the window's ends, so the visible part of one counts as a whole.
    cut_instances: bool = False
    # Labels: those of starts and ends look at the snippet-wide interval around a boundary and at the one after it too.
    wide_boundaries: bool = False
    # Labels: background is 1 - the largest tIoA of any instance, where Eq. 2 takes the sum over instances.
    largest_overlap: bool = False
    # Losses: with fewer medium or low tIoU anchors than high ones, every anchor of the batch weighs one more.
    oversample: bool = False
    # Losses: the classification counts ten more positives and negatives than there are.
    padded_counts: bool = False
    # Losses: of the two parts over the map, the classification is weighted by 10 and not the regression.
    swapped_weights: bool = False
    # Candidates: snippet 0 is read as 1 and T-1 as T-2, so proposals that start at 1 appear twice.
    clamp_boundaries: bool = False
    # Candidates: no cell of a map reaches the end of the window, where the networks have no boundary probability.
    skip_window_end: bool = False
    # Soft-NMS: the last candidate is never given out; a single proposal gives nothing.
    drop_last: bool = False
    # Soft-NMS: the second pass, over a video's windows, starts from scores that the first has already decayed.
    decay_twice: bool = False
    # Output: a rescaled video lasts as long as its whole snippets, of 16 frames in the presets.
    whole_snippets: bool = False
    # Output: times are rounded to 0.1 s and scores to 6 decimals.
    round_output: bool = False
    # Output: proposals may lie beyond the ends of the video.
    keep_outside: bool = False


NAMES = ("default", "release")
DEFAULT = Protocol("default")
RELEASES = {
    "bcnet": Protocol(
        "release",
        skip_short_tail=True,
        score_padding=True,
        early_labels=True,
        cut_instances=True,
        largest_overlap=True,
        oversample=True,
        clamp_boundaries=True,
        drop_last=True,
        decay_twice=True,
        round_output=True,
        keep_outside=True,
    ),
    "bmn": Protocol("release", oversample=True, skip_window_end=True, drop_last=True, whole_snippets=True),
    "gtad": Protocol(
        "release",
        skip_short_tail=True,
        score_padding=True,
        early_labels=True,
        cut_instances=True,
        oversample=True,
        padded_counts=True,
        swapped_weights=True,
        skip_window_end=True,
        drop_last=True,
        decay_twice=True,
        keep_outside=True,
    ),
    # The branch for ActivityNet-1.3.
    "gtad, rescaled": Protocol(
        "release", wide_boundaries=True, oversample=True, skip_window_end=True, drop_last=True, keep_outside=True
    ),
}


def protocol_for(name: str, config: Config) -> Protocol:
    """What `--protocol NAME` means for a system and the kind of its data; `name` is one of NAMES."""
    release = RELEASES[config.model.name]
    if config.data.rescale:
        release = RELEASES.get(f"{config.model.name}, rescaled", release)
    return {"default": DEFAULT, "release": release}[name]
