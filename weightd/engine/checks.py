"""The checks between "all bytes are here" and "visible"."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import NamedTuple

from weightd.core.crc import Crc
from weightd.core.digest import Digest, digest_of
from weightd.core.errors import CrcMismatch, DigestMismatch, FormatError, GitIdMismatch
from weightd.core.manifest import FileSpec
from weightd.core.safetensors import header_length, parse_header, read_header
from weightd.core.verification import Verification
from weightd.storage.pages import footprint

PREFIX = 8
"""Bytes of a safetensors file that hold the length of its header."""


class Found(NamedTuple):
    """What all bytes of a file are; `crc` by the algorithm that its origin gave one of, None where it gave none;
    `git_id` only where its origin gave one."""

    digest: Digest
    crc: int | None = None
    git_id: str = ""


EMPTY = Found(
    digest_of(bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")),
    0,
    "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
)
"""Of no bytes, by every algorithm."""


class Promise(NamedTuple):
    """What all bytes of a file have to be: of this digest where one is expected, else of this CRC and git blob's id,
    where those are, else anything."""

    digest: Digest | None
    crc: Crc | None
    git_id: str = ""

    def kept_by(self, found: Found) -> bool:
        if self.digest is not None:
            return found.digest == self.digest
        return self.git_id in ("", found.git_id) and (self.crc is None or found.crc == self.crc.value)


def promise_of(file: FileSpec, expected: Digest | None) -> Promise:
    """What `file` has to be; `expected` is its digest, whoever said so."""
    return Promise(expected, file.crc, file.git_id if expected is None else "")


def check_whole(found: Found, promise: Promise, path: str) -> None:
    """Raises DigestMismatch, GitIdMismatch or CrcMismatch."""
    if promise.kept_by(found):
        return
    if promise.digest is not None:
        raise DigestMismatch(
            f"SHA-256 is {found.digest}, expected {promise.digest}",
            file=path,
            remedy="The origin serves other bytes than were named: correct the digest or the origin. Nothing was kept.",
        )
    if promise.git_id not in ("", found.git_id):
        raise GitIdMismatch(
            f"the origin lists the git blob {promise.git_id}, what it sent is {found.git_id or 'none'}",
            file=path,
            remedy="The origin, or a mirror or proxy in front of it, serves other bytes than it lists; mend it, or use "
            "another. Nothing was kept.",
        )
    if promise.crc is not None:
        raise CrcMismatch(
            f"the origin gives {promise.crc}, what it sent has {_shown(promise.crc, found.crc)}",
            file=path,
            remedy="The origin, or a proxy in front of it, serves other bytes than it stored; mend it, or give the "
            "SHA-256 of the file. Nothing was kept.",
        )


def _shown(wanted: Crc, found: int | None) -> str:
    return "none" if found is None else str(Crc(wanted.algorithm, found))


def verified(file: FileSpec, found: Found) -> Verification:
    """How far the bytes of a file were checked that kept its promise. An expected digest that nobody outside gave, but
    that was recorded when the file first came, is no verification."""
    if file.digest is not None:
        return Verification.SHA256
    if file.by_git_id and found.git_id == file.git_id:
        return Verification.GIT
    if file.crc is not None and found.crc == file.crc.value:
        return Verification.CRC
    return Verification.SIZE


def check_format(path: str, size: int, view: memoryview | None, read: Callable[[int, memoryview], None]) -> None:
    """Refuse a .safetensors file that the reference library would refuse. Raises FormatError.

    `view` is the whole file in memory; without it the header is read by `read(offset, view)`.
    """
    if not path.endswith(".safetensors"):
        return
    try:
        if view is not None:
            read_header(view)
        else:
            _check_by_reading(size, read)
    except FormatError as e:
        raise e.about(file=path) from None


def _check_by_reading(size: int, read: Callable[[int, memoryview], None]) -> None:
    first = _read(0, min(size, 4096), read)
    length = header_length(first[:PREFIX], size)
    parse_header(_read(0, PREFIX + length, read)[PREFIX:], size)


def _read(offset: int, length: int, read: Callable[[int, memoryview], None]) -> bytes:
    """By way of a page-aligned buffer, which reads past the page cache need."""
    with mmap.mmap(-1, footprint(max(length, 1))) as buffer:
        with memoryview(buffer)[:length] as view:
            read(offset, view)
            return bytes(view)
