"""What an HTTP origin's answer to a request for bytes proves; decided here, acted on in `weightd.sources`.

The rules are those of RFC 9110 §13 and §14. Header names are lower case. `where` is the redacted address, for messages.
"""

from __future__ import annotations

import datetime
import email.utils
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from weightd.core.errors import (
    SizeMismatch,
    SourceChanged,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    WeightdError,
)
from weightd.core.manifest import Validator

Headers = Mapping[str, str]

_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)", re.ASCII | re.IGNORECASE)
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
_ITEM = re.compile(r"([rt])\s*=\s*(\d{1,18})", re.ASCII)
THROTTLED = frozenset({429, 503})
"""Statuses by which an origin says that it is asked too often."""
MAX_RETRY_AFTER = 30.0
"""Seconds: the longest wait that an origin gets when it asks for one."""
_PLAIN = re.compile(r"[\x20-\x7e]{1,100}")
_STRONG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


class ContentRange(NamedTuple):
    """`first` and `last` are inclusive byte offsets, None for `*`; so is `total` where the origin does not say."""

    first: int | None
    last: int | None
    total: int | None


class Wanted(NamedTuple):
    """Bytes `offset` to `offset + length - 1` of a file that has `size` bytes and was pinned by `validator`.

    `ranged` says whether the request had a Range header.
    """

    offset: int
    length: int
    size: int
    validator: Validator
    ranged: bool


class Probe(NamedTuple):
    """What the answer to `Range: bytes=0-0` tells. `size` is None where the origin does not say."""

    size: int | None
    ranges: bool
    validator: Validator


def single(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By name in lower case. A header that is said twice with two values becomes a list (RFC 9110 §5.3), which is no
    valid value of those that are judged here: none of the two is believed."""
    found: dict[str, str] = {}
    for name, value in headers:
        name = name.lower()
        if found.setdefault(name, value) != value:
            found[name] = f"{found[name]}, {value}"
    return found


def parse_content_range(text: str) -> ContentRange | None:
    """The value of Content-Range in bytes, or None when it is missing, malformed or contradicts itself."""
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        return None
    first, last, total = (None if g is None or g == "*" else int(g) for g in match.groups())
    if first is None or last is None:
        return None if total is None else ContentRange(None, None, total)
    if last < first or (total is not None and last >= total):
        return None
    return ContentRange(first, last, total)


def validator_of(headers: Headers) -> Validator:
    """What names this version: a strong ETag and Last-Modified. A weak ETag does not promise equal bytes: left out, as
    is what could not be sent back."""
    etag, modified = headers.get("etag", "").strip(), headers.get("last-modified", "").strip()
    return Validator(
        etag=etag if _STRONG.fullmatch(etag) else "", last_modified=modified if _PLAIN.fullmatch(modified) else ""
    )


def conditions(validator: Validator) -> dict[str, str]:
    """Request headers that make the origin answer 412 when its file is another version."""
    if validator.etag:
        return {"If-Match": validator.etag}
    return {"If-Unmodified-Since": validator.last_modified} if validator.last_modified else {}


def is_transient(status: int) -> bool:
    """A status after which the same request may succeed."""
    return status in (408, 425, 429) or status >= 500


def asked_to_wait(headers: Headers, now: float) -> float:
    """Seconds until the origin wants to be asked again, at most MAX_RETRY_AFTER; 0 where it does not say.

    Retry-After, else the reset of a RateLimit whose remaining requests are none (draft-ietf-httpapi-ratelimit-headers:
    "r=0;t=5", or the older RateLimit-Remaining and RateLimit-Reset). `now` in seconds since the epoch.
    """
    if "retry-after" in headers:
        return retry_after(headers["retry-after"], now)
    found = dict(_ITEM.findall(headers.get("ratelimit", "")))
    left = found.get("r") or headers.get("ratelimit-remaining", "").strip()
    reset = found.get("t") or headers.get("ratelimit-reset", "").strip()
    return min(float(reset[:9]), MAX_RETRY_AFTER) if left == "0" and reset.isdecimal() else 0.0


def retry_after(value: str, now: float) -> float:
    """Seconds, at most MAX_RETRY_AFTER, from a Retry-After header (RFC 9110 §10.2.3); 0 for none or nonsense."""
    value = value.strip()
    if value.isdecimal():
        return min(float(value[:9]), MAX_RETRY_AFTER)
    try:
        when = email.utils.parsedate_to_datetime(value)
        if when.tzinfo is None:
            when = when.replace(tzinfo=datetime.UTC)
        return min(max(when.timestamp() - now, 0.0), MAX_RETRY_AFTER)
    except (ValueError, IndexError, TypeError, OverflowError):  # A date that is none, in one of many ways.
        return 0.0


def status_error(status: int, where: str) -> WeightdError:
    """The error for a final status that carries no bytes of the file."""
    text = f"{where} answered {status}"
    if status in (404, 410):
        return SourceNotFound(f"{text}: no such file", remedy="Check the address.")
    if status in (401, 403, 407, 451):
        return SourceDenied(f"{text}: access refused", remedy="Check the credentials and the rights at the origin.")
    if status == 412:
        return SourceChanged(f"{text}: the file is another version now", remedy="Fetch the model again.")
    if is_transient(status):
        return SourceUnavailable(f"{text}: the origin is in trouble or busy", remedy="Try again later.")
    return SourceUnavailable(
        f"{text}, which carries no file", remedy="Check that the address serves the file by plain GET."
    )


def judge_probe(status: int, headers: Headers, where: str) -> Probe | None:
    """Judge the answer to `Range: bytes=0-0`; None: the origin refused the range (416), ask once more without one."""
    if status == 416:
        total = parse_content_range(headers.get("content-range", ""))
        return Probe(0, True, Validator()) if total is not None and total.total == 0 else None
    if status not in (200, 206):
        raise status_error(status, where)
    _check_encoding(headers, where)
    if status == 200 and "content-range" not in headers:
        return Probe(_content_length(headers, where), False, validator_of(headers))
    given = _single_range(headers, where)
    if (given.first, given.last) != (0, 0):
        raise _wrong_range(headers, where, "0-0")
    return Probe(given.total, True, validator_of(headers))


def judge_body(wanted: Wanted, status: int, headers: Headers, where: str) -> None:
    """Return when the answer's body is exactly the wanted bytes of the pinned version, as far as its head can tell.

    Raises SourceChanged for another version, SizeMismatch for a body longer than asked for or a whole file of another
    size, SourceUnavailable for what a retry may mend, and the error of the status.
    """
    if status == 416:
        raise _unsatisfied(wanted, headers, where)
    if status not in (200, 206):
        raise status_error(status, where)
    _check_encoding(headers, where)
    _check_version(wanted.validator, headers, where)
    # ModelScope answers a range with 200 and its Content-Range.
    if status == 206 or (wanted.ranged and "content-range" in headers):
        _check_part(wanted, headers, where)
    else:
        _check_whole(wanted, headers, where)
    length = _content_length(headers, where)
    if length is not None and length < wanted.length:
        raise SourceUnavailable(f"{where} offers {length} of {wanted.length} bytes", remedy="Try again later.")
    if length is not None and length > wanted.length:
        raise SizeMismatch(
            f"{where} offers {length} bytes where {wanted.length} were asked for",
            remedy="The origin or a proxy in front of it damages answers to ranges: mend it, or fetch from elsewhere.",
        )


def _check_part(wanted: Wanted, headers: Headers, where: str) -> None:
    asked = f"{wanted.offset}-{wanted.offset + wanted.length - 1}"
    if not wanted.ranged:
        raise SourceUnavailable(f"{where} sent a part although the whole was asked for", remedy="Try again later.")
    if headers.get("content-type", "").strip().lower().startswith("multipart/byteranges"):
        raise SourceUnavailable(
            f"{where} sent several parts for one range (multipart/byteranges)", remedy="Try again later."
        )
    given = _single_range(headers, where)
    if given.total is not None and given.total != wanted.size:
        raise SourceChanged(
            f"{where} has {given.total} bytes now, {wanted.size} when resolved", remedy="Fetch the model again."
        )
    if (given.first, given.last) != (wanted.offset, wanted.offset + wanted.length - 1):
        raise _wrong_range(headers, where, asked)


def _check_whole(wanted: Wanted, headers: Headers, where: str) -> None:
    if wanted.offset or wanted.length != wanted.size:
        raise SourceUnavailable(
            f"{where} answered the whole file to a request for a part of it",
            remedy="Some server behind this address ignores ranges; try again, or use another address.",
        )
    length = _content_length(headers, where)
    if length is not None and length != wanted.size:
        raise SizeMismatch(
            f"{where} offers {length} bytes, {wanted.size} were promised",
            remedy="Fetch the model again; if its size is given in models.json, correct it.",
        )


def _unsatisfied(wanted: Wanted, headers: Headers, where: str) -> WeightdError:
    given = parse_content_range(headers.get("content-range", ""))
    if given is not None and given.total != wanted.size:
        return SourceChanged(
            f"{where} has {given.total} bytes now, {wanted.size} when resolved", remedy="Fetch the model again."
        )
    return SourceUnavailable(f"{where} answered 416 to a range inside the file", remedy="Try again later.")


def _check_encoding(headers: Headers, where: str) -> None:
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise SourceUnavailable(
            f"{where} sends the file encoded as {encoding[:40]!r} although identity was asked for",
            remedy="Switch compression off for this path at the origin or its proxy.",
        )
    # Codings of the transfer but for chunks are not undone: nobody asked for any (RFC 9112 §7.4).
    transfer = headers.get("transfer-encoding", "").lower()
    if transfer not in ("", "identity", "chunked"):
        raise SourceUnavailable(
            f"{where} sends the file in the transfer coding {transfer[:40]!r}", remedy="Mend the origin or its proxy."
        )


def _check_version(pinned: Validator, headers: Headers, where: str) -> None:
    now = validator_of(headers)
    if not pinned.etag and not pinned.last_modified:
        return
    if (now.etag == pinned.etag) if pinned.etag else (now.last_modified == pinned.last_modified):
        return
    named = pinned.etag and now.etag
    if named or (pinned.last_modified and now.last_modified not in ("", pinned.last_modified)):
        raise SourceChanged(f"{where} changed since it was resolved", remedy="Fetch the model again.")
    # An error page, or a proxy that drops it: no proof of a change, for which what is here would be given up.
    raise SourceUnavailable(f"{where} does not say which version it sends", remedy="Try again later.")


def _single_range(headers: Headers, where: str) -> ContentRange:
    given = parse_content_range(headers.get("content-range", ""))
    if given is None or given.first is None:
        raise SourceUnavailable(
            f"{where} answered 206 without one valid Content-Range ({_shown(headers)})", remedy="Try again later."
        )
    return given


def _wrong_range(headers: Headers, where: str, asked: str) -> WeightdError:
    return SourceUnavailable(f"{where} sent {_shown(headers)} for bytes {asked}", remedy="Try again later.")


def _shown(headers: Headers) -> str:
    return repr(headers.get("content-range", headers.get("content-type", ""))[:100])


def _content_length(headers: Headers, where: str) -> int | None:
    """None where the body's end is told otherwise: chunks, or the end of the connection."""
    text = headers.get("content-length")
    if text is None or "transfer-encoding" in headers:
        return None
    if _LENGTH.fullmatch(text.strip()) is None:
        raise SourceUnavailable(f"{where} sent the length {text[:40]!r}", remedy="Try again later.")
    return int(text)
