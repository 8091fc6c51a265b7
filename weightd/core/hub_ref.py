"""`hf://org/name@revision/path?include=…&exclude=…`: what of a Hugging Face Hub a ref names.

The grammar is that of huggingface_hub (utils/_hf_uris.py), with the patterns that choose files beside it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import quote, unquote, urlencode

from weightd.core.errors import RefSyntax

DEFAULT_REVISION: Final = "main"
SCHEME: Final = "hf://"
_WRITE = "Write hf://org/name, hf://org/name@revision or hf://org/name@revision/path."
_COMPONENT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?", re.ASCII)
_LONGEST_REPO = 96
_SPECIAL = re.compile(r"(refs/(?:convert/[\w.-]+|pr/\d+))(?:/|$)", re.ASCII)
"""Revisions that may stand as they are although they have a "/": as HfFileSystem reads them."""
_REVISION = re.compile(r"[^\x00-\x20\x7f~^:?*\[\\]{1,255}")
"""What git allows in the name of a ref, roughly (git check-ref-format)."""
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_OTHER_KINDS = ("datasets", "spaces", "kernels", "buckets")
_TOKEN = re.compile(r"hf_\w{16,}", re.ASCII)


class HubRef(NamedTuple):
    """`repo` is "org/name", or a name alone, as the oldest models have. `revision` is a branch, tag, commit or ref, as
    it is, not quoted. `path` is "" for the whole repository."""

    repo: str
    revision: str = DEFAULT_REVISION
    path: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """As `parse_hub` reads it, everything quoted. The identity of a file where the revision is a commit."""
        path = f"/{quote(self.path)}" if self.path else ""
        pairs = [*(("include", p) for p in self.include), *(("exclude", p) for p in self.exclude)]
        query = f"?{urlencode(pairs, quote_via=quote)}" if pairs else ""
        return f"{SCHEME}{self.repo}@{quote(self.revision, safe='')}{path}{query}"

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit's whole id, which never comes to mean something else."""
        return is_commit(self.revision)


def is_commit(revision: str) -> bool:
    """A commit's whole id."""
    return _COMMIT.fullmatch(revision) is not None


def parse_hub(text: str) -> HubRef:
    """Raises RefSyntax, whose text repeats nothing that may be a secret."""
    if text[: len(SCHEME)].lower() != SCHEME:
        raise RefSyntax("not a hf:// ref", remedy=_WRITE)
    if "#" in text:
        raise RefSyntax("a ref has no fragment", remedy="Drop the part after '#', or write '#' in a name as %23.")
    address, _, query = text[len(SCHEME) :].partition("?")
    parts = address.split("/")
    if parts[0] == "models":
        parts = parts[1:] or [""]
    elif parts[0] in _OTHER_KINDS:
        raise RefSyntax(
            f"hf://{parts[0]}/ names no model: only models are fetched", remedy="Write hf://org/name of a model."
        )
    length = 1 if "@" in parts[0] or len(parts) == 1 or parts[1:] == [""] else 2
    head, rest = "/".join(parts[:length]), "/".join(parts[length:])
    repo, at, revision = head.partition("@")
    if at:
        revision, rest = _revision(revision, rest)
    include, exclude = _patterns(query)
    return HubRef(_repo(repo), revision if at else DEFAULT_REVISION, unquote(rest), include, exclude)


def _revision(revision: str, rest: str) -> tuple[str, str]:
    """The revision, and what of `rest` is the path."""
    whole = f"{revision}/{rest}" if rest else revision
    if special := _SPECIAL.match(whole):
        return special[1], whole[special.end() :]
    revision = unquote(revision)
    if _REVISION.fullmatch(revision) is None or ".." in revision or revision[0] == "/" or revision[-1] == "/":
        raise RefSyntax(
            "the revision cannot be that of a branch, tag or commit", remedy="Check what follows '@'; write '/' as %2F."
        )
    return revision, rest


def _repo(repo: str) -> str:
    parts = repo.split("/")
    sound = all(_COMPONENT.fullmatch(part) and "--" not in part and ".." not in part for part in parts)
    if not sound or len(repo) > _LONGEST_REPO or repo.endswith(".git"):
        raise RefSyntax("not the name of a repository", remedy=_WRITE)
    if any(_TOKEN.match(part) for part in parts):
        raise RefSyntax(
            "a token stands where a repository should", remedy="Put tokens into HF_TOKEN or a file, never into refs."
        )
    return repo


def _patterns(query: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    # Not `parse_qsl`, which would make a space of a "+".
    said = [pair.partition("=") for pair in query.split("&")] if query else []
    pairs = [(name, unquote(value)) for name, _, value in said]
    for name, value in pairs:
        if name not in ("include", "exclude") or not value:
            raise RefSyntax(
                f"{name[:40]!r} after '?' says nothing",
                remedy="Write ?include=*.gguf&exclude=*.bin, as often as needed.",
            )
    return tuple(v for n, v in pairs if n == "include"), tuple(v for n, v in pairs if n == "exclude")
