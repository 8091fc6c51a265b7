"""`sha256:<hex>`: the identity of a blob."""

from __future__ import annotations

import hashlib
import re
from typing import NewType

from weightd.core.errors import DigestSyntax

Digest = NewType("Digest", str)

_HEX = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")


def parse_digest(text: str) -> Digest:
    """`sha256:` and 64 hex digits, or the digits alone, in either case. Raises DigestSyntax."""
    match = _HEX.fullmatch(text.strip())
    if match is None:
        raise DigestSyntax(
            f"not a SHA-256 digest: {text[:100]!r}", remedy="Give 64 hex digits, with or without 'sha256:' before them."
        )
    return Digest("sha256:" + match[1].lower())


def digest_of(raw: bytes) -> Digest:
    """From the 32 bytes that hashlib's `digest()` returns."""
    return Digest("sha256:" + raw.hex())


def hex_of(digest: Digest) -> str:
    """The 64 digits alone."""
    return digest.removeprefix("sha256:")


def blob_name(digest: Digest) -> str:
    """Where the blob lies on disk, below the state directory: `blobs/sha256/ab/<hex>`."""
    name = hex_of(digest)
    return f"blobs/sha256/{name[:2]}/{name}"


def git_blob(size: int) -> hashlib._Hash:
    """What the bytes of a file of so many are to follow, for the id of its git blob."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
