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


def on_backends(backends: Iterable, name: str, cases: Iterable, *, interpreted: int = 1) -> pytest.MarkDecorator:
    """Parametrize a test with the fixture `backend` and something else; Triton's interpreter is slow, the others not.

    Args:
        backends: the parameters of the fixture.
        name: the other argument.
        cases: its values. Triton's tests of all but the first ones are slow.
        interpreted: number of the first ones.
    """
    pairs, cases = [], list(map(_parameter, cases))
    for backend in map(_parameter, backends):
        for place, case in enumerate(cases):
            slow = [pytest.mark.slow] if backend.values == ("triton",) and place >= interpreted else []
            named = f"{backend.values[0]}-{case.id}" if case.id else None
            pairs.append(
                pytest.param(*backend.values, *case.values, marks=[*backend.marks, *case.marks, *slow], id=named)
            )
    return pytest.mark.parametrize(("backend", name), pairs, indirect=["backend"])


def _parameter(value):
    return value if hasattr(value, "marks") else pytest.param(value)
