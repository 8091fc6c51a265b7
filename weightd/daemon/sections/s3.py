"""`[s3]`"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import msgspec

from weightd.core.credentials import Addressing
from weightd.daemon.config_reader import Reader
from weightd.sources.s3_settings import S3Options


class S3Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[s3]` as it is written."""

    endpoint: str = ""
    region: str = ""
    addressing: Addressing = "auto"
    anonymous: bool = False
    requester_pays: bool = False
    profile: str = ""


def read_s3(reader: Reader) -> S3Options:
    """Raises ConfigError."""
    section = reader.section("s3", S3Section)
    return S3Options(
        endpoint=reader.value(("s3", "endpoint"), check_endpoint, section.endpoint),
        region=reader.value(("s3", "region"), check_region, section.region),
        addressing=section.addressing,
        anonymous=reader.value(("s3", "anonymous"), lambda _: _who(section), section.anonymous),
        requester_pays=section.requester_pays,
        profile=section.profile,
    )


def check_endpoint(text: str) -> str:
    """An address without credentials, or "". Raises ValueError, which repeats nothing of it."""
    parts = urlsplit(text)
    usable = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc and not parts.query
    if text and not usable:
        raise ValueError("not an address without credentials; write https://host or http://host:port")
    return text


def check_region(text: str) -> str:
    """A name, or "". Raises ValueError."""
    if text and not re.fullmatch(r"[A-Za-z0-9-]{1,63}", text):
        raise ValueError(f"{text[:80]!r} is no name of a region")
    return text


def _who(section: S3Section) -> bool:
    if section.anonymous and section.profile:
        raise ValueError("anonymous, and a profile: only one of them can hold")
    return section.anonymous
