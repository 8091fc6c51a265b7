"""Which parts of an ingest are on disk for certain: a file that only grows, beside the data that it speaks of.

A header, then records of fixed size. Every record carries a check of itself and of the header, so that what a crash
tore, a disk zeroed or another ledger left behind is not believed: a bad record costs its part, a bad header the ingest.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

import msgspec
import xxhash

from weightd.core.parts import ALIGN
from weightd.storage.direct import disk_errors

MAGIC = b"weightd ledger 1\n"
_LENGTH = struct.Struct("<I")
_RECORD = struct.Struct("<I16s8s")
CHECKSUM = 16
"""Bytes of an xxh3-128."""
MAX_HEADER = 4096


class LedgerHeader(msgspec.Struct, frozen=True):
    """What the ingest is for. `identity` names the bytes (a digest or a source key); sizes in bytes."""

    identity: str
    size: int
    part_size: int

    @property
    def sound(self) -> bool:
        """Whether parts can be counted by it."""
        return self.size > 0 and self.part_size > 0 and self.part_size % ALIGN == 0

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.size // self.part_size)


class Ledger:
    """Blocking. The file is opened for each operation: a model may have more files than a process has descriptors."""

    def __init__(self, path: Path, header: LedgerHeader) -> None:
        self.path, self.header = path, header
        self._seal = _seal(header)

    @classmethod
    def create(cls, path: Path, header: LedgerHeader) -> Ledger:
        """A new file without records, durable but for its name. Raises DiskFull."""
        text = msgspec.json.encode(header)
        head = MAGIC + _LENGTH.pack(len(text)) + text + xxhash.xxh3_64_digest(text)
        with disk_errors(path.parent):
            _append(path, head, os.O_CREAT | os.O_EXCL)
        return cls(path, header)

    @classmethod
    def read(cls, path: Path) -> tuple[Ledger, dict[int, bytes]] | None:
        """The ledger with the checksum of each recorded part by index; None when there is none that can be believed.

        A torn tail is cut off: what is appended later begins where a record begins.
        """
        try:
            raw = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            return None
        parsed = _header(raw)
        if parsed is None:
            return None
        header, start = parsed
        ledger = cls(path, header)
        whole = start + (len(raw) - start) // _RECORD.size * _RECORD.size
        if whole < len(raw):
            with disk_errors(path.parent):
                os.truncate(path, whole)
        return ledger, ledger._records(raw[start:whole])

    def _records(self, raw: bytes) -> dict[int, bytes]:
        """A later record of a part replaces an earlier one."""
        found: dict[int, bytes] = {}
        for index, checksum, check in _RECORD.iter_unpack(raw):
            if index < self.header.parts and check == self._check(index, checksum):
                found[index] = checksum
        return found

    def _check(self, index: int, checksum: bytes) -> bytes:
        return xxhash.xxh3_64_digest(self._seal + _LENGTH.pack(index) + checksum)

    def append(self, parts: Mapping[int, bytes]) -> None:
        """Record parts whose data is durable; durable itself when this returns. Raises DiskFull."""
        records = (_RECORD.pack(index, checksum, self._check(index, checksum)) for index, checksum in parts.items())
        with disk_errors(self.path.parent):
            _append(self.path, b"".join(records))

    def __repr__(self) -> str:
        return f"<Ledger {self.path.name} of {self.header.identity[:19]}>"


def _seal(header: LedgerHeader) -> bytes:
    return xxhash.xxh3_64_digest(msgspec.json.encode(header))


def _header(raw: bytes) -> tuple[LedgerHeader, int] | None:
    """With the offset of the first record."""
    start = len(MAGIC) + _LENGTH.size
    if not raw.startswith(MAGIC) or len(raw) < start:
        return None
    (length,) = _LENGTH.unpack_from(raw, len(MAGIC))
    text, check = raw[start : start + length], raw[start + length : start + length + 8]
    if length > MAX_HEADER or check != xxhash.xxh3_64_digest(text):
        return None
    try:
        header = msgspec.json.decode(text, type=LedgerHeader)
    except msgspec.DecodeError:
        return None
    return (header, start + length + 8) if header.sound else None


def _append(path: Path, data: bytes, flags: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fdatasync(fd)
    finally:
        os.close(fd)
