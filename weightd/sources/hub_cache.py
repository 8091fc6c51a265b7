"""The Hugging Face cache of this host: files that need not come over the network, and all there is without one.

Its layout is huggingface_hub's (file_download.py): `models--org--name/{refs/<revision>, snapshots/<commit>/<path>,
blobs/<etag>}`, where a snapshot's files are links to blobs, whose names are SHA-256 or git ids. Since 1.22 it has the
list of a commit's files beside them, `trees/<commit>.json` (_tree_cache.py): without it nobody can tell whether a
snapshot is whole. It trusts names; what is read here is compared with them. Every call blocks.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from weightd.core.digest import hex_of, parse_digest
from weightd.core.errors import DigestSyntax, NotInCache, WeightdError
from weightd.core.hub_ref import HubRef, is_commit
from weightd.core.manifest import check_path
from weightd.core.selection import format_of
from weightd.sources.hub_api import Commit, HubFile

log = logging.getLogger("weightd.sources")

_SHARD = re.compile(r"(?P<before>.*-)\d{5}-of-(?P<count>\d{5})(?P<after>\.\w+)", re.ASCII)
_MOST_SHARDS = 10_000
_GIT_ID = re.compile(r"[0-9a-f]{40}", re.ASCII)
ALLOW = "Allow the network: unset HF_HUB_OFFLINE, or set hf.offline = false."
_REMEDY = f"Fetch it once with the network (hf download). {ALLOW}"


class _Entry(msgspec.Struct):
    size: int
    blob_id: str
    lfs_sha256: str | None = None
    lfs_size: int | None = None


class _Tree(msgspec.Struct):
    format_version: int
    files: dict[str, _Entry]


class HubCache:
    """Below `root`, which need not be there. Links that lead out of it are no files of it."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def find(self, commit: Commit, file: HubFile) -> Path | None:
        """Where a file of a commit is, as far as its name and size tell."""
        repo = self._of(commit.repo)
        name = hex_of(file.digest) if file.digest is not None else file.git_id
        places = [repo / "blobs" / name] if name else []
        for path in (*places, repo / "snapshots" / commit.sha / file.path):
            try:
                found = path.stat()
            except (OSError, ValueError):
                continue
            if stat.S_ISREG(found.st_mode) and found.st_size == file.size and os.access(path, os.R_OK):
                return path
        return None

    def commit(self, ref: HubRef) -> Commit:
        """What the revision was when it was last asked for. Raises NotInCache."""
        repo = self._of(ref.repo)
        if not (repo / "snapshots").is_dir():
            raise NotInCache(f"{ref.repo} is not in the Hugging Face cache {self.root}", remedy=_REMEDY)
        sha = ref.revision if ref.pinned else self._told(repo, ref.revision)
        if not is_commit(sha) or not (repo / "snapshots" / sha).is_dir():
            near = difflib.get_close_matches(ref.revision, self._revisions(repo), n=3, cutoff=0.5)
            others = f" It has {', '.join(near)}." if near else ""
            raise NotInCache(
                f"{ref.repo} at {ref.revision!r} is not in the Hugging Face cache {self.root}", remedy=_REMEDY + others
            )
        return Commit(ref.repo, sha)

    def files(self, commit: Commit) -> list[HubFile]:
        """All of a commit where its list is here, else what is here of it. Raises ManifestError, NotInCache."""
        if (listed := _listed(self._of(commit.repo) / "trees" / f"{commit.sha}.json")) is not None:
            return listed
        root = self._of(commit.repo) / "snapshots" / commit.sha
        try:
            inside = self.root.resolve()
            there = [p for p in _walked(root) if (root / p).resolve().is_relative_to(inside)]
            return [self._file(root, path) for path in there]
        except OSError as e:
            raise NotInCache(f"{root} cannot be read: {e.strerror}", remedy="Check its rights.") from None

    def present(self, commit: Commit, files: Sequence[HubFile], *, whole: bool) -> list[HubFile]:
        """Those of `files` that are here. Whoever filled the cache may have left out what no loader needs, so a README
        may be missing, and weights may not: for `whole`, nor may shards that nobody listed. Raises NotInCache."""
        here = [f for f in files if f.size == 0 or self.find(commit, f) is not None]
        listed, found = {f.path for f in files}, {f.path for f in here}
        wanted = {shard for f in files for shard in _shards(f.path)} | listed if whole else listed
        missing = sorted(wanted - found)
        weights = [path for path in missing if format_of(path)]
        if weights or (missing and not found):
            first = (weights or missing)[0]
            text = f"{first} of {commit.repo} at {commit.sha[:12]} is not in the Hugging Face cache {self.root}"
            raise NotInCache(text, file=first, remedy=_REMEDY)
        if missing:
            log.info("%s at %s: not in the cache: %s", commit.repo, commit.sha[:12], ", ".join(missing[:20]))
        return here

    def _file(self, root: Path, path: str) -> HubFile:
        check_path(path)
        size = (root / path).stat().st_size
        name = (root / path).resolve().name
        if (root / path).is_symlink():
            if _GIT_ID.fullmatch(name):
                return HubFile(path, size, git_id=name)
            try:
                return HubFile(path, size, parse_digest(name))
            except DigestSyntax:
                pass
        return HubFile(path, size)

    def _told(self, repo: Path, revision: str) -> str:
        """What stands for a branch or tag; a short commit stands for the one that begins with it."""
        try:
            check_path(revision)
            return (repo / "refs" / revision).read_text("ascii").strip()
        except (OSError, ValueError, WeightdError):
            pass
        begins = [p.name for p in (repo / "snapshots").iterdir() if p.name.startswith(revision)]
        return begins[0] if len(begins) == 1 and len(revision) >= 7 else ""

    @staticmethod
    def _revisions(repo: Path) -> list[str]:
        refs = repo / "refs"
        return [str(p.relative_to(refs)) for p in refs.rglob("*") if p.is_file()] if refs.is_dir() else []

    def _of(self, name: str) -> Path:
        return self.root / "--".join(("models", *name.split("/")))


def _shards(path: str) -> list[str]:
    """All of those that a file calls itself one of."""
    match = _SHARD.fullmatch(path)
    count = int(match["count"]) if match else 0
    if match is None or count > _MOST_SHARDS:
        return []
    return [match.expand(rf"\g<before>{i:05}-of-\g<count>\g<after>") for i in range(1, count + 1)]


def _listed(path: Path) -> list[HubFile] | None:
    """None for what is not there, or of another version: as the client, which lists anew then."""
    try:
        tree = msgspec.json.decode(path.read_bytes(), type=_Tree)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if tree.format_version != 1 or not tree.files:
        return None
    return [_of_tree(check_path(name), found) for name, found in tree.files.items()]


def _of_tree(path: str, found: _Entry) -> HubFile:
    if found.lfs_sha256 is None:
        return HubFile(path, found.size, git_id=found.blob_id)
    size = found.size if found.lfs_size is None else found.lfs_size
    return HubFile(path, size, parse_digest(found.lfs_sha256))


def _walked(root: Path) -> Iterator[str]:
    """Files below, links to directories not followed."""
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file():
                yield path.relative_to(root).as_posix()
