"""A Hugging Face hub on this machine, with one data set that can be listed and read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPO = "me/features"
_COMMIT = "0" * 40


@contextlib.contextmanager
def hub_server(folder: Path) -> Iterator[str]:
    """Serve the files of a folder as the data set REPO; the address, as HF_ENDPOINT takes it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            if path.startswith(f"/api/datasets/{REPO}/tree/main"):
                inner = path.partition("/tree/main")[2].strip("/")
                found = folder / inner
                if found.is_dir():
                    self._answer(200, json.dumps([_about(folder, one) for one in sorted(found.iterdir())]))
                else:
                    self._answer(404, '{"error": "missing"}', {"X-Error-Code": "EntryNotFound"})
            elif path.startswith(f"/api/datasets/{REPO}"):
                self._answer(200, json.dumps({"id": REPO, "sha": _COMMIT, "siblings": []}))
            elif path.startswith(f"/datasets/{REPO}/resolve/"):
                self._send(folder / path.split("/resolve/", 1)[1].partition("/")[2])
            else:
                self._answer(404, "{}")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            names = json.loads(asked)["paths"] if asked.startswith("{") else urllib.parse.parse_qs(asked)["paths"]
            files = [folder / name for name in names]
            self._answer(200, json.dumps([_about(folder, file) for file in files if file.exists()]))

        def _send(self, file: Path) -> None:
            content = file.read_bytes()
            first, last = 0, len(content) - 1
            if asked := self.headers.get("Range"):
                first, last = (int(one) if one else last for one in asked.removeprefix("bytes=").split("-"))
            part = content[first : last + 1]
            headers = {"ETag": f'"{_hash(content)}"', "X-Repo-Commit": _COMMIT, "Accept-Ranges": "bytes"}
            if asked:
                headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
            self._answer(206 if asked else 200, part, headers)

        def _answer(self, status: int, content: str | bytes, headers: dict[str, str] | None = None) -> None:
            body = content.encode() if isinstance(content, str) else content
            kind = "application/json" if isinstance(content, str) else "application/octet-stream"
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


def _about(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": _hash(name.encode()), "size": 0, "path": name}
    content = path.read_bytes()
    return {"type": "file", "oid": _hash(content), "size": len(content), "path": name}


def _hash(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
