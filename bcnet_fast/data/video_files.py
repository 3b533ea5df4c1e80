"""The video files of a folder, by the ids of the videos."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import InputError
from ..text import count, shown, some

# Suffix -> MIME type of what browsers play, the most widely played first.
PLAYABLE = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",
    ".ogv": "video/ogg",
}
_UNPLAYABLE = (".mkv", ".avi", ".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".3gp")
_SUFFIXES = [*PLAYABLE, *_UNPLAYABLE]


def video_files(folder: str | os.PathLike) -> Iterator[Path]:
    """All video files of a folder and its subfolders, by their suffixes. Links are not followed into folders."""
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names if os.path.splitext(name)[1].lower() in _SUFFIXES)


def find_videos(folder: str | os.PathLike, ids: Iterable[str]) -> tuple[dict[str, Path], list[str]]:
    """The file of each id, and a line on each kind of trouble.

    The id of a file is its name without suffix, with or without its folders within `folder`, and with or without the
    ActivityNet prefix `v_`. Links are not followed into folders. InputError: `folder` is not a folder, or has no file
    for any id.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{folder} {'is a file' if root.exists() else 'does not exist'}, expected a folder of videos")
    candidates: dict[str, list[Path]] = {}
    for path in video_files(root):
        inside = path.relative_to(root).with_suffix("").as_posix()
        for key in {path.stem, inside}:
            candidates.setdefault(key, []).append(path)

    wanted = list(ids)
    found: dict[str, Path] = {}
    several, empty, unplayable = [], [], []
    for video in wanted:
        others = (f"v_{video}", video.removeprefix("v_"))
        paths = next((candidates[key] for key in (video, *others) if key in candidates), [])
        usable = [path for path in paths if path.is_file() and path.stat().st_size]
        if not usable:
            empty += [video] if paths else []
            continue
        found[video] = min(usable, key=lambda path: (_SUFFIXES.index(path.suffix.lower()), str(path)))
        several += [video] if len(usable) > 1 else []
        unplayable += [found[video].name] if found[video].suffix.lower() in _UNPLAYABLE else []
    missing = [video for video in wanted if video not in found and video not in empty]
    if not found:
        raise InputError(f"{folder} has no video file of {some(wanted)}, expected names such as {shown(wanted[0])}.mp4")
    notes = [
        (missing, "video", "without a file"),
        (empty, "video", "with an empty file"),
        (several, "video", "with several files, of which the first that browsers play is taken"),
        (unplayable, "file", "of a format that browsers do not play, convert to .mp4 or .webm"),
    ]
    return found, [f"{folder}: {count(len(names), noun)} {what}: {some(names)}" for names, noun, what in notes if names]
