"""Until when a signed address is good, as its own query says it."""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

MARGIN_S = 60.0
"""How long before its end an address is renewed, at most; of a short life, a tenth."""
_EARLIEST, _LATEST = 1e9, 1e10
"""Seconds since the epoch, 2001 to 2286: what lies outside is no time that somebody meant."""
_DATE = re.compile(r"\d{8}T\d{6}Z", re.ASCII)
_SECONDS = re.compile(r"\d{1,11}", re.ASCII)
_POLICY = re.compile(rb'"DateLessThan"\s*:\s*\{\s*"AWS:EpochTime"\s*:\s*(\d{1,11})\s*\}')
_MAX_POLICY = 16 << 10


def good_until(url: str) -> float | None:
    """Seconds since the epoch at which the signature in `url` ends, the first where several do; None where nothing
    says so, or what is said makes no sense.

    Known are Amazon's and Google's query signatures and those made after them (X-Amz-Date and X-Amz-Expires), the
    older `Expires` of S3, Google and CloudFront, CloudFront's custom `Policy`, and `se` of Azure's shared access
    signatures.
    """
    try:
        query = _query(urlsplit(url).query)
        ends = [*_dated(query), *_epoch(query), *_azure(query), *_policy(query)]
    except (ValueError, OverflowError):
        return None
    return min((end for end in ends if _EARLIEST <= end <= _LATEST), default=None)


def renew_at(until: float, now: float) -> float:
    """When to renew an address that was learned `now` and ends at `until`."""
    return until - min(MARGIN_S, (until - now) / 10)


def _query(text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for pair in text.split("&"):
        name, _, value = pair.partition("=")
        found.setdefault(unquote(name).lower(), unquote(value))
    return found


def _dated(query: Mapping[str, str]) -> list[float]:
    """X-Amz-Date=20260101T000000Z and X-Amz-Expires=3600; X-Goog-, X-Oss- and X-Tos- are alike."""
    ends = []
    for name in ("x-amz", "x-goog", "x-oss", "x-tos"):
        date, seconds = query.get(f"{name}-date", ""), query.get(f"{name}-expires", "")
        if _DATE.fullmatch(date) and _SECONDS.fullmatch(seconds):
            signed = datetime.datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
            ends.append(signed.timestamp() + int(seconds))
    return ends


def _epoch(query: Mapping[str, str]) -> list[float]:
    value = query.get("expires", "")
    return [float(value)] if _SECONDS.fullmatch(value) else []


def _azure(query: Mapping[str, str]) -> list[float]:
    """se=2026-01-01T00:00:00Z, or shorter forms of ISO 8601; a day alone begins at midnight, UTC."""
    if "sig" not in query or not query.get("se"):
        return []
    when = datetime.datetime.fromisoformat(query["se"])
    return [(when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp()]


def _policy(query: Mapping[str, str]) -> list[float]:
    """Base64 with "-", "_" and "~" for "+", "=" and "/" (CloudFront's guide, "custom policy")."""
    text = query.get("policy", "")
    if not text or len(text) > _MAX_POLICY or not text.isascii():
        return []
    policy = base64.b64decode(text.translate(str.maketrans("-_~", "+=/")))
    return [float(end) for end in _POLICY.findall(policy)]
