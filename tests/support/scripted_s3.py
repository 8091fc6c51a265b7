"""A server that speaks as much S3 as a test needs, and says what a real one says rarely: for faults and features that
SeaweedFS does not have. A real HTTP/1.1 server in threads; signatures are not checked.

    with ScriptedS3() as server:
        server.put("bucket/key", b"data", {"x-amz-checksum-type": "COMPOSITE"})
        server.rule(lambda asked: error(503, "SlowDown") if asked.method == "GET" else None, times=2)
"""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape


class Asked(NamedTuple):
    """`path` decoded, without its leading "/"; header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    target: str


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""


@dataclass
class Stored:
    data: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def etag(self) -> str:
        return self.headers.get("ETag", f'"{hashlib.md5(self.data).hexdigest()}"')


Rule = Callable[[Asked], Answer | None]


def error(status: int, code: str, more: str = "", headers: Mapping[str, str] | None = None) -> Answer:
    """As S3 writes it, with `more` elements."""
    text = f"<Error><Code>{code}</Code><Message>of {code}</Message>{more}<RequestId>1</RequestId></Error>"
    return Answer(status, {"Content-Type": "application/xml", **(headers or {})}, text.encode())


class ScriptedS3:
    """`log`: all requests."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.log: list[Asked] = []
        self.objects: dict[str, Stored] = {}
        self.lock = threading.Lock()
        self._rules: list[list[object]] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "https" if tls else "http"
        self.endpoint = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="scripted-s3")

    def put(self, path: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.objects[path] = Stored(data, headers or {})

    def rule(self, rule: Rule, times: int = -1) -> None:
        """Goes before what is due, for so many answers; the first that has one."""
        self._rules.append([rule, times])

    def answer(self, asked: Asked) -> Answer:
        with self.lock:
            self.log.append(asked)
            for entry in self._rules:
                rule, times = entry
                assert callable(rule)
                assert isinstance(times, int)
                if times and (found := rule(asked)) is not None:
                    entry[1] = times - 1
                    assert isinstance(found, Answer)
                    return found
        bucket, _, key = asked.path.partition("/")
        if not key:
            return self._list(bucket, asked)
        stored = self.objects.get(asked.path)
        return error(404, "NoSuchKey") if stored is None else _serve(stored, asked)

    def _list(self, bucket: str, asked: Asked) -> Answer:
        keys = sorted(path.partition("/")[2] for path in self.objects if path.startswith(f"{bucket}/"))
        keys = [key for key in keys if key.startswith(asked.query.get("prefix", ""))]
        contents = "".join(
            f"<Contents><Key>{quote(key)}</Key><Size>{len(self.objects[f'{bucket}/{key}'].data)}</Size>"
            f"<ETag>{escape(self.objects[f'{bucket}/{key}'].etag)}</ETag></Contents>"
            for key in keys
        )
        more = "<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
        body = f"<ListBucketResult>{more}{contents}</ListBucketResult>"
        return Answer(200, {"Content-Type": "application/xml"}, body.encode())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


def _serve(stored: Stored, asked: Asked) -> Answer:
    headers = {"ETag": stored.etag, "x-amz-request-id": "1", **stored.headers}
    wanted = asked.headers.get("if-match")
    if wanted not in (None, stored.etag):
        return error(412, "PreconditionFailed")
    span = asked.headers.get("range", "").removeprefix("bytes=")
    if not span:
        return Answer(200, headers, stored.data)
    first, last = (int(n) for n in span.split("-"))
    body = stored.data[first : last + 1]
    headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{len(stored.data)}"
    return Answer(206, headers, body)


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64
    owner: ScriptedS3

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is none."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5
    server: _Server

    def _all(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode("latin-1") if length else ""
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True) | (parse_qs(body) if self.command == "POST" else {})
        headers = {k.lower(): v for k, v in self.headers.items()}
        flat = {k: v[0] for k, v in query.items()}
        asked = Asked(self.command, unquote(parts.path[1:]), flat, headers, self.path)
        status, more, data = self.server.owner.answer(asked)
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in more.items():
            if name.lower() not in ("content-length",):
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = _all

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
