"""An S3 on this machine that has one bucket of numbered keys, and answers only requests to list them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FOLDER = "s3://bucket/features"

PAGE = 1_000  # keys of an answer, as S3 gives
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_CONTENT = (
    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><Size>1048704</Size>"
    "<StorageClass>STANDARD</StorageClass></Contents>"
)


@contextlib.contextmanager
def s3(keys: int) -> Iterator[dict[str, str]]:
    """Variables by which S3 is a process of this machine, whose `FOLDER` has that many keys."""
    code = [sys.executable, __file__, str(keys)]
    with subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield {
                "AWS_ENDPOINT_URL": process.stdout.readline().strip(),
                "AWS_ACCESS_KEY_ID": "none",
                "AWS_SECRET_ACCESS_KEY": "none",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            process.stdin.close()


def server(keys: int) -> ThreadingHTTPServer:
    """A server of `keys` keys below `features/` in any bucket."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            first = int(query.get("continuation-token", ["0"])[0])
            last = min(first + int(query.get("max-keys", [PAGE])[0]), first + PAGE, keys)
            contents = "".join(_CONTENT.format(key=f"features/video_{number:07d}.npy") for number in range(first, last))
            more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < keys else ""
            body = (
                f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="{_NAMESPACE}"><Name>bucket</Name>'
                f"<Prefix>features/</Prefix><KeyCount>{last - first}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
                f"<IsTruncated>{str(last < keys).lower()}</IsTruncated>{contents}{more}</ListBucketResult>"
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


if __name__ == "__main__":
    listing = server(int(sys.argv[1]))
    threading.Thread(target=listing.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{listing.server_port}", flush=True)
    sys.stdin.read()
