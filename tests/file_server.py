"""A web server on this machine that serves one file, in the ways that real servers do."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves one file in one of several manners, and notes what was asked for."""

    content: bytes
    manner = "ranges"
    ranges: list[str | None]
    statuses: list[int]

    @property
    def url(self) -> str:
        """Address of the file."""
        return f"http://127.0.0.1:{self.server_port}/files/Task.tar?download=1"


class Handler(BaseHTTPRequestHandler):
    """`ranges`: as it should be; `deaf`: ignores Range; `breaking`: breaks off after 3000 bytes; `stuck`: after the
    first 3000 bytes; `a byte`: breaks off after one; `dripping`: sends a byte now and then; `endless`: never stops, and
    does not say how much there is; `packed`: says that the file is packed, as it is anyway; `503`: is busy twice;
    `404`: refuses; `wrong range`: sends another part than was asked for."""

    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        manner, content = self.server.manner, self.server.content
        if manner.isdecimal() and len(self.server.ranges) <= 2:
            return self.answer(int(manner), b"later")
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and manner != "deaf" else 0
        if start >= len(content):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        if manner == "wrong range" and start:
            start -= 10
        if manner == "endless":
            return self.stream(iter(lambda: bytes(10_000), None))
        if manner == "dripping":
            return self.stream(iter(lambda: time.sleep(0.02) or b"x", None))
        headers = {"Content-Encoding": "gzip"} if manner == "packed" else {}
        headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        sent = content[start:]
        if manner == "breaking" or (manner == "stuck" and not start):
            sent = sent[:3000]
        elif manner == "stuck":
            sent = b""
        elif manner == "a byte":
            sent = sent[:1]
        return self.answer(206 if start else 200, sent, headers, length=len(content) - start)

    def answer(self, status: int, body: bytes, headers: dict | None = None, length: int | None = None) -> None:
        self.server.statuses.append(status)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def stream(self, pieces: Iterator[bytes]) -> None:
        """An answer of unknown length, to one that may hang up."""
        self.server.statuses.append(200)
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            for piece in pieces:
                self.wfile.write(piece)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serving(content: bytes) -> Iterator[Server]:
    """A server of that content, as long as the context lasts."""
    server = Server(("127.0.0.1", 0), Handler)
    server.content, server.ranges, server.statuses = content, [], []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
