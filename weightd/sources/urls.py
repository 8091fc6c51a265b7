"""URLs as text, so that `%2F` and signed queries arrive as they were written; and redirects, followed by hand."""

from __future__ import annotations

import base64
import enum
import re
from typing import NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from weightd.core.errors import RefSyntax, SourceDenied, SourceNotFound, SourceUnavailable
from weightd.core.refs import redact

MAX_REDIRECTS = 10
REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PERMANENT = frozenset({301, 308})
_SAFE = "%/:=&?~#+!$,;'@()*[]"
_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Where a connection goes; credentials stay within one origin (RFC 6454)."""

    scheme: str
    host: str
    port: int

    @property
    def header(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


class Target(NamedTuple):
    """A URL taken apart for a request. `authorization` is the header's value or ""; it is a secret."""

    origin: Origin
    path: str
    authorization: str

    @property
    def url(self) -> str:
        """Without the credentials."""
        return f"{self.origin.scheme}://{self.origin.header}{self.path}"


class Shape(enum.Enum):
    """What the path of a ref says that it names."""

    DIRECTORY = "directory"
    INDEX = "index"
    FILE = "file"


def encode(url: str) -> str:
    """Unsafe and non-ASCII characters percent-encoded; what is encoded already stays; an empty path becomes "/"."""
    parts = urlsplit(url)
    host = parts.netloc
    if not host.isascii():
        user, at, name = host.rpartition("@")
        host = quote(user, safe=_SAFE) + at + _idna(name)
    return urlunsplit(
        (parts.scheme.lower(), host, quote(parts.path, safe=_SAFE) or "/", quote(parts.query, safe=_SAFE), "")
    )


def _idna(name: str) -> str:
    try:
        encoded = name.encode("idna").decode("ascii")
    except UnicodeError:
        encoded = ""
    # Some characters are made of others, a space among them, which IDNA lets through.
    if not encoded or " " in encoded:
        raise RefSyntax("the host name is not valid", remedy="Check the host.")
    return encoded


def target(url: str) -> Target:
    """Of an encoded http or https URL."""
    parts = urlsplit(url)
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    secret = ""
    if "@" in parts.netloc:
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        secret = "Basic " + base64.b64encode(user.encode()).decode("ascii")
    path = parts.path or "/"
    return Target(
        Origin(parts.scheme, parts.hostname or "", port), f"{path}?{parts.query}" if parts.query else path, secret
    )


def shape(url: str) -> Shape:
    """From the path alone; nothing is asked."""
    path = urlsplit(url).path
    if path.endswith("/") or not path:
        return Shape.DIRECTORY
    return Shape.INDEX if path.endswith(".safetensors.index.json") else Shape.FILE


def name(url: str) -> str:
    """The last part of the path, decoded."""
    return unquote(urlsplit(url).path.rpartition("/")[2])


def directory(url: str) -> str:
    """The URL up to the last "/", its query kept."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rpartition("/")[0] + "/"))


def as_directory(url: str) -> str:
    """The URL itself, its path made to end in "/"."""
    parts = urlsplit(url)
    return url if parts.path.endswith("/") else urlunsplit(parts._replace(path=parts.path + "/"))


def child(url: str, path: str) -> str:
    """`path`, which `check_path` passed, below a directory's URL; its query kept."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path + quote(path, safe="/")))


class Trail:
    """The redirects of one request.

    `url` is the address to ask next. `kept` is the one to remember: permanent redirects move it, temporary ones do
    not (RFC 9110 §15.4), so that an address signed for an hour is asked for anew. Credentials of the first URL follow
    only within its origin; once dropped they do not come back.
    """

    __slots__ = ("_permanent", "_seen", "kept", "url")

    def __init__(self, url: str) -> None:
        self.url = self.kept = url
        self._seen = {url}
        self._permanent = True

    def follow(self, status: int, location: str) -> None:
        """Move on to the value of a Location header. Raises a typed error for what is not followed."""
        here = redact(self.url)
        new = _next(self.url, location)
        if new in self._seen:
            raise SourceUnavailable(f"{here} redirects in a circle", remedy="The origin has to mend this.")
        if len(self._seen) > MAX_REDIRECTS:
            raise SourceUnavailable(f"{here}: more than {MAX_REDIRECTS} redirects", remedy="Use the final address.")
        self._permanent = self._permanent and status in _PERMANENT
        self._seen.add(new)
        self.url = new
        if self._permanent:
            self.kept = new


def _next(current: str, location: str) -> str:
    here = redact(current)
    old = urlsplit(current)
    bare = urlunsplit(old._replace(netloc=old.netloc.rpartition("@")[2]))
    try:
        new = urlsplit(urljoin(bare, re.sub(r"[\x00-\x20\x7f]", lambda m: quote(m[0]), location.strip())))
        if not location.strip() or new.scheme not in _PORTS or not new.hostname:
            raise ValueError
        new = urlsplit(encode(urlunsplit(new._replace(netloc=new.netloc.rpartition("@")[2], fragment=""))))
        goal = target(urlunsplit(new)).origin
    except (ValueError, RefSyntax):
        raise SourceUnavailable(
            f"{here} redirects to something that is no web address", remedy="The origin has to mend this."
        ) from None
    if old.scheme == "https" and new.scheme == "http":
        raise SourceDenied(
            f"{here} redirects from https to http, which is not followed",
            remedy="Use an origin that stays on https, or an http:// ref if that is meant.",
        )
    if old.path.rstrip("/") and not old.path.endswith("/") and new.path == old.path + "/":
        raise SourceNotFound(f"{here} is a directory, not a file", remedy="End the ref with '/' for a directory.")
    if "@" in old.netloc and goal == target(current).origin:
        new = new._replace(netloc=f"{old.netloc.rpartition('@')[0]}@{new.netloc}")
    return urlunsplit(new)
