"""`pytest tests/attack --attack N --kills M`: that many damaged inputs and kills instead of a quick part."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--attack", type=int, metavar="N", help="number of damaged inputs (default: a quick part)")
    parser.addoption("--kills", type=int, metavar="N", help="number of kills (default: a few)")
