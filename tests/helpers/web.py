"""A web server on this machine that serves files, with ranges, and fails on demand."""

from __future__ import annotations

import contextlib
import email.utils
import http.server
import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


class Web(http.server.ThreadingHTTPServer):
    """Serves a folder. faults: replacements for the next answers about a name: a status, "cut", "silent" or "whole"."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: dict[str, list[int | str]] = {}
        self.requests: Counter[str] = Counter()
        self.ranges: list[str] = []

    def address(self, name: str = "", user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Web
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = urllib.parse.unquote(self.path.partition("?")[0]).lstrip("/")
        self.server.requests[name] += 1
        faults = self.server.faults.get(name)
        fault = faults.pop(0) if faults and body else None
        path = self.server.folder / name
        if isinstance(fault, int) or not path.exists():
            return self._send(fault if isinstance(fault, int) else 404, b"")
        if path.is_dir():
            links = "".join(f'<a href="{urllib.parse.quote(file.name)}">x</a>' for file in sorted(path.iterdir()))
            return self._send(200, links.encode(), "text/html")
        content = path.read_bytes()
        stated = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if stated and fault != "whole":
            self.server.ranges.append(name)
            begin, end = int(stated[1]), min(int(stated[2]) + 1, len(content))
            return self._send(206, content[begin:end], fault=fault, more=f"bytes {begin}-{end - 1}/{len(content)}")
        return self._send(200, content if body else b"", fault=fault, size=len(content))

    def _send(self, status, content, kind="application/octet-stream", *, fault=None, size=None, more=None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) if size is None else size))
        self.send_header("Last-Modified", email.utils.formatdate(1e9))
        self.send_header("ETag", f'"{hash(content)}"')
        if more:
            self.send_header("Content-Range", more)
        self.end_headers()
        if fault == "silent":
            time.sleep(2)
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        self.close_connection = fault is not None


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Web]:
    with Web(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
