"""The report on the installation."""

from __future__ import annotations

import pytest

from bcnet_fast import doctor
from bcnet_fast.ops import backends, native


@pytest.fixture
def quick(monkeypatch):
    """All self-tests pass without running an operator."""
    monkeypatch.setattr(doctor, "CHECKS", dict.fromkeys(doctor.CHECKS, (lambda device: 0.0, 0.0)))


def test_report_names_every_operator_and_backend_and_passes(capsys):
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    rows = [line.split("  ") for line in text.split("\n\n")[1].splitlines()]
    for op, preference in backends.PREFERENCE.items():
        names = " ".join("  ".join(row) for row in rows if row[0].strip() == op)
        assert all(backend in names for backends in preference.values() for backend in backends)
        assert "PASS" in names and "FAIL" not in names
    assert doctor.CHECKS.keys() == backends.PREFERENCE.keys()
    for fact in ("python", "torch", "processor", "native extension"):
        assert fact in text


@pytest.mark.parametrize("error", [1e-3, float("nan"), ValueError("broken")], ids=str)
def test_a_wrong_result_or_a_crash_fails(quick, monkeypatch, capsys, error):
    def check(device):
        if isinstance(error, Exception):
            raise error
        return error

    monkeypatch.setitem(doctor.CHECKS, "soft_nms", (check, 1e-12))
    assert doctor.main([]) == 1
    captured = capsys.readouterr()
    assert "FAIL" in captured.out
    assert "gave a wrong result" in captured.err


def test_the_self_test_sees_a_wrong_pick_and_a_wrong_score(monkeypatch):
    right = doctor.ops.soft_nms
    device = doctor.torch.device("cpu")
    monkeypatch.setattr(doctor.ops, "soft_nms", lambda *a, **k: right(*a, **(k | {"sigma": 0.501})))
    assert doctor.CHECKS["soft_nms"][0](device) > 1e-6
    monkeypatch.setattr(doctor.ops, "soft_nms", lambda *a, **k: right(*a, **(k | {"max_proposals": 7})))
    assert doctor.CHECKS["soft_nms"][0](device) == float("inf")


def test_a_missing_extension_is_explained(quick, monkeypatch, capsys):
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "reason", "it was not built")
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "no: it was not built" in out
    assert any("soft_nms" in line and "reference (chosen)" in line for line in out.splitlines())


def test_a_request_that_cannot_be_met_is_explained(quick, monkeypatch, capsys):
    monkeypatch.setenv(backends.VARIABLE, "triton")
    assert doctor.main([]) == 0
    assert "soft_nms has no triton implementation for cpu" in capsys.readouterr().out
