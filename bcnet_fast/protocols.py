"""The public releases' habits that change results, each a named switch: the one table of them.

`DEFAULT` does the sensible thing, the same for all systems. `RELEASES` repeats the public code of each system exactly,
which a comparison with published numbers needs. docs/protocols.md says what each switch changes and by how much.

Switches are grouped by the stage that reads them. Every switch is off in the default protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .config import Config


@dataclass(frozen=True)
class WindowRules:
    """Windows of a video, and its length."""

    # The end of a video, up to a fifth of a window, belongs to no window.
    skip_short_tail: bool = False
    # A rescaled video lasts as long as its whole snippets, of 16 frames in the presets.
    whole_snippets: bool = False


@dataclass(frozen=True)
class LabelRules:
    """Labels of snippets and intervals."""

    # Snippets and anchors lie half a snippet early, anchors moreover on a whole video frame.
    early_labels: bool = False
    # Instances are cut at the window's ends, so the visible part of one counts as a whole.
    cut_instances: bool = False
    # Start and end labels look at the snippet-wide interval around a boundary and at the one after it too.
    wide_boundaries: bool = False
    # Background is 1 - the largest tIoA of any instance, where Eq. 2 takes the sum over instances.
    largest_overlap: bool = False


@dataclass(frozen=True)
class LossRules:
    """Weights within the losses."""

    # With fewer medium or low tIoU anchors than high ones, every anchor of the batch weighs one more.
    oversample: bool = False
    # The classification counts ten more positives and negatives than there are.
    padded_counts: bool = False
    # The map's classification term weighs 10, not its regression term.
    swapped_weights: bool = False


@dataclass(frozen=True)
class CandidateRules:
    """Intervals of a window that become proposals."""

    # Proposals may lie on the zeros that pad a short video.
    score_padding: bool = False
    # Snippet 0 is read as 1 and T-1 as T-2, so proposals that start at 1 appear twice.
    clamp_boundaries: bool = False
    # No cell of a map reaches the end of the window, where the networks have no boundary probability.
    skip_window_end: bool = False


@dataclass(frozen=True)
class SuppressionRules:
    """Soft-NMS."""

    # The last candidate is never given out; a single proposal gives nothing.
    drop_last: bool = False
    # The second pass, over a video's windows, starts from scores that the first has already decayed.
    decay_twice: bool = False


@dataclass(frozen=True)
class OutputRules:
    """Proposals as they are written."""

    # Times are rounded to 0.1 s and scores to 6 decimals.
    round_output: bool = False
    # Proposals may lie beyond the ends of the video.
    keep_outside: bool = False


@dataclass(frozen=True)
class Protocol:
    """The switches of all stages."""

    name: str
    windows: WindowRules = WindowRules()
    labels: LabelRules = LabelRules()
    losses: LossRules = LossRules()
    candidates: CandidateRules = CandidateRules()
    suppression: SuppressionRules = SuppressionRules()
    output: OutputRules = OutputRules()

    def with_switch(self, switch: str) -> Protocol:
        """A copy in which one switch is on, named like it. KeyError for a switch that no stage has."""
        for stage, rules in vars(self).items():
            if hasattr(rules, switch) and stage != "name":
                return replace(self, name=switch, **{stage: replace(rules, **{switch: True})})
        raise KeyError(switch)


NAMES = ("default", "release")
DEFAULT = Protocol("default")
RELEASES = {
    "bcnet": Protocol(
        "release",
        WindowRules(skip_short_tail=True),
        LabelRules(early_labels=True, cut_instances=True, largest_overlap=True),
        LossRules(oversample=True),
        CandidateRules(score_padding=True, clamp_boundaries=True),
        SuppressionRules(drop_last=True, decay_twice=True),
        OutputRules(round_output=True, keep_outside=True),
    ),
    "bmn": Protocol(
        "release",
        WindowRules(whole_snippets=True),
        losses=LossRules(oversample=True),
        candidates=CandidateRules(skip_window_end=True),
        suppression=SuppressionRules(drop_last=True),
    ),
    "gtad": Protocol(
        "release",
        WindowRules(skip_short_tail=True),
        LabelRules(early_labels=True, cut_instances=True),
        LossRules(oversample=True, padded_counts=True, swapped_weights=True),
        CandidateRules(score_padding=True, skip_window_end=True),
        SuppressionRules(drop_last=True, decay_twice=True),
        OutputRules(keep_outside=True),
    ),
    # The branch for ActivityNet-1.3.
    "gtad, rescaled": Protocol(
        "release",
        labels=LabelRules(wide_boundaries=True),
        losses=LossRules(oversample=True),
        candidates=CandidateRules(skip_window_end=True),
        suppression=SuppressionRules(drop_last=True),
        output=OutputRules(keep_outside=True),
    ),
}


def protocol_for(name: str, config: Config) -> Protocol:
    """The protocol `name`, one of NAMES, for the system and the kind of data of a configuration."""
    release = RELEASES[config.model.name]
    if config.data.rescale:
        release = RELEASES.get(f"{config.model.name}, rescaled", release)
    return {"default": DEFAULT, "release": release}[name]
