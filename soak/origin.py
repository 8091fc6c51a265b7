"""The origin of a soak: honest about its files, unless told for how many requests it shall fail, and how."""

from __future__ import annotations

import dataclasses
import email.utils
import socket
import threading
from collections import Counter
from dataclasses import dataclass

from soak.world import FileDef, Version, World
from tests.support.origin import Answer, Asked, Fault, File, Origin, Request

STALL_S = 5.0
"""For how long a stalled answer is kept; longer than the daemon waits."""


@dataclass(frozen=True)
class Flip(Fault):
    """One bit of each body is wrong, and nothing else tells."""


FAULTS: dict[str, Fault] = {
    "reset": Fault(reset_after=300_000),
    "reset-at-once": Fault(reset_after=0),
    "short": Fault(short=200_000),
    "short-chunked": Fault(chunked=True, short=100_001),
    "no-length-short": Fault(no_length=True, short=70_000),
    "long": Fault(extra=b"more than was promised"),
    "long-chunked": Fault(chunked=True, extra=b"more than was promised"),
    "stall-head": Fault(stall_head=True),
    "stall": Fault(stall_after=150_000),
    "hang-up": Fault(hang_up=True),
    "garbage": Fault(raw=b"\x00\x16\x03 this is no HTTP\r\n\r\n"),
    "503": Fault(status=503, headers={"Retry-After": "1"}),
    "429": Fault(status=429, headers={"RateLimit": '"resolvers";r=0;t=1'}),
    "500": Fault(status=500),
    "404": Fault(status=404),
    "403": Fault(status=403),
    "416": Fault(status=416),
    "206-of-nothing": Fault(status=206),
    "whole-for-a-part": Fault(no_ranges=True),
    "other-range": Fault(content_range="bytes 1-2/3"),
    "no-etag": Fault(etag=""),
    "gzip": Fault(gzipped=True),
    "elsewhere": Fault(redirect="/other%2Fplace/{name}?signed=a%2Fb"),
    "redirect-loop": Fault(redirect="/{name}"),
    "flip": Flip(),
}
"""None of them makes wrong bytes look right to one who compares what can be compared; "flip" is for pinned files, and
"long" for those that come by ranges: else the origin says from first to last that the file is so long."""


class _Patience(threading.Event):
    """Set when the origin stops. Who waits for that without limit stalls a connection, and does so for STALL_S."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(STALL_S if timeout is None else timeout)


class SoakOrigin(Origin):
    """Serves the world's current versions, each under validators of its own. Its log only counts."""

    def __init__(self, world: World) -> None:
        super().__init__({})
        self._world = world
        self._stopping = _Patience()
        self.statuses: Counter[int] = Counter()
        self._asked = threading.Condition()
        self._last = ""
        """The file of which a part that is not its first was asked for last."""
        for name, file in world.files.items():
            self._serve_version(file, world.current(name))

    def change(self, name: str, factor: float) -> str:
        """Another version from now on. Returns what it is."""
        version = self._world.next_version(name, factor)
        self._serve_version(self._world.files[name], version)
        return f"{name} is version {version.number}{'' if version.honest else ' (foreign)'}, {len(version.data)} bytes"

    def chase(self, seconds: float) -> str:
        """Change what is being fetched, as soon as something is. Returns what it is, "" when nothing was."""
        with self._asked:
            self._last = ""
            self._asked.wait_for(lambda: self._last or self._stopping.is_set(), seconds)
            name = self._last
        return self.change(name, 1.0) if name else ""

    def break_(self, name: str, fault: str, times: int) -> None:
        """The next requests of `name` fail so."""
        made = FAULTS[fault]
        self.fault(name, dataclasses.replace(made, redirect=made.redirect.format(name=name)), times=times)

    def _serve_version(self, file: FileDef, version: Version) -> None:
        assert isinstance(self._files, dict)
        if file.name.startswith("local/"):
            self._write(file.name, version.data)
            return
        # Last-Modified counts seconds; no two versions may have the same.
        modified = email.utils.formatdate(1_600_000_000 + version.number, usegmt=True)
        self._files[file.name] = File(len(version.data), f'"{version.digest[7:31]}"', modified, data=version.data)

    def _write(self, name: str, data: bytes) -> None:
        """By rename: a reader has the old file or the new one."""
        path = self._world.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_bytes(data)
        fresh.replace(path)

    def _next_fault(self, name: str) -> Fault:
        fault, file = super()._next_fault(name), self._world.files.get(_plain(name))
        if file is None:
            return fault
        hidden = {} if file.modified else {"Last-Modified": ""}
        return dataclasses.replace(
            fault,
            etag=fault.etag if file.etag else "",
            headers={**hidden, **fault.headers},
            no_ranges=fault.no_ranges or not file.ranges,
            chunked=fault.chunked or not file.length,
        )

    def _find(self, name: str) -> File | None:
        return super()._find(_plain(name))

    def answer(self, asked: Asked, fault: Fault) -> Answer:
        answer = super().answer(asked, fault)
        name = _plain(asked.target.partition("?")[0].lstrip("/"))
        if answer.offset and not self._world.files[name].pinned:
            with self._asked:
                self._last = name
                self._asked.notify_all()
        if isinstance(fault, Flip) and answer.file is not None and answer.file.data is not None and answer.length > 1:
            body = bytearray(answer.file.data[answer.offset : answer.offset + answer.length])
            body[len(body) // 2] ^= 0x10
            answer.body, answer.file, answer.offset = bytes(body), None, 0
        return answer

    def _note(self, request: Request) -> None:
        with self._lock:
            self.statuses[request.status] += 1

    def _spawn(self, work: object, *args: object) -> None:
        # An hour sees more connections than a list should keep.
        self._threads = [t for t in self._threads if t.is_alive()]
        super()._spawn(work, *args)

    def _serve(self, sock: socket.socket, number: int) -> None:
        # A client that was stopped or killed may never read on.
        sock.settimeout(60)
        super()._serve(sock, number)


def _plain(name: str) -> str:
    """Redirects lead here under another name."""
    return name.removeprefix("other%2Fplace/")
