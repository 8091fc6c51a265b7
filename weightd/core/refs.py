"""Refs: what a user names."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from weightd.core.errors import RefSyntax, WeightdError
from weightd.core.hub_ref import parse_hub
from weightd.core.s3 import parse_s3

READABLE = ("https", "http", "s3", "hf", "file")
"""Schemes that this version reads."""

SHORT, REMEMBERED = 1024, 512
"""Characters of a ref of which it is remembered what it means, and how many are: whatever workers ask, it is little."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*){0,3}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HUB_TOKEN = re.compile(r"hf_\w{16,}", re.IGNORECASE)


class Ref(NamedTuple):
    """`scheme` is one of READABLE, or "name" for a configured model. `text` is what the user wrote."""

    scheme: str
    text: str

    @property
    def shown(self) -> str:
        """For answers, logs and errors: without credentials."""
        return self.text if self.scheme == "name" else _shown(self.text)

    @property
    def key(self) -> str:
        """A directory name for this ref: readable, and unique by a hash where the text had to be changed."""
        if self.scheme == "name" and "/" not in self.text:
            return self.text
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", self.shown.split("?")[0]).strip("-.")[-80:].strip("-.")
        return f"{readable}-{hashlib.sha256(self.text.encode()).hexdigest()[:10]}"


def parse_ref(text: str) -> Ref:
    """Check a user's ref. Raises RefSyntax, which says what is wrong and never repeats a password."""
    text = text.strip()
    return _parse_again(text) if len(text) <= SHORT else _parse(text)


def _parse(text: str) -> Ref:
    match = _SCHEME.match(text)
    if match is None:
        if _NAME.fullmatch(text):
            return Ref("name", text)
        raise RefSyntax(
            f"not a ref: {text.rpartition('@')[2][:200]!r}",
            remedy="Use https://host/path, s3://bucket/prefix/, hf://org/name, file:///path or the name of a "
            "configured model.",
        )
    scheme = match[1].lower()
    if scheme not in READABLE:
        raise RefSyntax(f"unknown scheme {scheme!r}", ref=redact(text), remedy=f"Schemes are {', '.join(READABLE)}.")
    _check_url(scheme, text)
    return Ref(scheme, text)


_parse_again = lru_cache(REMEMBERED)(_parse)
"""Workers ask for the same few refs again and again, and an acquire is to cost little more than a bare call."""


def _check_url(scheme: str, text: str) -> None:
    if any(ord(c) <= 32 or ord(c) == 127 for c in text):
        raise RefSyntax(
            "a ref may not hold spaces or control characters", ref=redact(text), remedy="Write them as %20."
        )
    if scheme == "hf":
        try:
            parse_hub(text)
        except WeightdError as e:
            raise e.about(ref=redact(text)) from None
        return
    if scheme == "s3":
        try:
            parse_s3(text)
        except RefSyntax as e:
            raise e.about(ref="" if "@" in text else redact(text)) from None
        return
    url = _split(text)
    if scheme == "file":
        path = unquote(url.path)
        if url.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
            raise RefSyntax(
                "a file ref needs an absolute path on this host",
                ref=redact(text),
                remedy="Write file:///path/to/model.",
            )
        return
    if not url.hostname:
        raise RefSyntax("no host in the ref", ref=redact(text), remedy="Write https://host/path.")
    if url.fragment:
        raise RefSyntax("a ref has no fragment", ref=redact(text), remedy="Drop the part after '#'.")


def _split(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:  # Its text may repeat a password that holds an unescaped "/".
        raise RefSyntax(
            "malformed ref: no valid host and port",
            ref=redact(text),
            remedy="Check the host and port; write '/' and '@' in a password as %2F and %40.",
        ) from None
    return url


def redact(url: str) -> str:
    """A URL for people: user, password and query values removed. Never raises.

    In sound hf:// refs "@" is followed by the revision and "?" by patterns, which are shown; what may be a token is
    not. Of s3:// refs the query is shown: it holds a version and patterns (`parse_s3` lets nothing else in).
    """
    if url[:5].lower() == "hf://":
        return _HUB_TOKEN.sub("…", _redact_hub(url))
    try:
        parts = urlsplit(url)
        _ = parts.port  # Raises for "user:pass/word@host", where what stands as the host is none.
        netloc = parts.netloc.rpartition("@")[2]
        pairs = parts.query.split("&") if parts.query else []
        query = "&".join(pair if _plain(parts.scheme, pair) else f"{pair.split('=', 1)[0]}=…" for pair in pairs)
        return urlunsplit((parts.scheme, netloc, parts.path, query, ""))
    except ValueError:
        return "<malformed URL>"


@lru_cache(REMEMBERED)
def _redact_again(url: str) -> str:
    return redact(url)


def _shown(url: str) -> str:
    return _redact_again(url) if len(url) <= SHORT else redact(url)


def _plain(scheme: str, pair: str) -> bool:
    return scheme == "s3" and pair.startswith(("versionId=", "include=", "exclude="))


def _redact_hub(url: str) -> str:
    try:
        parse_hub(url)
    except WeightdError:
        # Nobody knows what stands before the "@" or behind the "?".
        address = url[5:].partition("?")[0]
        return f"hf://{'…' if '@' in address else ''}{address.rpartition('@')[2]}"
    return url
