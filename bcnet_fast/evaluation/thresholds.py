"""tIoU thresholds as users write them: `0.3:0.1:0.7` or `0.3,0.5,0.7`."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from ..errors import InputError

_MOST = 100  # thresholds
_EXPECTED = "expected FIRST:STEP:LAST or a comma list of numbers above 0 and up to 1, such as 0.3:0.1:0.7 or 0.3,0.5"
_SAME = 1e-9


def parse_tiou(text: str) -> tuple[float, ...]:
    """Thresholds in the order of the text; a range includes both ends. InputError: names --tiou and what is wrong."""
    parts = text.split(":")
    try:
        values = [Decimal(part.strip()) for part in (parts if len(parts) > 1 else text.split(","))]
    except InvalidOperation:
        raise InputError(f"--tiou is {text!r:.80}, {_EXPECTED}") from None
    if not all(value.is_finite() for value in values) or len(parts) not in (1, 3):
        raise InputError(f"--tiou is {text!r:.80}, {_EXPECTED}")
    if len(parts) == 3:
        values = _range(text, *values)
    wrong = next((value for value in values if not _is_threshold(value)), None)
    if wrong is not None:
        raise InputError(f"--tiou {text:.80} has the threshold {wrong!s:.80}, expected numbers above 0 and up to 1")
    if len(set(values)) < len(values):
        raise InputError(f"--tiou {text:.80} has a threshold twice, expected each once")
    if len(values) > _MOST:
        raise InputError(f"--tiou {text[:80]} has {len(values)} thresholds, expected at most {_MOST}")
    return tuple(map(float, values))


def _is_threshold(value: Decimal) -> bool:
    """Whether a number is in (0, 1], also as a float, where the smallest ones become 0."""
    return 0 < value <= 1 and float(value) > 0


def _range(text: str, first: Decimal, step: Decimal, last: Decimal) -> list[Decimal]:
    # Comparisons of huge exponents are exact and cheap; sums of them would not be.
    if not (_is_threshold(first) and _is_threshold(last) and 0 < step <= 1):
        raise InputError(f"--tiou is {text!r:.80}, {_EXPECTED}")
    if last < first:
        raise InputError(f"--tiou {text:.80} ends below its beginning, expected FIRST:STEP:LAST with FIRST <= LAST")
    if last - first >= _MOST * step:  # a quotient could overflow
        raise InputError(f"--tiou {text:.80} has more than {_MOST} thresholds, expected at most {_MOST}")
    steps = (last - first) / step
    if steps != int(steps):
        raise InputError(f"--tiou {text:.80}: no whole number of steps leads from {first!s:.40} to {last!s:.40}")
    return [first + place * step for place in range(int(steps) + 1)]


def with_own_bits(thresholds: Sequence[float], own: Sequence[float]) -> tuple[float, ...]:
    """The thresholds with the last bits of a metric's own, which decide where a tIoU equals a threshold."""
    return tuple(next((bits for bits in own if abs(bits - value) < _SAME), value) for value in thresholds)
