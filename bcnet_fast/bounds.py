"""Bounds of the numbers in files and flags: a small configuration cannot ask for a network that fills the memory, and a
time in seconds can be turned into milliseconds and frames."""

from __future__ import annotations

LARGEST = 2**31 - 1  # default bound of a size or count
LARGEST_FLOAT = 1e30  # magnitude of any float setting, and of any time or score in a file
SMALLEST_FLOAT = 1e-30  # lower bound of a number that must be positive
# Ranges of what places rows in time, in frames and seconds. No product or quotient of them exceeds LARGEST_FLOAT.
TIME_RANGES = {
    "fps": (1e-6, 1e6),
    "stride": (1e-6, LARGEST),
    "offset": (-LARGEST, LARGEST),
    "duration": (1e-6, 1e9),
    "frames": (1, LARGEST),
}
# Largest sizes that a configuration may state: far above any network that was published, and small enough that a file
# of a few KiB cannot fill the memory. `Config.require_possible` bounds what is built from several sizes.
BOUNDS = {
    "feature_dim": 65_536,
    "window": 4_096,
    "max_duration": 4_096,
    **dict.fromkeys(("base_channels", "width", "feedforward", "head_dim"), 16_384),
    **dict.fromkeys(("sampled_channels", "map_channels", "block_channels", "block_groups"), 16_384),
    "clip_channels": 4_096,
    **dict.fromkeys(("bins", "inner_bins", "context_bins", "points_per_bin", "heads", "neighbours"), 1_024),
    "boundary_layers": 256,
    **dict.fromkeys(("hidden", "channels", "head_width", "classes"), 16_384),
    "rescaled": 4_096,
    "passes": 10_000,
    **dict.fromkeys(("window_top", "top", "epochs", "decay_every", "batch_size"), 1_000_000),
}
LARGEST_MAP = 2**20  # cells of a map; 100 x 100 on ActivityNet, 256 x 64 on THUMOS14
MOST_ANCHORS = 2**15  # attention compares each with each; 1218 on THUMOS14
LARGEST_TABLE = 2**32  # comparisons behind the table that matches pairs of boundaries to anchors
LARGEST_PLAN = 2**28  # points that all cells or anchors sample
MOST_PROCESSES = 1024  # or threads, that a flag may ask for
LARGEST_WEIGHT = 2**28  # elements
MOST_TENSORS = 10_000  # of a checkpoint; published networks have some hundreds


def time_fault(name: str, value: float) -> str | None:
    """Description of the values that a number of TIME_RANGES may have; None if it has one of them."""
    low, high = TIME_RANGES[name]
    if low <= value <= high:
        return None
    return f"a {'positive' if low > 0 else 'finite'} number from {low:g} to {high:g}"
