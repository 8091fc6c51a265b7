"""Three questions to a Hub: which commit a revision is, which files it has, where one of them is read from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from weightd.core.digest import Digest, parse_digest
from weightd.core.errors import DigestSyntax, ManifestError, RevisionNotFound, SourceUnavailable, WeightdError
from weightd.core.hub_ref import HubRef, is_commit, parse_hub
from weightd.core.manifest import check_path
from weightd.sources import urls
from weightd.sources.asker import Aborted, Asker, Told
from weightd.sources.hub_access import Access
from weightd.sources.hub_errors import Asked, refusal

MAX_FILES: Final = 200_000
_RESOLVED = "/api/resolve-cache/"
_NEXT = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')
_GIT_ID = re.compile(r"[0-9a-f]{40}", re.ASCII)

T = TypeVar("T")


class _Info(msgspec.Struct):
    sha: str
    id: str = ""


class _Lfs(msgspec.Struct):
    oid: str
    size: int


class _Entry(msgspec.Struct):
    type: str
    path: str
    size: int = 0
    oid: str = ""
    lfs: _Lfs | None = None


class _Ref(msgspec.Struct):
    name: str


class _Refs(msgspec.Struct):
    branches: list[_Ref] = []
    tags: list[_Ref] = []


class HubFile(msgspec.Struct, frozen=True):
    """A file of a commit: its SHA-256 where it is in LFS, else the id of its git blob."""

    path: str
    size: int
    digest: Digest | None = None
    git_id: str = ""


class Commit(msgspec.Struct, frozen=True):
    """`repo` is its name now: that of the ref may be an old one."""

    repo: str
    sha: str


@dataclass(slots=True)
class HubApi:
    """Every call blocks, and ends soon once `aborted`. Raises what `refusal` says, and SourceUnavailable."""

    access: Access
    asker: Asker

    def commit(self, ref: HubRef, aborted: Aborted) -> Commit:
        """Of the revision, now. Raises RevisionNotFound, which names those that are like it."""
        asked, headers = self.access.asked(ref.repo)
        revision = quote(ref.revision, safe="")
        told = self.asker.get(f"{asked.endpoint}/api/models/{ref.repo}/revision/{revision}", headers, aborted)
        if told.status != 200:
            error = refusal(told, ref, asked)
            raise self._suggesting(error, ref, aborted) if isinstance(error, RevisionNotFound) else error
        info = _decoded(told, _Info, asked)
        if not is_commit(info.sha) or (ref.pinned and info.sha != ref.revision):
            raise SourceUnavailable(
                f"{asked.endpoint} names no commit of {ref.repo}, or another", remedy="Check the endpoint."
            )
        name = _renamed(info.id, ref.repo)
        # What another Hub has, with a token of its own, is not this one's to name.
        return Commit(name if self.access.endpoint(name) == asked.endpoint else ref.repo, info.sha)

    def files(self, commit: Commit, aborted: Aborted) -> list[HubFile]:
        """Of a commit, all. Raises ManifestError for a list that lies."""
        ref = HubRef(commit.repo, commit.sha)
        asked, headers = self.access.asked(commit.repo)
        url = f"{asked.endpoint}/api/models/{commit.repo}/tree/{commit.sha}?recursive=true&expand=false"
        found: list[HubFile] = []
        seen: set[str] = set()
        while url:
            if url in seen:
                raise ManifestError(f"{asked.endpoint} lists {commit.repo} in a circle")
            seen.add(url)
            told = self.asker.get(url, headers, aborted)
            if told.status != 200:
                raise refusal(told, ref, asked)
            found.extend(_file(e) for e in _decoded(told, list[_Entry], asked) if e.type == "file")
            if len(found) > MAX_FILES:
                raise ManifestError(f"{commit.repo} has more than {MAX_FILES} files")
            url = _next(told, url, asked)
        return found

    def location(self, ref: HubRef, aborted: Aborted) -> tuple[Told, Mapping[str, str]]:
        """Where a file of a commit is read from now: the answer to a request for its first byte, and the headers that
        go with it to where it leads. A plain file is at another address of the Hub, which costs no quota."""
        asked, headers = self.access.asked(ref.repo)
        url = f"{asked.endpoint}/{ref.repo}/resolve/{ref.revision}/{quote(ref.path)}"
        asking = {**headers, "Range": "bytes=0-0"}
        told = self.asker.get(url, asking, aborted, body=False, until=lambda led: _RESOLVED in led)
        if not told.leads and told.status not in (200, 206, 416):
            raise refusal(told, ref, asked)
        same = urls.target(told.leads or told.url).origin == urls.target(url).origin
        return told, headers if same else {}

    def _suggesting(self, error: RevisionNotFound, ref: HubRef, aborted: Aborted) -> WeightdError:
        asked, headers = self.access.asked(ref.repo)
        try:
            told = self.asker.get(f"{asked.endpoint}/api/models/{ref.repo}/refs", headers, aborted)
            refs = _decoded(told, _Refs, asked) if told.status == 200 else _Refs()
        except WeightdError:
            return error  # What is wrong is known; what might be meant is not.
        names = [r.name for r in (*refs.branches, *refs.tags)]
        near = difflib.get_close_matches(ref.revision, names, n=3, cutoff=0.5) or names[:5]
        if near:
            error.remedy = f"There are {', '.join(near)}{' and others' if len(names) > len(near) else ''}."
        return error


def _decoded(told: Told, kind: type[T], asked: Asked) -> T:
    try:
        return msgspec.json.decode(told.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SourceUnavailable(
            f"{asked.endpoint} answers something that is no Hub's",
            remedy="Check that hf.endpoint or HF_ENDPOINT is a Hugging Face Hub or a mirror of one.",
        ) from None


def _renamed(said: str, asked: str) -> str:
    """The repository's name as the Hub has it, if that is one."""
    if not said or said == asked:
        return asked
    try:
        return parse_hub(f"hf://{said}@x").repo
    except WeightdError:
        return asked


def _file(entry: _Entry) -> HubFile:
    check_path(entry.path)
    if entry.lfs is None:
        if _GIT_ID.fullmatch(entry.oid) is None:
            raise ManifestError("the list names no git blob", file=entry.path)
        return HubFile(entry.path, entry.size, git_id=entry.oid)
    try:
        digest = parse_digest(entry.lfs.oid)
    except DigestSyntax:
        raise ManifestError("the list names no SHA-256 of an LFS file", file=entry.path) from None
    return HubFile(entry.path, entry.lfs.size, digest)


def _next(told: Told, url: str, asked: Asked) -> str:
    """The following page, at the endpoint itself, whatever host the answer names: a mirror may name the Hub's."""
    found = _NEXT.search(told.headers.get("link", ""))
    if found is None:
        return ""
    try:
        parts = urlsplit(urls.encode(urljoin(url, found[1])))
    except (ValueError, WeightdError):
        raise ManifestError(
            f"{asked.endpoint} names no address of the next page of its list", remedy="The Hub has to mend this."
        ) from None
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    base = urls.target(asked.endpoint)
    prefix = base.path.rstrip("/")
    return f"{base.origin.scheme}://{base.origin.header}{path if path.startswith(prefix + '/') else prefix + path}"
