"""Shards of an archive: which of several runs processes a video."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InputError

_STATED = re.compile(r"(\d{1,9})/(\d{1,9})")


@dataclass(frozen=True)
class Shard:
    """The videos whose ids hash to `index` modulo `count`, whatever other videos the archive has."""

    index: int
    count: int

    def __contains__(self, video: object) -> bool:
        name = str(video).encode("utf-8", "surrogateescape")
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Parse `I/N` with I from 0, or `auto` for a batch scheduler's environment variables. InputError: neither."""
    if text == "auto":
        return _from_environment(environment)
    match = _STATED.fullmatch(text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if not index < count:
        raise InputError(f"--shard is {text!r:.80}, expected I/N with I from 0 to N - 1, or auto")
    return Shard(index, count)


def _from_environment(environment: Mapping[str, str]) -> Shard:
    for index, count in (("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"), ("RANK", "WORLD_SIZE")):
        if index in environment and count in environment:
            break
    else:
        raise InputError(
            "--shard auto finds neither SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT nor RANK and WORLD_SIZE, "
            "expected one pair in the environment"
        )
    stated = f"{index}={environment[index]}, {count}={environment[count]}"
    try:
        number, of = int(environment[index]), int(environment[count])
        if index == "SLURM_ARRAY_TASK_ID":  # --array=1-10 begins at 1
            number -= int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
            number, rest = divmod(number, int(environment.get("SLURM_ARRAY_TASK_STEP", "1")))
            number = of if rest else number
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"--shard auto finds {stated}, expected whole numbers") from error
    if not 0 <= number < of:
        # Happens when some tasks of an array are submitted again: their count differs from the first one.
        raise InputError(f"--shard auto finds {stated}, expected tasks without gaps; state --shard I/N")
    return Shard(number, of)
