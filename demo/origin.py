"""An HTTP origin: the files of one directory, with ranges, ETags and an optional limit of its rate.

Run as `python -m demo.origin DIR [--rate BYTES_PER_SECOND]`. It prints its address, answers each line of standard input
with its counters as JSON, and ends when standard input ends. For demonstrations and tests; it listens on the loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

SLICE = 256 << 10
"""Bytes sent at once; the limit is applied per slice, and connections take turns."""
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Pace:
    """Lets bytes through at `rate` per second over all threads; 0 means at once."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0
        self._lock = threading.Lock()

    def wait(self, count: int) -> None:
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._free_at)
            self._free_at = begin + count / self._rate
        time.sleep(begin - now)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(first, last + 1) of a Range header for a file of `size` bytes; None: send all of it (RFC 9110, 14.2).

    Raises ValueError when no byte of the file is in it (416).
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match[1] == match[2] == "":
        return None
    if not match[1]:
        begin, end = max(0, size - int(match[2])), size
    else:
        begin, end = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
        if match[2] and int(match[2]) < begin:
            return None
    if begin >= end:
        raise ValueError(header)
    return begin, end


class Origin(ThreadingHTTPServer):
    """Serves the regular files below `root`. `requests` and `bytes_sent` count what left."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path, rate: float = 0, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.root = root.resolve(strict=True)
        self.pace = Pace(rate)
        self.requests = self.bytes_sent = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def count(self, requests: int, sent: int) -> None:
        with self._lock:
            self.requests += requests
            self.bytes_sent += sent

    def find(self, target: str) -> Path | None:
        """The file for a request target, None when there is none below the root."""
        path = (self.root / unquote(urlsplit(target).path).lstrip("/")).resolve()
        return path if path.is_relative_to(self.root) and path.is_file() else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "weightd-demo-origin"
    server: Origin

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        self.server.count(1, 0)
        path = self.server.find(self.path)
        if path is None:
            return self._end(HTTPStatus.NOT_FOUND)
        with path.open("rb") as file, contextlib.suppress(ConnectionError):
            self._send_file(file, body)

    def _send_file(self, file: BinaryIO, body: bool) -> None:
        status = os.fstat(file.fileno())
        etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        size = status.st_size
        if self.headers.get("If-Match", etag) not in (etag, "*"):
            return self._end(HTTPStatus.PRECONDITION_FAILED)
        try:
            wanted = parse_range(self.headers.get("Range"), size)
        except ValueError:
            return self._end(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"})
        if self.headers.get("If-Range", etag) != etag:
            wanted = None
        begin, end = wanted or (0, size)
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Last-Modified": self.date_time_string(int(status.st_mtime))}
        if wanted:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        self._head(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK, end - begin, headers)
        if body:
            self._copy(file, begin, end)

    def _copy(self, file: BinaryIO, begin: int, end: int) -> None:
        self.wfile.flush()
        while begin < end:
            count = min(SLICE, end - begin)
            self.server.pace.wait(count)
            sent = os.sendfile(self.connection.fileno(), file.fileno(), begin, count)
            if sent == 0:
                self.close_connection = True
                return
            begin += sent
            self.server.count(0, sent)

    def _end(self, status: HTTPStatus, headers: dict[str, str] | None = None) -> None:
        self._head(status, 0, headers or {})

    def _head(self, status: HTTPStatus, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(length))
        self.end_headers()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.origin", description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rate", type=float, default=0, help="bytes per second over all connections; 0: no limit")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    args = parser.parse_args()
    origin = Origin(args.directory, args.rate, args.port)
    threading.Thread(target=origin.serve_forever, daemon=True).start()
    print(json.dumps({"url": origin.url}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"requests": origin.requests, "bytes_sent": origin.bytes_sent}), flush=True)
    origin.shutdown()


if __name__ == "__main__":
    main()
