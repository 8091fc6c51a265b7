"""What was asked for, and when: the input of a simulation, and the file in which a recorder keeps it.

A file has one JSON object on a line, whose `type` says what it is: first a Header; then each Snapshot before the first
line that names it; Acquired and Released as they happened; Lost and Gap where something is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from benchmarks.machine import Unable

VERSION = 1


class Header(msgspec.Struct, frozen=True, tag="trace", tag_field="type"):
    """`about` says, for people, what ran."""

    version: int = VERSION
    about: str = ""


class File(msgspec.Struct, frozen=True, array_like=True):
    """`digest` is the blob's identity, whatever its form; `size` in bytes."""

    digest: str
    size: int


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot", tag_field="type"):
    ref: str
    revision: str
    files: tuple[File, ...]

    @property
    def key(self) -> tuple[str, str]:
        return self.ref, self.revision

    @property
    def blobs(self) -> dict[str, int]:
        """Sizes by digest: a blob that is in it twice counts once."""
        return {f.digest: f.size for f in self.files}

    @property
    def size(self) -> int:
        return sum(self.blobs.values())


class _OfSnapshot(msgspec.Struct, frozen=True):
    """Something at Unix time `time`."""

    time: float
    ref: str
    revision: str


class Acquired(_OfSnapshot, frozen=True, tag="acquired", tag_field="type"):
    """A worker got a lease."""


class Released(_OfSnapshot, frozen=True, tag="released", tag_field="type"):
    """One of the leases of this snapshot ended."""


class Lost(_OfSnapshot, frozen=True, tag="lost", tag_field="type"):
    """A snapshot was acquired or released of which it is not known what is in it: it went too soon."""


class Gap(msgspec.Struct, frozen=True, tag="gap", tag_field="type"):
    """Here something may be missing; leases may have ended."""

    time: float
    why: str


Line = Header | Snapshot | Acquired | Released | Lost | Gap


class Request(msgspec.Struct, frozen=True):
    """A lease of a snapshot, from `time` on for `held` seconds."""

    time: float
    ref: str
    revision: str
    held: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        return self.ref, self.revision


class Trace(msgspec.Struct, frozen=True):
    """`requests` in the order of time. `paces`: how much faster than usual the origin of a ref is; 1 unless given."""

    name: str
    snapshots: dict[tuple[str, str], Snapshot]
    requests: tuple[Request, ...]
    paces: dict[str, float] = {}
    about: str = ""

    @property
    def distinct_bytes(self) -> int:
        """Of all blobs that are ever asked for."""
        blobs: dict[str, int] = {}
        for key in {r.key for r in self.requests}:
            blobs |= self.snapshots[key].blobs
        return sum(blobs.values())


def faster(given: Trace, tempo: float) -> Trace:
    """The same requests, so many times as fast."""
    requests = tuple(msgspec.structs.replace(r, time=r.time / tempo, held=r.held / tempo) for r in given.requests)
    return msgspec.structs.replace(given, name=f"{given.name}, {tempo:g} ×", requests=requests)


_DECODER = msgspec.json.Decoder(Line)


def encode(line: Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def read(path: Path) -> Trace:
    """Raises Unable for what is no trace, with the number of the line."""
    try:
        lines = list(_lines(path))
    except OSError as e:
        raise Unable(f"{path} cannot be read: {e.strerror}") from e
    if not lines or not isinstance(lines[0], Header):
        raise Unable(f"{path} does not begin as a trace; make one with python -m benchmarks.eviction.record")
    if lines[0].version != VERSION:
        raise Unable(f"{path} is a trace of version {lines[0].version}, and this reads {VERSION}; record it again")
    snapshots = {s.key: s for s in lines if isinstance(s, Snapshot)}
    requests = tuple(sorted(_requests(lines), key=lambda r: r.time))
    if not requests:
        raise Unable(f"{path} has no request; record for longer, while workers acquire models")
    for request in requests:
        if request.key not in snapshots:
            raise Unable(f"{path} does not say what is in {request.ref} {request.revision}; record it again")
    return Trace(path.stem, snapshots, requests, about=lines[0].about)


def _lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            try:
                yield _DECODER.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError) as e:
                raise Unable(f"{path} line {number} is not of a trace: {e}") from e


def _requests(lines: Iterable[Line]) -> Iterator[Request]:
    """Who released is not recorded: of the leases of a snapshot, the oldest counts as ended. Those that are open at a
    gap end there, those open at the end at the last line."""
    since: dict[tuple[str, str], list[float]] = {}
    last = 0.0
    for line in lines:
        if isinstance(line, Acquired):
            since.setdefault((line.ref, line.revision), []).append(line.time)
        elif isinstance(line, Released) and (begun := since.get((line.ref, line.revision))):
            yield _ended(line.ref, line.revision, begun.pop(0), line.time)
        if not isinstance(line, Header | Snapshot):
            last = max(last, line.time)
        if isinstance(line, Gap):
            yield from _all_ended(since, line.time)
            since.clear()
    yield from _all_ended(since, last)


def _all_ended(since: dict[tuple[str, str], list[float]], now: float) -> Iterator[Request]:
    for (ref, revision), begun in since.items():
        for begin in begun:
            yield _ended(ref, revision, begin, now)


def _ended(ref: str, revision: str, begin: float, end: float) -> Request:
    return Request(begin, ref, revision, max(0.0, end - begin))
