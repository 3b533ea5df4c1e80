"""BCNet's pre-set anchors, and the anchor that matches a pair of boundaries.

Both depend on sizes alone and are computed once. Units are snippets; an anchor [start, end) is half open.
"""

from __future__ import annotations

import functools
import math

import numpy as np


@functools.lru_cache(maxsize=16)
def make_anchors(window: int, max_duration: int) -> np.ndarray:
    """List all anchors of a window, int32 [P, 2] (start, end): narrow before wide, then early before late.

    Widths are 2, 5, 8, ... below `max_duration`. Anchors of width w start every floor(sqrt(w)) + floor(w / 21)
    snippets and lie inside [0, window). The sizes 256 and 64 give the 1218 anchors of the public BCNet release.

    Raises:
        ValueError: no anchor fits.
    """
    anchors = [
        (start, start + width)
        for width in range(2, max_duration, 3)
        for start in range(0, window - width + 1, math.isqrt(width) + width // 21)
    ]
    if not anchors:
        raise ValueError(f"no anchor fits: window {window}, max_duration {max_duration}; expected at least 2 and 3")
    result = np.array(anchors, dtype=np.int32)
    result.flags.writeable = False
    return result


@functools.lru_cache(maxsize=16)
def matching_table(window: int, max_duration: int) -> np.ndarray:
    """Match boundary pairs to anchors: int32 [T, D], at [start, d - 1] the index for the pair (start, start + d).

    The match is the anchor of highest tIoU. Among equals it is the one with the lowest index, as in the public release.
    It does not depend on the video, so this table replaces a search per pair.
    """
    anchors = make_anchors(window, max_duration).astype(np.float64)
    anchor_start, anchor_end = anchors[:, 0], anchors[:, 1]
    duration = np.arange(1.0, max_duration + 1)[:, None]
    table = np.empty((window, max_duration), dtype=np.int32)
    for start in range(window):
        overlap = np.minimum(start + duration, anchor_end) - np.maximum(start, anchor_start)
        overlap = np.maximum(overlap, 0.0)  # [D, P]
        # Numerator and denominator are small integers: equal tIoUs are equal as floats, and argmax takes the first.
        table[start] = np.argmax(overlap / (duration + (anchor_end - anchor_start) - overlap), axis=1)
    table.flags.writeable = False
    return table
