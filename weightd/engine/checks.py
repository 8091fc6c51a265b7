"""The checks between "all bytes are here" and "visible"."""

from __future__ import annotations

import mmap
from collections.abc import Callable

from weightd.core.digest import Digest
from weightd.core.errors import DigestMismatch, FormatError
from weightd.core.safetensors import header_length, parse_header, read_header
from weightd.storage.pages import footprint

PREFIX = 8
"""Bytes of a safetensors file that hold the length of its header."""


def check_digest(got: Digest, expected: Digest | None, path: str) -> None:
    """Raises DigestMismatch."""
    if expected is not None and got != expected:
        raise DigestMismatch(
            f"SHA-256 is {got}, expected {expected}",
            file=path,
            remedy="The origin serves other bytes than were named: correct the digest or the origin. Nothing was kept.",
        )


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
