"""S3 on this machine, by moto, whose answers can be errors or late."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


class Faulty:
    """A WSGI application before another one. plan: called with the number of a request; "error", seconds, or None."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.plan: Callable[[int], str | float | None] = lambda number: None
        self.requests = self.errors = 0
        self._lock = threading.Lock()

    def __call__(self, environment: Any, start: Any) -> Any:
        with self._lock:
            self.requests += 1
            fault = self.plan(self.requests)
            self.errors += fault == "error"
        if fault == "error":
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            start("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        time.sleep(fault or 0)
        return self.app(environment, start)


@contextlib.contextmanager
def s3_server() -> Iterator[tuple[Faulty, str]]:
    """The server, and its address as AWS_ENDPOINT_URL takes it."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    faulty = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, faulty, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield faulty, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
