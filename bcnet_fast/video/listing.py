"""Which video files a user means: files, folders and lists, each with an id."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..storage.address import shown_address
from ..storage.files import read_text
from ..text import count
from .decoding import SUFFIXES

_LIST = ".txt"
_LONGEST_PATH = 4000  # characters; systems allow 4096 bytes


def list_videos(arguments: Sequence[str]) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """Videos by id, which is the file name without its suffix, and failures: names with their reasons.

    arguments: video files; folders, of which all video files count, also in folders inside; and .txt files with one of
        these a line, relative to the list.

    Two files of one id are failures both, and so is a line of a list that names no file. InputError: there is no video,
    or a list cannot be read.
    """
    found: dict[str, list[Path]] = {}
    failures: list[tuple[str, str]] = []
    for argument in arguments:
        for path in _expand(argument):
            if argument.lower().endswith(_LIST) and "://" not in path and not os.path.exists(path):
                failures.append((Path(path).stem, f"{argument}: {path} does not exist"))
                continue
            same = found.setdefault(Path(path).stem, [])
            if "://" in path:
                address = shown_address(path)
                failures.append((address, f"{address} is an address, expected a video file; download it first"))
            elif not any(_same(path, other) for other in same):
                same.append(Path(path))
    videos: dict[str, Path] = {}
    for name, paths in found.items():
        if len(paths) == 1:
            videos[name] = paths[0]
        elif paths:
            both = " and ".join(map(str, paths[:3]))
            failures.append((name, f"{both} have the same name without suffix, expected one video of a name"))
    if not videos and not failures:
        raise InputError("no video is named, expected files, folders or a .txt file with one path a line")
    return videos, failures


def _expand(argument: str) -> list[str]:
    path = Path(argument)
    if "://" in argument:
        return [argument]
    if os.path.isdir(path):  # False also for names that are too long
        entries = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
        hidden = [entry for entry in entries if any(p.startswith(".") for p in entry.relative_to(path).parts)]
        videos = sorted(set(entries) - set(hidden))
        kept = [str(entry) for entry in videos if entry.suffix.lower() in SUFFIXES]
        if not kept:
            has = f"; it has {count(len(videos), 'file')}, such as {videos[0].name}" if videos else ""
            raise InputError(f"{path} has no video file, expected suffixes such as .mp4, .mkv or .webm{has}")
        return kept
    if path.suffix.lower() == _LIST:
        lines = [line.strip() for line in read_text(path, "a list of videos, one path a line").splitlines()]
        named = [line if "://" in line else str(path.parent / line) for line in lines if line and line[0] != "#"]
        longest = max(map(len, lines), default=0)
        if longest > _LONGEST_PATH:
            raise InputError(f"{path} has a line of {longest} characters, expected one path a line")
        if not named:
            raise InputError(f"{path} names no video, expected one path a line")
        return [video for line in named for video in ([line] if line.lower().endswith(_LIST) else _expand(line))]
    return [argument]


def _same(path: str, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)
