"""The list of all settings of a configuration, for `train --list-settings`."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import Any

from ..config import Config, SecondStageConfig, meanings, section_kinds
from ..presets import FITTED

_FITTED = ("model.feature_dim", "model.window", "model.max_duration", "data.window_stride")
_FITTED_SECOND_STAGE = ("model.feature_dim", "model.classes", "rows.clip")
_INDENT = 40  # columns of names and defaults


def list_settings(config: Config | SecondStageConfig) -> str:
    """Every setting with its default, written as --set takes it, and its meaning; wrapped to the terminal."""
    model, preset = config.model.name, config.preset
    width = max(shutil.get_terminal_size((120, 24)).columns, _INDENT + 20)
    lines = [f"settings of model {model}, preset {preset}; change them with --set SECTION.NAME=VALUE", ""]
    for section, kind in section_kinds(model).items():
        known = meanings(kind)
        for name, default in vars(getattr(config, section)).items():
            start = f"{section}.{name}"
            start += f" {_as_flag(default):>{max(1, _INDENT - 2 - len(start))}}  "
            lines += textwrap.wrap(known[name], width, initial_indent=start, subsequent_indent=" " * len(start))
        lines.append("")
    if preset == FITTED:
        fitted = _FITTED_SECOND_STAGE if isinstance(config, SecondStageConfig) else _FITTED
        lines.append(f"--preset {FITTED} takes {', '.join(fitted[:-1])} and {fitted[-1]} from the data.")
    return "\n".join(lines).rstrip()


def _as_flag(value: Any) -> str:
    """A value as --set takes it; text needs no quotes."""
    return value if isinstance(value, str) else json.dumps(value).replace(" ", "")
