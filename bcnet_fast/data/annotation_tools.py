"""Annotations made in Label Studio and ELAN, as segments in seconds."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ..errors import InputError
from ..text import brief

VIDEO_PROPERTY = "bcnet_fast video"  # property of an ELAN file with the id, which need not be a valid file name
_MOST_SEGMENTS = 1 << 20  # segments of a file: each range of a region has all of its labels
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # prefix that Label Studio adds to the names of uploaded files


@dataclass
class AnnotatedVideo:
    """One video: (start, end, label, place in the file) of each segment, as the file has them."""

    name: str
    fps: float | None = None
    segments: list[tuple[Any, Any, Any, str]] = field(default_factory=list)


def is_labelstudio(content: Any) -> bool:
    """Whether JSON is a list of Label Studio tasks."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(task, dict) and isinstance(task.get("data"), dict) for task in content)
    )


def labelstudio_videos(tasks: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> Iterator[AnnotatedVideo]:
    """Videos of a Label Studio export (JSON). The last annotation of a task that is not cancelled counts.

    Frames count from 1, and ranges include their end. InputError: a task without video, frame rate or proper ranges.
    """
    total = 0
    for number, task in enumerate(tasks, 1):
        where = f"{path}: task {number}"
        data = task["data"]
        name = data.get("video_id") or _file_id(data)
        if not name:
            raise InputError(f"{where} has the data {brief(data)}, expected video or video_id")
        fps = _positive(next((data[key] for key in ("fps", "frame_rate", "frameRate") if key in data), None))
        video = AnnotatedVideo(str(name), fps)
        done = [one for one in task.get("annotations") or [] if isinstance(one, dict) and not one.get("was_cancelled")]
        for region in (done[-1].get("result") or []) if done else []:
            value = region.get("value") if isinstance(region, dict) else None
            labels = value.get("timelinelabels") if isinstance(value, dict) else None
            if not isinstance(value, dict) or not labels:
                continue
            ranges = value.get("ranges") or [{}]
            for what, found, kind in (("timelinelabels", labels, str), ("ranges", ranges, dict)):
                if not isinstance(found, list) or not all(isinstance(one, kind) for one in found):
                    listed = "text" if kind is str else "ranges of frames"
                    raise InputError(f"{where}: {what} is {brief(found)}, expected a list of {listed}")
            total += len(ranges) * len(labels)
            if total > _MOST_SEGMENTS:
                raise InputError(
                    f"{path} has more than {_MOST_SEGMENTS} segments by task {number}, expected at most that"
                )
            if fps is None:
                raise InputError(f"{where} counts frames and states no frame rate, expected fps in its data")
            for frames in ranges:
                first, last = frames.get("start"), frames.get("end")
                if not (isinstance(first, int | float) and isinstance(last, int | float)):
                    raise InputError(f"{where} has the range {brief(frames)}, expected start and end as frames")
                ends = max(first - 1, 0) / fps, last / fps
                video.segments += [(*ends, label, where) for label in labels]
        yield video


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None


def _file_id(data: Mapping[str, Any]) -> str:
    """The id of a task's video: the name of its file, without what Label Studio adds."""
    address = next((one for one in (data.get("video"), data.get("video_url")) if isinstance(one, str)), "")
    return _UPLOAD.sub("", _stem(address))


def _stem(address: str) -> str:
    return PurePosixPath(address.replace("\\", "/").split("?")[0]).stem


def elan_video(text: str, path: str | os.PathLike) -> AnnotatedVideo:
    """The video of an ELAN file (.eaf): the aligned annotations of all its tiers; the value is the label.

    The id is that of an exported file, else the name of the medium, else that of the file. InputError: not an ELAN
    file, an annotation without time or value.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path} declares XML entities, which are never expanded; expected an ELAN file")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"{path}, line {error.position[0]}: malformed XML ({error}), expected an ELAN file") from error
    if root.tag != "ANNOTATION_DOCUMENT":
        raise InputError(f"{path} is XML of {root.tag!r}, expected an ELAN file (ANNOTATION_DOCUMENT)")
    stated = next((one.text for one in root.iter("PROPERTY") if one.get("NAME") == VIDEO_PROPERTY), None)
    medium = next((one.get("MEDIA_URL") or "" for one in root.iter("MEDIA_DESCRIPTOR")), "")
    video = AnnotatedVideo(stated or _stem(medium) or _stem(os.fspath(path)))
    times = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    for annotation in root.iter("ALIGNABLE_ANNOTATION"):
        where = f"{path}: annotation {annotation.get('ANNOTATION_ID')!r}"
        ends = [times.get(annotation.get(f"TIME_SLOT_REF{one}")) for one in (1, 2)]
        label = (annotation.findtext("ANNOTATION_VALUE") or "").strip()
        if not label or not all(value is not None and value.isdigit() for value in ends):
            raise InputError(f"{where} has the times {ends} and the value {label!r}, expected milliseconds and a label")
        start, end = (int(value or 0) / 1000 for value in ends)
        video.segments.append((start, end, label, where))
    return video
