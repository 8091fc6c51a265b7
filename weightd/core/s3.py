"""What an s3:// ref names, and what an object store's own words for its objects prove.

A key is written percent-encoded, as in any URL: "%20" is a space, "%25" a percent sign.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

from weightd.core.crc import Crc, CrcAlgorithm, combine_parts, crc_of_bytes, encode_crc, parse_crc
from weightd.core.errors import RefSyntax

MAX_KEY: Final = 1024
"""Bytes of a key (S3 User Guide, "Naming Amazon S3 objects")."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", re.ASCII)
"""Also the capitals and underscores that old buckets, and other servers, have."""
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+", re.ASCII)
_VERSION = re.compile(r"[\x21-\x7e]{0,1024}")
_MANY_PARTS = re.compile(r'"[^"]*-(\d{1,6})"', re.ASCII)


class S3Object(NamedTuple):
    """A key that is "" or ends with "/" is a prefix. `version` "" is the newest. `include` and `exclude` are patterns
    of the files to take below a prefix (`weightd.core.selection`)."""

    bucket: str
    key: str
    version: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def is_prefix(self) -> bool:
        return not self.key or self.key.endswith("/")

    @property
    def shown(self) -> str:
        """For people."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def url(self) -> str:
        """Of a file."""
        query = f"?versionId={quote(self.version, safe='')}" if self.version else ""
        return f"s3://{self.bucket}/{quote(self.key, safe='/')}{query}"


def parse_s3(url: str) -> S3Object:
    """Of a ref or a file's URL. Raises RefSyntax, which repeats nothing of it: it may hold a secret."""
    try:
        parts = urlsplit(url)
        key = unquote(parts.path[1:], errors="strict")
        text = parts.query.replace("+", "%2B")  # It stands for itself, as in a path.
        query = parse_qs(text, keep_blank_values=True, strict_parsing=True) if text else {}
    except ValueError:
        raise RefSyntax("the ref is malformed", remedy="Write %3F for '?' and %25 for '%' in a key.") from None
    if "@" in parts.netloc:
        raise RefSyntax(
            "an s3:// ref holds no credentials", remedy="Name them under [[credentials]] in the configuration."
        )
    if not _BUCKET.fullmatch(parts.netloc) or ".." in parts.netloc or _ADDRESS.fullmatch(parts.netloc):
        raise RefSyntax(
            "no valid bucket in the ref",
            remedy="A bucket has 3 to 63 letters, digits, dots and hyphens; an endpoint is set in [s3].",
        )
    if parts.fragment:
        raise RefSyntax("a ref has no fragment", remedy="Write %23 for '#' in a key.")
    if len(key.encode()) > MAX_KEY:
        raise RefSyntax(f"a key has at most {MAX_KEY} bytes", remedy="Check the ref.")
    return _with_query(S3Object(parts.netloc, key), query)


def _with_query(found: S3Object, query: Mapping[str, list[str]]) -> S3Object:
    allowed = ("include", "exclude") if found.is_prefix else ("versionId",)
    for name, values in query.items():
        if name not in allowed or "" in values:
            raise RefSyntax(
                f"{name[:40]!r} is no parameter of this ref",
                remedy="An object has versionId; a prefix, which ends in '/', has include and exclude.",
            )
    version = query.get("versionId", [""])
    if len(version) > 1 or not _VERSION.fullmatch(version[0]):
        raise RefSyntax("no valid versionId", remedy="It is one word, as the bucket's list of versions has it.")
    return found._replace(
        version=version[0], include=tuple(query.get("include", ())), exclude=tuple(query.get("exclude", ()))
    )


def stored_parts(etag: str) -> int:
    """How many parts an object was uploaded in, as its ETag says ("…-N"); 1 for any other ETag."""
    match = _MANY_PARTS.fullmatch(etag)
    return int(match[1]) if match else 1


def crc_of_parts(algorithm: CrcAlgorithm, composite: str, size: int, parts: Iterable[tuple[str, int]]) -> Crc | None:
    """The whole object's CRC from those of its stored parts (base64, bytes), or None where they do not fit.

    They are believed where they are all parts of `size` bytes, and where `composite`, what the server says of the
    object, is the checksum of their checksums (S3 User Guide, "Composite checksums"): "<base64>-<number of parts>".
    """
    listed = [(parse_crc(algorithm, text), length) for text, length in parts]
    values = [(crc.value, length) for crc, length in listed if crc is not None]
    if not values or len(values) < len(listed) or sum(length for _, length in values) != size:
        return None
    raw = b"".join(value.to_bytes(algorithm.bits // 8, "big") for value, _ in values)
    expected = encode_crc(Crc(algorithm, crc_of_bytes(algorithm, raw)))
    if composite.strip() != f"{expected}-{len(values)}":
        return None
    return Crc(algorithm, combine_parts(algorithm, values))
