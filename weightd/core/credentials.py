"""Which credentials are for which refs: patterns in the configuration, of which the longest one that matches wins.

No secret stands here: files that hold them are named, and are read when they are needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal
from urllib.parse import unquote

import msgspec

SCHEMES = ("s3", "hf")
Addressing = Literal["auto", "path", "virtual"]


class Credential(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[credentials]]`. "" and None leave it to the scheme's own section, and to the environment.

    `match`: "s3://bucket/*", "s3://team-*", "hf://org/*". Without a star it stands for what it names and all below.
    `credential` names a file of systemd's credentials directory, which stands for `secret_access_key_file` or
    `token_file`.
    """

    match: str
    access_key_id: str = ""
    secret_access_key_file: str = ""
    session_token_file: str = ""
    profile: str = ""
    anonymous: bool | None = None
    requester_pays: bool | None = None
    endpoint: str = ""
    region: str = ""
    addressing: Addressing | None = None
    token_file: str = ""
    credential: str = ""

    @property
    def scheme(self) -> str:
        return self.match.partition("://")[0]


_SHARED = {"match", "credential", "anonymous"}
_OF_HF = {"endpoint", "token_file"} | _SHARED
_OF_S3 = {f for f in Credential.__struct_fields__ if f != "token_file"}


def check_credential(one: Credential) -> None:
    """What types alone cannot say. Raises ValueError."""
    _check_pattern(one.match)
    known = _OF_S3 if one.scheme == "s3" else _OF_HF
    for field in one.__struct_fields__:
        if field not in known and getattr(one, field) not in ("", None):
            raise ValueError(f"{field} does not belong to {one.scheme}://")
    secrets = [f for f in ("secret_access_key_file", "token_file", "credential") if getattr(one, f)]
    if len(secrets) > 1:
        raise ValueError(f"only one of {' and '.join(secrets)} can be the secret")
    if one.scheme == "s3":
        _check_keys(one, bool(secrets))
    elif one.anonymous and secrets:
        raise ValueError(f"anonymous, and {secrets[0]}: only one of them can hold")


def _check_keys(one: Credential, secret: bool) -> None:
    if bool(one.access_key_id) != secret:
        raise ValueError("access_key_id needs secret_access_key_file or credential, and they need it")
    if one.session_token_file and not secret:
        raise ValueError("session_token_file needs access_key_id and its secret")
    ways = [f for f in ("access_key_id", "profile", "anonymous") if getattr(one, f)]
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(ways)}: only one of them can hold")


def _check_pattern(pattern: str) -> None:
    scheme, found, rest = pattern.partition("://")
    if not found or scheme not in SCHEMES or not rest:
        raise ValueError('a pattern is "s3://bucket/*" or "hf://org/*"')
    if "*" in rest[:-1] or "?" in rest or any(ord(c) <= 32 or c == "@" for c in rest):
        raise ValueError('a pattern has one "*", at its end, and neither "?", "@" nor spaces')


def matches(pattern: str, url: str) -> bool:
    """Whether a checked pattern is for that ref, or that file's URL; percent-encoding makes no difference."""
    path = unquote(url.partition("?")[0])
    if pattern.endswith("*"):
        return path.startswith(unquote(pattern[:-1]))
    whole = unquote(pattern).rstrip("/")
    return path == whole or path.startswith((f"{whole}/", f"{whole}@"))


def matching(credentials: Iterable[Credential], url: str) -> Credential | None:
    """The one with the longest pattern that matches; of two that are as long, the first."""
    found = [c for c in credentials if matches(c.match, url)]
    return max(found, key=lambda c: len(c.match.rstrip("*/")), default=None)
