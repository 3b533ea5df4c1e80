"""Hostile names and tiny videos for the tests of pages, and the content of a page."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

# Names that would break a page which took them as markup, script or format.
HOSTILE = [
    "</script><script>window.broken=1</script>",
    "<!--<script>",
    "<img src=x onerror=window.broken=1>",
    "line\u2028break\u2029\r\n",
    "caf\udce9 \u202ereversed",
    "'\"&amp;`${window.broken=1}`",
    "@@DATA@@ @@SCRIPT@@",
    "__proto__",
    "=HYPERLINK(1)",
]


def write_clip(path: Path, seconds: int = 6) -> None:
    """A tiny video whose grey level rises with time. Needs PyAV."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(5 * seconds):
            picture = np.full((48, 64, 3), 40 * number // seconds, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def data_of(page: Path) -> dict[str, Any]:
    """The data of a page, with its columns as arrays."""
    content = page.read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', content, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    for name in ("start", "end", "score", "trueStart", "trueEnd"):
        data[name] = np.frombuffer(base64.b64decode(data[name]), "<f8")
    for name in ("label", "trueLabel"):
        data[name] = None if data[name] is None else np.frombuffer(base64.b64decode(data[name]), "<i4")
    return data


class Elements(HTMLParser):
    """Names of all elements of a page, and their attributes."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
