"""Long sweeps: the first cases always run, the rest is left out by `-m "not slow"`."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


def sweep(names: str | tuple[str, ...], cases: Iterable, *, keep: int = 1, **options) -> pytest.MarkDecorator:
    """Parametrize as `pytest.mark.parametrize` does, and mark all cases behind the first `keep` as slow."""
    cases, single = list(cases), isinstance(names, str) and "," not in names
    for place in range(keep, len(cases)):
        case = cases[place]
        if hasattr(case, "marks"):  # made by pytest.param
            cases[place] = pytest.param(*case.values, marks=(*case.marks, pytest.mark.slow), id=case.id)
        else:
            cases[place] = pytest.param(*((case,) if single else case), marks=pytest.mark.slow)
    return pytest.mark.parametrize(names, cases, **options)
