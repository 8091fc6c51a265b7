"""A real HTTP/1.1 origin on 127.0.0.1, in threads, with scripted faults.

    with Origin({"model/config.json": b"{}"}) as origin:        # or Origin(Path("directory"))
        origin.fault("model/config.json", Fault(status=503), times=2)
        fetch(origin.url("model/"))
        assert [r.path for r in origin.requests] == ["/model/config.json", …]

It serves GET and HEAD with strong ETags, Last-Modified, ranges (206, 416, If-Range), If-Match, If-Unmodified-Since
and keep-alive. Files of a directory go out by sendfile, bytes by sendall of a memoryview: over 1 GiB/s. Names are the
paths of requests without the leading "/" and the query, as they were sent ("a%2Fb"), or else decoded. `stop` (or the
end of the `with`) ends every connection, also stalled ones, and joins every thread.
"""

from __future__ import annotations

import base64
import email.utils
import fnmatch
import gzip
import hashlib
import os
import re
import socket
import ssl
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import unquote

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_MODIFIED = "Wed, 21 Oct 2015 07:28:00 GMT"
_ONE_SEND = 1 << 20


@dataclass(frozen=True)
class Fault:
    """What is wrong with an answer; the fields combine. Everything not set is as it should be."""

    status: int | None = None
    """This status with `body`, in place of the file."""
    body: bytes = b"scripted fault"
    headers: Mapping[str, str] = field(default_factory=dict)
    """Added to the answer, or put in place of its own; a value of "" removes one."""
    redirect: str = ""
    """302 (or `status`) to this Location."""
    no_ranges: bool = False
    """200 with the whole file to every request."""
    no_length: bool = False
    """No Content-Length: the body ends with the connection."""
    chunked: bool = False
    """Transfer-Encoding: chunked in place of Content-Length."""
    short: int | None = None
    """Send only so many bytes of the body that was promised, then close."""
    extra: bytes = b""
    """Goes after the body; counted in Content-Length."""
    content_range: str | None = None
    """In place of the true Content-Range."""
    etag: str | None = None
    """In place of the true ETag; "" for none."""
    gzipped: bool = False
    """The body compressed, and so declared."""
    stall_head: bool = False
    """Never answer."""
    stall_after: int | None = None
    """Send so many bytes of the body, then nothing more."""
    reset_after: int | None = None
    """Send so many bytes of the body, then RST."""
    hang_up: bool = False
    """Close without an answer."""
    raw: bytes | None = None
    """These bytes in place of any answer, then close."""
    basic: str = ""
    """Answer 401 unless the request has these credentials, "user:password"."""


@dataclass(frozen=True)
class Request:
    """One line of the log; header names in lower case. `status` is 0 where no answer was begun."""

    method: str
    target: str
    headers: Mapping[str, str]
    status: int
    connection: int
    """Counts connections from 1: requests with one number shared a connection."""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True)
class Asked:
    """A request as it came; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class File:
    """What is served, from memory or from `path`."""

    size: int
    etag: str
    modified: str
    data: bytes | None = None
    path: Path | None = None


@dataclass
class Answer:
    """`length` bytes from `offset` of `body` or `file`."""

    status: int
    headers: dict[str, str]
    body: bytes | memoryview | None = None
    file: File | None = None
    offset: int = 0
    length: int = 0


class Origin:
    """See the module. `files` is a dict of bytes by name, which `put` changes, or a directory, read as it is then."""

    def __init__(self, files: Mapping[str, bytes] | Path, *, tls: ssl.SSLContext | None = None) -> None:
        self._files: dict[str, File] | Path = (
            files if isinstance(files, Path) else {k: in_memory(v) for k, v in files.items()}
        )
        self._tls = tls
        self._faults: dict[str, list[tuple[Fault, int | None]]] = {}
        self._lock = threading.Lock()
        self._log: list[Request] = []
        self._changed = threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._stopping = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.bytes_sent = 0
        """Of files, as far as they went out to the kernel."""

    def url(self, path: str = "") -> str:
        """Of a name in it."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/{path}"

    def put(self, name: str, data: bytes) -> None:
        """A new or changed file; its ETag follows from the bytes."""
        assert isinstance(self._files, dict)
        self._files[name] = in_memory(data)

    def remove(self, name: str) -> None:
        """404 from now on."""
        assert isinstance(self._files, dict)
        del self._files[name]

    def fault(self, name: str, fault: Fault, *, times: int | None = None) -> None:
        """For the next `times` requests of `name` (None: all), after those scripted before. A "*" in
        `name` stands for anything."""
        with self._lock:
            self._faults.setdefault(name, []).append((fault, times))

    def mend(self) -> None:
        """Drop all faults."""
        with self._lock:
            self._faults.clear()

    @property
    def requests(self) -> list[Request]:
        """All so far, in order of their answers."""
        with self._lock:
            return list(self._log)

    def wait_for(self, count: int, timeout: float = 10.0) -> list[Request]:
        """Wait until `count` requests are in the log."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._log) >= count, timeout):
                raise TimeoutError(f"{len(self._log)} of {count} requests came")
            return list(self._log)

    def start(self) -> Self:
        """Begin to accept; `with` does it."""
        self._spawn(self._accept)
        return self

    def stop(self) -> None:
        """End everything. Idempotent."""
        self._stopping.set()
        with self._lock:
            # shutdown wakes a thread that is blocked in accept; close alone does not.
            _shutdown(self._listener)
        self.hang_up()
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def hang_up(self) -> None:
        """All connections; it goes on with new ones."""
        with self._lock:
            for sock in self._open:
                _shutdown(sock)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _spawn(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, name="origin", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                number = self.connections
            self._spawn(self._serve, sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            with self._lock:
                self._open.add(sock)
            with sock.makefile("rb") as stream:
                while not self._stopping.is_set() and self._one(sock, stream, number):
                    pass
        except (OSError, ssl.SSLError):
            pass  # The client went away, or `stop` ended the connection.
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def _one(self, sock: socket.socket, stream: BinaryIO, number: int) -> bool:
        """Answer the next request; whether the connection can be used again."""
        asked = receive(stream)
        if asked is None:
            return False
        method, target, headers = asked
        body = stream.read(int(headers.get("content-length", 0)))
        file_name = target.partition("?")[0].lstrip("/")
        fault = self._next_fault(file_name)
        if fault.hang_up or fault.stall_head or fault.raw is not None:
            self._note(Request(method, target, headers, 0, number))
            return self._no_answer(sock, fault)
        answer = self._scripted(headers, fault) or self.answer(Asked(method, target, headers, body), fault)
        self._note(Request(method, target, headers, answer.status, number))
        return self._send(sock, answer, fault, method) and headers.get("connection", "").lower() != "close"

    def _note(self, request: Request) -> None:
        with self._changed:
            self._log.append(request)
            self._changed.notify_all()

    def _next_fault(self, name: str) -> Fault:
        with self._lock:
            for key in (name, *(key for key in self._faults if "*" in key and fnmatch.fnmatchcase(name, key))):
                queue = self._faults.get(key)
                if queue:
                    fault, times = queue[0]
                    if times is not None:
                        queue[0] = (fault, times - 1)
                        if times <= 1:
                            queue.pop(0)
                    return fault
        return Fault()

    def _no_answer(self, sock: socket.socket, fault: Fault) -> bool:
        if fault.stall_head:
            self._stopping.wait()
        elif fault.raw is not None:
            sock.sendall(fault.raw)
        return False

    def _scripted(self, headers: Mapping[str, str], fault: Fault) -> Answer | None:
        if fault.basic and headers.get("authorization") != _basic(fault.basic):
            return plain(401, b"who are you?", {"WWW-Authenticate": 'Basic realm="origin"'})
        if fault.redirect:
            return plain(fault.status or 302, b"moved", {"Location": fault.redirect})
        if fault.status is not None:
            return plain(fault.status, fault.body)
        return None

    def answer(self, asked: Asked, fault: Fault) -> Answer:
        """To a request, apart from what `fault` has in its place."""
        file = self._find(asked.target.partition("?")[0].lstrip("/"))
        if file is None:
            return plain(404, b"no such file")
        etag = file.etag if fault.etag is None else fault.etag
        answer = of_file(file, etag, asked.headers, fault)
        if fault.gzipped and answer.file is not None:
            whole = file.data if file.data is not None else file.path.read_bytes()  # type: ignore[union-attr]
            answer.body, answer.file = gzip.compress(whole), None
            answer.length = len(answer.body)
            answer.headers["Content-Encoding"] = "gzip"
        return answer

    def _find(self, name: str) -> File | None:
        if isinstance(self._files, dict):
            return self._files.get(name) or self._files.get(unquote(name))
        path = self._files / unquote(name)
        if ".." in path.parts or not path.is_file():
            return None
        found = path.stat()
        modified = email.utils.formatdate(found.st_mtime, usegmt=True)
        return File(found.st_size, f'"{found.st_mtime_ns:x}-{found.st_size:x}"', modified, path=path)

    def _send(self, sock: socket.socket, answer: Answer, fault: Fault, method: str) -> bool:
        """Whether the connection can be used again."""
        head = dict(answer.headers)
        close = fault.no_length or fault.short is not None
        if fault.chunked:
            head["Transfer-Encoding"] = "chunked"
        elif not fault.no_length:
            head["Content-Length"] = str(answer.length + len(fault.extra))
        if close:
            head["Connection"] = "close"
        head = {k: v for k, v in (head | dict(fault.headers)).items() if v}
        lines = "".join(f"{k}: {v}\r\n" for k, v in head.items())
        sock.sendall(f"HTTP/1.1 {answer.status} Scripted\r\n{lines}\r\n".encode("latin-1"))
        if method == "HEAD":
            return not close
        return self._send_body(sock, answer, fault) and not close

    def _send_body(self, sock: socket.socket, answer: Answer, fault: Fault) -> bool:
        stops = [n for n in (fault.short, fault.stall_after, fault.reset_after) if n is not None]
        count = min([answer.length, *stops])
        if fault.chunked:
            sock.sendall(f"{count:x}\r\n".encode())
        for sent in _send_bytes(sock, answer, count):
            with self._lock:
                self.bytes_sent += sent
        if fault.stall_after is not None:
            self._stopping.wait()
            return False
        if fault.reset_after is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if fault.chunked:
            end = f"\r\n{len(fault.extra):x}\r\n".encode() + fault.extra if fault.extra else b""
            sock.sendall(end + b"\r\n0\r\n\r\n")
        elif fault.extra:
            sock.sendall(fault.extra)
        return True


def receive(stream: BinaryIO) -> tuple[str, str, dict[str, str]] | None:
    """Method, target and headers of the next request, None when there is none."""
    line = stream.readline(65536).split()
    if len(line) != 3:
        return None
    headers: dict[str, str] = {}
    while (raw := stream.readline(65536).strip()) != b"":
        name, _, value = raw.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return line[0].decode("latin-1"), line[1].decode("latin-1"), headers


def of_file(file: File, etag: str, headers: Mapping[str, str], fault: Fault) -> Answer:
    """200, 206, 412 or 416, as the request's headers ask."""
    head = {"Content-Type": "application/octet-stream", "ETag": etag, "Last-Modified": file.modified}
    if not fault.no_ranges:
        head["Accept-Ranges"] = "bytes"
    if headers.get("if-match", etag) not in (etag, "*"):
        return plain(412, b"another version")
    if "if-match" not in headers and headers.get("if-unmodified-since", file.modified) != file.modified:
        return plain(412, b"another version")
    asked = _RANGE.fullmatch(headers.get("range", ""))
    if asked is None or fault.no_ranges or headers.get("if-range", etag) not in (etag, file.modified):
        return Answer(200, head, file=file, length=file.size)
    first, last = int(asked[1]), min(int(asked[2] or file.size - 1), file.size - 1)
    if first >= file.size or last < first:
        return plain(416, b"no such range", {"Content-Range": f"bytes */{file.size}"})
    head["Content-Range"] = fault.content_range or f"bytes {first}-{last}/{file.size}"
    return Answer(206, head, file=file, offset=first, length=last - first + 1)


def plain(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
    """A short text."""
    return Answer(status, {"Content-Type": "text/plain", **(headers or {})}, body=body, length=len(body))


def _send_bytes(sock: socket.socket, answer: Answer, count: int) -> Iterator[int]:
    """How many were sent, again and again."""
    file = answer.file
    if file is None or file.path is None:
        data = memoryview(answer.body if file is None else file.data)  # type: ignore[arg-type]
        for start in range(answer.offset, answer.offset + count, _ONE_SEND):
            piece = data[start : min(start + _ONE_SEND, answer.offset + count)]
            sock.sendall(piece)
            yield len(piece)
        return
    with file.path.open("rb") as stream:
        if isinstance(sock, ssl.SSLSocket):
            stream.seek(answer.offset)
            while count and (block := stream.read(min(count, _ONE_SEND))):
                sock.sendall(block)
                count -= len(block)
                yield len(block)
            return
        offset = answer.offset
        while count and (sent := os.sendfile(sock.fileno(), stream.fileno(), offset, min(count, 1 << 30))):
            offset, count = offset + sent, count - sent
            yield sent


def in_memory(data: bytes) -> File:
    return File(len(data), f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"', _MODIFIED, data=data)


def _basic(user: str) -> str:
    return "Basic " + base64.b64encode(user.encode()).decode()


def _shutdown(sock: socket.socket) -> None:
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass  # Not connected: nobody waits on it.
