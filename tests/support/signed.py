"""A resolver that answers with signed addresses, and the edge that serves them while their signature holds.

    with Edge(DATA) as edge, Resolver(edge) as resolver:
        ...                             # http://127.0.0.1:<port>/f.bin redirects to the edge
        edge.expire()                   # every signature made so far is refused from now on
        assert len(resolver.log) == 2

Both are real HTTP/1.1 servers in threads. A signature is `X-Amz-Signature=<number>%2Fsigned`, which the edge compares
as it was sent.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

LIFE = 3600
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_SIGNATURE = re.compile(r"X-Amz-Signature=(\d+)%2Fsigned")


class _Server(ThreadingHTTPServer):
    # Joined at the end: a thread that outlives its test is a fault.
    daemon_threads = False
    request_queue_size = 64
    owner: Place

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is none."""


class Place:
    """One of the two. `log`: the targets of all requests, `heads`: their headers. `status`, with `headers`: answered to
    all in place of what is due."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.heads: list[dict[str, str]] = []
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="place")

    def url(self, target: str) -> str:
        return f"http://127.0.0.1:{self.port}/{target}"

    def answer(self, handler: _Handler) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


class Edge(Place):
    """Serves `data` at every path to requests with a range and a signature that holds."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data
        self.etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        self.signed = 0
        self._oldest = 1
        self.refuses = False
        self.expire_after: list[int] = []
        """Numbers of answered requests after each of which all signatures made until then expire."""
        self.served = 0

    def sign(self) -> str:
        with self.lock:
            self.signed += 1
            return f"{self.signed}%2Fsigned"

    def expire(self) -> None:
        with self.lock:
            self._oldest = self.signed + 1

    def answer(self, handler: _Handler) -> None:
        signature, asked = _SIGNATURE.search(handler.path), _RANGE.fullmatch(handler.headers.get("Range", ""))
        with self.lock:
            holds = signature is not None and int(signature[1]) >= self._oldest and not self.refuses
            if holds:
                self.served += 1
                if self.expire_after and self.served >= self.expire_after[0]:
                    self.expire_after.pop(0)
                    self._oldest = self.signed + 1
        if not holds or asked is None:
            handler.send(403, {}, b"<Code>AccessDenied</Code><Message>Request has expired</Message>")
            return
        first, last = int(asked[1]), min(int(asked[2]), len(self.data) - 1)
        headers = {"ETag": self.etag, "Content-Range": f"bytes {first}-{last}/{len(self.data)}"}
        handler.send(206, headers, self.data[first : last + 1])


class Resolver(Place):
    """Redirects every path to `edge`, signed for `life` seconds of `clock`."""

    def __init__(self, edge: Edge, life: int = LIFE, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._edge, self._life, self._clock = edge, life, clock
        self.hold = threading.Event()
        """While it is cleared, questions wait for their answer."""
        self.hold.set()
        self.asked = threading.Event()

    def answer(self, handler: _Handler) -> None:
        self.asked.set()
        self.hold.wait(20)
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock()))
        query = f"X-Amz-Date={date}&X-Amz-Expires={self._life}&X-Amz-Signature={self._edge.sign()}"
        handler.send(302, {"Location": self._edge.url(f"signed/f.bin?{query}")}, b"moved")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # TCP_NODELAY: head and body go out as two.

    def do_GET(self) -> None:
        owner = self.server.owner
        with owner.lock:
            owner.log.append(self.path)
            owner.heads.append(dict(self.headers))
        if owner.status is not None:
            self.send(owner.status, owner.headers, b"in trouble")
        else:
            owner.answer(self)

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass
