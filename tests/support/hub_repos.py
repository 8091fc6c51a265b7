"""Repositories as the Hub keeps them: commits, refs, and files with their git and LFS identities.

    repo = Repo("org/name")
    first = repo.commit({"config.json": b"{}", "model.safetensors": DATA})     # on main; the rest of main stays
    repo.commit(Path("snapshot"), branch="fp16")                               # the files of a directory
    repo.commit({"config.json": None})                                         # removes it
    repo.tag("v1", first)

A git blob's id is sha1(b"blob <size>\\0" + bytes). An LFS file is a pointer in git, whose blob id is that of the
pointer's bytes, and the sha256 of its own bytes is its `oid`.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.origin import File

_LFS_ENDINGS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".zip", ".tar", ".gz")
_LFS_FROM = 10 << 20
"""The Hub takes no larger file outside of LFS."""
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_MODIFIED = "Wed, 21 Oct 2015 07:28:00 GMT"
_DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class HubFile:
    """One file of a commit. `content.etag` is what the CDN says of it: 64 digits that are not the sha256."""

    content: File
    sha1: str
    """Of the blob in git: the pointer of an LFS file."""
    sha256: str | None
    """Of an LFS file."""
    pointer_size: int = 0
    xet: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.sha1

    def entry(self, path: str, expand: bool = False) -> dict[str, Any]:
        """As the tree lists it."""
        said: dict[str, Any] = {"type": "file", "oid": self.sha1, "size": self.content.size, "path": path}
        if self.sha256 is not None:
            said["lfs"] = {"oid": self.sha256, "size": self.content.size, "pointerSize": self.pointer_size}
        if self.xet is not None:
            said["xetHash"] = self.xet
        return said | (_expanded(self.sha1) if expand else {})

    def sibling(self, path: str) -> dict[str, Any]:
        """As a model's info lists it with `blobs`."""
        said: dict[str, Any] = {"rfilename": path, "size": self.content.size, "blobId": self.sha1}
        if self.sha256 is not None:
            said["lfs"] = {"sha256": self.sha256, "size": self.content.size, "pointerSize": self.pointer_size}
        return said


def file_of(data: bytes | Path, *, lfs: bool, xet: str | None = None) -> HubFile:
    """Identities computed from the bytes, a path's read in pieces."""
    sha256, size = hashlib.sha256(), 0
    size = data.stat().st_size if isinstance(data, Path) else len(data)
    sha1 = hashlib.sha1(b"blob %d\0" % size)
    for piece in _pieces(data):
        sha256.update(piece)
        sha1.update(piece)
    at_cdn = f'"{hashlib.sha256(b"cdn" + sha256.digest()).hexdigest()}"'
    here = {"path": data} if isinstance(data, Path) else {"data": data}
    if not lfs:
        return HubFile(File(size, f'"{sha1.hexdigest()}"', _MODIFIED, **here), sha1.hexdigest(), None, xet=xet)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
        sha256.hexdigest().encode(),
        size,
    )
    content = File(size, at_cdn, _MODIFIED, **here)
    return HubFile(content, blob_id(pointer), sha256.hexdigest(), len(pointer), xet)


def blob_id(data: bytes) -> str:
    """Of a blob in git."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Commit:
    """An immutable set of files. `extra`: raw entries that the lists hold besides, for lists that lie."""

    sha: str
    title: str
    files: Mapping[str, HubFile]
    extra: tuple[dict[str, Any], ...] = ()

    def tree(self, under: str = "", recursive: bool = False, expand: bool = False) -> list[dict[str, Any]] | None:
        """Directories and files below `under`, in order; None where there is none."""
        start = f"{under}/" if under else ""
        found: dict[str, dict[str, Any]] = {}
        for path, file in self.files.items():
            if not path.startswith(start):
                continue
            parts = path[len(start) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                folder = start + "/".join(parts[:depth])
                oid = hashlib.sha1(f"{self.sha}/{folder}".encode()).hexdigest()
                said = {"type": "directory", "oid": oid, "size": 0, "path": folder}
                found[folder] = said | (_expanded(oid) if expand else {})
            if recursive or len(parts) == 1:
                found[path] = file.entry(path, expand)
        if not found and under:
            return None
        return [found[path] for path in sorted(found)] + ([] if under else list(self.extra))


@dataclass
class Repo:
    """A model repository. What it allows to whom is plain attributes, read at each request."""

    id: str
    private: bool = False
    gated: str = ""
    """ "auto" or "manual": only `readers` may fetch files; lists are open to all unless `gated_lists`."""
    gated_lists: bool = False
    readers: set[str] = field(default_factory=set)
    """Users for whom it is neither private nor gated."""
    disabled: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    """Full names, as refs/heads/main, refs/tags/v1, refs/pr/1, to commits."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def commit(
        self,
        files: Mapping[str, bytes | Path | HubFile | None] | Path,
        *,
        branch: str = "main",
        lfs: set[str] | None = None,
        xet: Mapping[str, str] | None = None,
        extra: tuple[dict[str, Any], ...] = (),
        title: str = "Upload files",
    ) -> str:
        """Its id. `files` go on top of the branch's, a None removes one; names are taken as they are. `lfs` names the
        LFS files, by default those with a binary's ending and those over 10 MB; `xet` their Xet hashes."""
        made: dict[str, HubFile | None] = {}
        for path, data in _walked(files).items():
            if data is None or isinstance(data, HubFile):
                made[path] = data
            else:
                large = (data.stat().st_size if isinstance(data, Path) else len(data)) > _LFS_FROM
                in_lfs = path in lfs if lfs is not None else path.endswith(_LFS_ENDINGS) or large
                made[path] = file_of(data, lfs=in_lfs, xet=(xet or {}).get(path))
        name = branch if branch.startswith("refs/") else f"refs/heads/{branch}"
        with self.lock:
            parent = self.commits.get(self.refs.get(name, ""))
            kept = {path: file for path, file in ((parent.files if parent else {}) | made).items() if file is not None}
            told = [f"{path}\0{file.etag}" for path, file in sorted(kept.items())]
            sha = hashlib.sha1(f"{self.id}{len(self.commits)}{self.refs.get(name)}{told}".encode()).hexdigest()
            self.commits[sha] = Commit(sha, title, kept, extra)
            self.refs[name] = sha
        return sha

    def tag(self, name: str, commit: str) -> None:
        with self.lock:
            self.refs[f"refs/tags/{name}"] = commit

    def branch(self, name: str, commit: str) -> None:
        """Make it, or move it."""
        with self.lock:
            self.refs[f"refs/heads/{name}"] = commit

    def find(self, revision: str) -> Commit | None:
        """Of a branch, a tag, refs/pr/N, a commit's id or the first 7 digits or more of it."""
        with self.lock:
            for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
                if name in self.refs:
                    return self.commits[self.refs[name]]
            if _COMMIT.fullmatch(revision):
                return next((found for sha, found in self.commits.items() if sha.startswith(revision)), None)
            return None

    def ref_lists(self, pull_requests: bool) -> dict[str, Any]:
        """As /refs answers."""
        kinds = {"branches": "refs/heads/", "tags": "refs/tags/"} | (
            {"pullRequests": "refs/pr/"} if pull_requests else {}
        )
        with self.lock:
            said: dict[str, Any] = {
                kind: [
                    {"name": name.removeprefix(start), "ref": name, "targetCommit": sha}
                    for name, sha in self.refs.items()
                    if name.startswith(start)
                ]
                for kind, start in kinds.items()
            }
        return said | {"converts": []}

    def info(self, commit: Commit, blobs: bool) -> dict[str, Any]:
        """As /api/models answers."""
        siblings = [file.sibling(path) if blobs else {"rfilename": path} for path, file in sorted(commit.files.items())]
        siblings += [{"rfilename": entry["path"]} for entry in commit.extra]
        about = {"private": self.private, "gated": self.gated or False, "disabled": self.disabled}
        dates = {"lastModified": _DATE, "createdAt": _DATE}
        return about | dates | {"id": self.id, "modelId": self.id, "sha": commit.sha, "siblings": siblings, "tags": []}


def _walked(
    files: Mapping[str, bytes | Path | HubFile | None] | Path,
) -> Mapping[str, bytes | Path | HubFile | None]:
    if not isinstance(files, Path):
        return files
    return {str(path.relative_to(files)): path for path in sorted(files.rglob("*")) if path.is_file()}


def _pieces(data: bytes | Path) -> Any:
    if not isinstance(data, Path):
        yield data
        return
    with data.open("rb") as stream:
        while piece := stream.read(1 << 20):
            yield piece


def _expanded(oid: str) -> dict[str, Any]:
    security = {"status": "safe", "avScan": {"status": "safe"}, "pickleImportScan": None}
    return {
        "lastCommit": {"id": oid, "title": "Upload files", "date": _DATE},
        "securityFileStatus": security,
    }
