"""Figures and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

NAMES = {
    "reference": "PyTorch, eager",
    "torch.compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "bcnet_fast fp32": "**bcnet_fast fp32**",
    "bcnet_fast bf16": "bcnet_fast bf16",
    "bcnet_fast int8": "**bcnet_fast int8**",
}
SPACE = "\u00a0"  # keeps a figure and its ratio on one line


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, without an exponent between 0.001 and 99999; empty for None."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    decimals = max(0, digits - len(str(int(abs(value)))) if abs(value) >= 1 else digits)
    return f"{value:.{decimals}f}"


def times(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def machine(environment: dict[str, Any]) -> str:
    threads = f"{environment['threads']} {'thread' if environment['threads'] == 1 else 'threads'}"
    facts = [environment["device"], threads, f"PyTorch {environment['torch']}"]
    facts += [f"{name} {environment[key]}" for key, name in NAMES.items() if key in environment]
    return f"*{', '.join(facts)}; {environment['date']}, commit {environment['commit'].rstrip('+')}.*\n"
