"""What an answer says of the whole file's bytes, whatever part of them it carries.

Nothing is taken for the whole file's that may be of a part, of parts' checksums, or of a coded form; what is garbled
or contradicts itself says nothing. Header names are lower case; several lines of one name are joined by ", ".
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeVar

from weightd.core.crc import Crc, CrcAlgorithm, parse_crc
from weightd.core.digest import Digest, digest_of
from weightd.core.manifest import Validator
from weightd.core.ranges import validator_of

T = TypeVar("T")

_AMZ_TYPE: Final = "x-amz-checksum-type"
_AMZ_SHA256: Final = "x-amz-checksum-sha256"
_AMZ_CRC: Final = {f"x-amz-checksum-{a.value.lower()}": a for a in CrcAlgorithm}
NAMES: Final = frozenset({_AMZ_TYPE, _AMZ_SHA256, *_AMZ_CRC, "x-goog-hash", "repr-digest"})
"""Headers that must be joined when they come more than once: Google Cloud Storage sends a line for each hash."""
_PREFERRED: Final = (CrcAlgorithm.CRC64NVME, CrcAlgorithm.CRC32C, CrcAlgorithm.CRC32)
_IDENTITY: Final = ("", "identity")


class Stated(NamedTuple):
    """`crc` is the strongest, then the fastest, of those given."""

    digest: Digest | None = None
    crc: Crc | None = None


def stated(headers: Mapping[str, str], *, size: int, partial: bool) -> Stated:
    """What the headers of an answer say of its file of `size` bytes; `partial`: the body is, or may be, not all of it.

    The caller has refused an answer with a content coding.

    S3 (User Guide, "Checking object integrity"): only with type FULL_OBJECT, which a checksum of parts' checksums is
    not; and never on a partial answer, where it is that of a part, and loses its "-N" (botocore #3346). Google Cloud
    Storage ("Hashes and ETags"): always of the complete object as it is stored, so not where it is stored compressed.
    RFC 9530 §3: Repr-Digest is of the whole representation; Content-Digest is not looked at, being of the body.
    """
    digests, crcs = _representation(headers.get("repr-digest", "")), _google(headers, size)
    if not partial and headers.get(_AMZ_TYPE, "").strip().upper() == "FULL_OBJECT":
        digests.append(_digest(headers.get(_AMZ_SHA256, "")))
        crcs.extend(parse_crc(algorithm, headers.get(name, "")) for name, algorithm in _AMZ_CRC.items())
    by_algorithm = (_agreed(c for c in crcs if c and c.algorithm is algorithm) for algorithm in _PREFERRED)
    return Stated(_agreed(digests), next((crc for crc in by_algorithm if crc is not None), None))


def is_of(headers: Mapping[str, str], *, size: int, validator: Validator) -> bool:
    """Whether the headers of an answer without a body are of this very version of the file."""
    coding = headers.get("content-encoding", "").strip().lower()
    same = validator.etag != "" and validator_of(headers) == validator
    return same and coding in _IDENTITY and headers.get("content-length", "").strip() == str(size)


def worth_asking(headers: Mapping[str, str]) -> bool:
    """Whether the origin is one that may say more in answer to a HEAD than to a range: S3, and what speaks its
    protocol, gives checksums of no arbitrary range, and Google Cloud Storage need not."""
    return "x-amz-request-id" in headers or "x-goog-generation" in headers


def _google(headers: Mapping[str, str], size: int) -> list[Crc | None]:
    stored = headers.get("x-goog-stored-content-encoding", "").strip().lower()
    length = headers.get("x-goog-stored-content-length", "").strip()
    if stored not in _IDENTITY or length not in ("", str(size)):
        return []
    members = (m.strip().partition("=") for m in headers.get("x-goog-hash", "").split(","))
    return [parse_crc(CrcAlgorithm.CRC32C, value) for name, _, value in members if name == "crc32c"]


def _representation(field: str) -> list[Digest | None]:
    """The sha-256 members of a dictionary of byte sequences (RFC 8941 §3.2); base64 holds no comma."""
    members = (m.strip().partition("=") for m in field.split(","))
    values = [value.partition(";")[0].strip() for name, _, value in members if name == "sha-256"]
    return [_digest(v[1:-1]) if len(v) > 2 and v[0] == v[-1] == ":" else None for v in values]


def _digest(text: str) -> Digest | None:
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return digest_of(raw) if len(raw) == 32 else None


def _agreed(values: Iterable[T | None]) -> T | None:
    """The one value that all give who give one."""
    found = {v for v in values if v is not None}
    return found.pop() if len(found) == 1 else None
