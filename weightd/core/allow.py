"""Which refs a daemon may be asked for: patterns, and what they match.

A pattern is
- `*`: every ref;
- an address as a ref is written, in which `*` stands for any characters, "/" among them, within the host or within the
  path: `hf://org/*`, `https://*.example.org/models/*`. One that ends in "/" stands for all below it: `s3://bucket/models/`.
  Without a path it means the whole host or bucket. A user and password do not belong into it;
- a model's name, with `*` likewise. Configured models need none: they are allowed by being configured.

A port has to be the same, the default ones said or not. A query is matched where the pattern has one; without one it
may be anything on the web, as signed addresses need, and for hf, where it chooses files, and has to be absent
elsewhere. A pattern for hf without "@revision" allows all revisions, and one that names a repository all that is in it.

In doubt nothing matches but `*`: not a path with empty, "." or ".." parts, in whatever encoding, with encoded slashes,
backslashes or two encodings of one another, because proxies and servers read those in their own ways.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from weightd.core.errors import RefNotAllowed, RefSyntax
from weightd.core.hub_ref import parse_hub
from weightd.core.refs import Ref

EVERYTHING: Final = "*"
SCHEMES: Final = ("https", "http", "file", "s3", "hf")
_PORTS: Final = {"https": 443, "http": 80}
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._*-]+)(?::([0-9]*|\*))?")
_BUCKET: Final = re.compile(r"[A-Za-z0-9._*-]+")
_NAME: Final = re.compile(r"[A-Za-z0-9._*/-]+")
_ENCODED: Final = re.compile(r"%[0-9A-Fa-f]{2}")


class _Place(NamedTuple):
    """An address in parts that are matched one by one. None says nothing."""

    scheme: str
    host: str
    path: str
    """Decoded."""
    raw: str
    """As it is written: not all sources decode it, so that both have to match there."""
    query: str | None
    revision: str | None


class AllowList:
    """Of patterns and, for names, `configured` ones. Immutable."""

    def __init__(self, patterns: Iterable[str] = (EVERYTHING,), configured: Iterable[str] = ()) -> None:
        """Raises ValueError that says which pattern is none, and why."""
        patterns = tuple(patterns)
        self._all = EVERYTHING in patterns
        self._places = tuple(_pattern(p) for p in patterns if "://" in p)
        self._names = tuple(_name_pattern(p) for p in patterns if "://" not in p)
        self._configured = frozenset(configured)

    def allows(self, ref: Ref) -> bool:
        """Whether one of the patterns matches."""
        if self._all:
            return True
        if ref.scheme == "name":
            return ref.text in self._configured or any(matches(p, ref.text) for p in self._names)
        return any(_matches(p, place) for place in _places(ref) for p in self._places)

    def check(self, ref: Ref) -> None:
        """Raises RefNotAllowed."""
        if not self.allows(ref):
            raise RefNotAllowed(
                "this daemon is not allowed to serve the ref",
                ref=ref.shown,
                remedy="Whoever runs it may add it to [sources] allow in its configuration, or name it as a model.",
            )


def _places(ref: Ref) -> list[_Place]:
    """What a pattern may match for `ref`: of a Hub its repository, or what it names in that."""
    place = _place(ref.text)
    if ref.scheme != "hf":
        return [] if place is None else [place]
    try:
        hub = parse_hub(ref.text)
    except RefSyntax:
        return []
    host, _, name = hub.repo.partition("/")
    query = ref.text.partition("?")[2] or None
    inside = f"/{hub.path}".rstrip("/")
    paths = [f"/{name}"]
    if name and inside and _parts(inside) == inside:
        paths.append(f"/{name}{inside}")
    return [_Place("hf", host, path, path, query, hub.revision) for path in paths]


def matches(pattern: str, text: str) -> bool:
    """Whether `pattern` stands for all of `text`; `*` for any characters, all else for itself. In time proportional to
    the product of the lengths, whatever the pattern."""
    at = place = 0
    star = mark = -1
    while place < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, mark = at, place
            at += 1
        elif at < len(pattern) and pattern[at] == text[place]:
            at, place = at + 1, place + 1
        elif star >= 0:
            mark += 1
            at, place = star + 1, mark
        else:
            return False
    return all(c == "*" for c in pattern[at:])


def _matches(pattern: _Place, place: _Place) -> bool:
    web = pattern.scheme in _PORTS
    if place.scheme == "hf" and place.path == "/" != pattern.path:
        return False  # "hf://org/*" is not for a repository that is called "org".
    return (
        pattern.scheme == place.scheme
        and matches(pattern.host, place.host)
        and matches(_below(pattern.path), place.path)
        and (web or matches(_below(pattern.raw), place.raw))
        and (
            (pattern.scheme in (*_PORTS, "hf") and pattern.query is None)
            or matches(pattern.query or "", place.query or "")
        )
        and (pattern.revision is None or matches(pattern.revision, place.revision or ""))
    )


def _below(path: str) -> str:
    return path + "*" if path.endswith("/") else path


def _pattern(text: str) -> _Place:
    if text.partition("://")[0].lower() not in SCHEMES:
        begins = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(f"{_shown(text)!r}: a pattern begins with {begins}, or is a name")
    place = _place(text)
    if place is None:
        raise ValueError(
            f"{_shown(text)!r} can match nothing: it may have no user, fragment, spaces or backslash, and its path no "
            "empty, '.' or '..' parts and nothing that is encoded twice"
        )
    if "@" in text.partition("://")[2].partition("/")[0]:
        raise ValueError(f"{_shown(text)!r}: a user and password do not belong into a pattern")
    return place


def _name_pattern(text: str) -> str:
    if text != EVERYTHING and not _NAME.fullmatch(text):
        raise ValueError(f"{_shown(text)!r} is neither an address nor a model's name")
    return text


def _shown(text: str) -> str:
    scheme, sep, rest = text.rpartition("://")
    return scheme + sep + rest.rpartition("@")[2]


def _place(text: str) -> _Place | None:
    """None for what is not clearly one place."""
    if any(c in "\\#" or ord(c) <= 32 or ord(c) == 127 for c in text):
        return None
    try:
        url = urlsplit(text)
    except ValueError:
        return None
    scheme = url.scheme.lower()
    if scheme == "hf" and url.netloc == "models":  # What `parse_hub` leaves out.
        url = urlsplit(f"hf:/{text.partition('://')[2].removeprefix('models')}")
    raw, at, revision = url.path.partition("@") if scheme == "hf" else (url.path, "", "")
    host, path = _host(scheme, url.netloc), _parts(raw)
    if host is None or path is None or (at and _parts(f"/{revision}") is None):
        return None
    return _Place(scheme, host, path, raw or "/", url.query or None, unquote(revision) if at else None)


def _host(scheme: str, netloc: str) -> str | None:
    """Of the web: in lower case, without user and default port. None for what is no plain host, bucket or name."""
    if scheme == "file":
        return "" if netloc.lower() in ("", "localhost") else None
    if scheme not in _PORTS:
        return netloc if _BUCKET.fullmatch(netloc) else None
    match = _HOST.fullmatch(netloc.rpartition("@")[2].lower())
    if match is None or not netloc.isascii():
        return None
    port = match[2] or ""
    if port.isdigit() and len(port) <= 5:
        port = str(int(port))
    elif port not in ("", "*"):
        return None
    return match[1] if port in ("", str(_PORTS[scheme])) else f"{match[1]}:{port}"


def _parts(path: str) -> str | None:
    """The path, decoded; beginning with "/". None for what may be read in more than one way."""
    decoded = []
    parts = (path or "/").split("/")
    for index, part in enumerate(parts):
        try:
            plain = unquote(part, errors="strict")
        except UnicodeDecodeError:
            return None
        if _obscure(plain) or (not plain and 0 < index < len(parts) - 1):
            return None
        decoded.append(plain)
    return "/".join(decoded)


def _obscure(part: str) -> bool:
    """Whether somebody may take it for more than a name: "..;x" is one to some servers, "\uff0f" a slash to others."""
    alike = unicodedata.normalize("NFKC", part)
    if any(c in "/\\" or ord(c) < 32 or ord(c) == 127 for c in part + alike) or _ENCODED.search(alike):
        return True
    return bool(part) and not alike.partition(";")[0].strip(" .")
