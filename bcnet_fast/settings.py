"""From nested dicts, as files and flags have them, to the dataclasses of a configuration, with one-line errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from . import bounds
from .errors import InputError
from .text import alternatives, brief, nearest

_FROM_0 = ("seed", "rescaled")  # whole numbers that may be 0; all others are at least 1
_NULLABLE = ("max_snippets", "fps", "row_stride", "offset")
_POSITIVE = ("stride", "row_stride", "fps", "sigma", "max_snippets", "learning_rate", "decay_factor")
_NOT_NEGATIVE = ("weight_decay", "gradient_clip", "nms_threshold", "fused_nms_threshold")
_SHARES = ("dropout", "ema", "graph_dropout", "activity_dropout", "momentum")
_CHOICES = {"map_layout": ("start_end", "duration_start"), "map_kernel": (1, 3), "precision": ("fp32", "tf32", "bf16")}
_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def setting_names(kinds: Mapping[str, type]) -> list[str]:
    """Names of all settings in some sections, such as `train.epochs`."""
    return [f"{section}.{f.name}" for section, kind in kinds.items() for f in dataclasses.fields(kind)]


def require_object(values: Any, source: str) -> None:
    if not isinstance(values, dict):
        raise InputError(f"{source} is {brief(values)}, expected an object with settings")


def build_section(kinds: Mapping[str, type], section: str, values: Any, source: str) -> Any:
    require_object(values, f"{source}: {section}")
    fields = {f.name: f for f in dataclasses.fields(kinds[section])}
    clean = {}
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"{source}: there is no setting {section}.{name}{_nearest_setting(kinds, section, name)}")
        default = fields[name].default
        try:
            if value is None and name in _NULLABLE:
                clean[name] = None
            else:
                clean[name] = _converted(name, value, 0.0 if default is None else default)
        except ValueError as error:
            raise InputError(f"{source}: {section}.{name} is {brief(value)}, expected {error}") from None
    return kinds[section](**clean)


def _nearest_setting(kinds: Mapping[str, type], section: str, name: str) -> str:
    """A hint at the setting that was meant: of that name in another section, or of a similar one."""
    names = setting_names(kinds)
    by_name = {known.partition(".")[2]: known for known in names}
    near = nearest(name, by_name)
    if near:
        return f"; did you mean {by_name[near]}?"
    return f"; the settings of {section} are {', '.join(known for known in names if known.startswith(f'{section}.'))}"


def _converted(name: str, value: Any, default: Any) -> Any:
    """`value` in the type of `default`; ValueError says what the setting `name` must be."""
    if isinstance(default, tuple):
        if not isinstance(value, (list, tuple)) or len(value) != len(default):
            raise ValueError(f"{len(default)} numbers, such as {list(default)}")
        return tuple(_converted(name, one, of_default) for one, of_default in zip(value, default, strict=True))
    if isinstance(default, float) and type(value) is int and abs(value) <= bounds.LARGEST:
        value = float(value)
    if type(value) is not type(default):
        raise ValueError(_TYPES[type(default)])
    low, high = 0 if name in _FROM_0 else 1, bounds.BOUNDS.get(name, bounds.LARGEST)
    if type(value) is int and not low <= value <= high:
        raise ValueError(f"a whole number from {low} to {high}")
    if type(value) is float and not math.isfinite(value):
        raise ValueError("a finite number")
    if name in _POSITIVE and value <= 0:
        raise ValueError("a number above 0")
    if name in _POSITIVE and value < bounds.SMALLEST_FLOAT:
        raise ValueError(f"a number of at least {bounds.SMALLEST_FLOAT:g}")
    if type(value) is float and abs(value) > bounds.LARGEST_FLOAT:
        raise ValueError(f"a number of at most {bounds.LARGEST_FLOAT:g}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(alternatives(map(str, _CHOICES[name])))
    if name == "decay_factor" and value > 1:
        raise ValueError("a number above 0, up to 1")
    if name in _NOT_NEGATIVE and value < 0:
        raise ValueError("a number of at least 0")
    if name in _SHARES and not 0 <= value < 1:
        raise ValueError("a share from 0 to below 1")
    return value
