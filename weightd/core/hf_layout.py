"""Where the Hugging Face client keeps a snapshot, and under which names.

`models--org--name/blobs/<etag>`, `snapshots/<commit>/path → ../../blobs/<etag>`, `refs/<revision>` with the commit in
it: huggingface_hub 2.4, file_download.py (repo_folder_name, _create_symlink, _cache_commit_hash_for_specific_revision).
An etag is the SHA-256 of an LFS file, and the git blob id of any other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from weightd.core.digest import git_blob
from weightd.core.errors import InvalidArgument, ManifestError, RefSyntax
from weightd.core.hub_ref import SCHEME, is_commit
from weightd.core.manifest import below_a_file, check_path

_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)
_REPO = re.compile(r"(\b[\w\-.]{1,96}\b/)?\b[\w\-.]{1,96}\b", re.ASCII)
"""REPO_ID_REGEX of huggingface_hub's utils/_validators.py, as are the further rules in `check_repo`."""


class Layout(NamedTuple):
    """Paths are relative to the cache's directory and "/"-separated.

    `blobs`: by place, the etag that names it. `links`: by place, the text of the symlink. `ref`: the file that is to
    hold `commit`, "" where the revision is the commit itself.
    """

    repo: str
    commit: str
    blobs: Mapping[str, str]
    links: Mapping[str, str]
    ref: str

    @property
    def snapshot(self) -> str:
        """The directory of `links`."""
        return f"{self.repo}/snapshots/{self.commit}"


def check_repo(repo: str) -> str:
    """The id of a repository, as it is. Raises RefSyntax."""
    if not _REPO.fullmatch(repo) or "--" in repo or ".." in repo or repo.endswith(".git"):
        raise RefSyntax(f"not the id of a repository: {repo[:200]!r}", remedy="Name it as hf://org/name@revision.")
    return repo


def layout(repo: str, revision: str, commit: str, etags: Mapping[str, str]) -> Layout:
    """Of a snapshot whose files have these `etags`, by path. Raises RefSyntax, InvalidArgument for what is no commit,
    and ManifestError for names that do not stay inside the snapshot."""
    folder = "--".join(("models", *check_repo(repo).split("/")))
    if not is_commit(commit):
        raise InvalidArgument(
            f"its revision is no commit: {commit[:80]!r}",
            ref=f"{SCHEME}{repo}",
            remedy="Fetch it again from the Hub, which names one.",
        )
    blobs: dict[str, str] = {}
    links: dict[str, str] = {}
    for path, etag in etags.items():
        if not _ETAG.fullmatch(etag):
            raise ManifestError(f"neither a SHA-256 nor a git blob id: {etag[:80]!r}", file=path)
        up = "../" * (check_path(path).count("/") + 2)
        blobs[f"{folder}/blobs/{etag}"] = etag
        links[f"{folder}/snapshots/{commit}/{path}"] = f"{up}blobs/{etag}"
    if (below := below_a_file(etags)) is not None:
        raise ManifestError("a file is also a directory of another", file=below)
    ref = "" if revision == commit else f"{folder}/refs/{check_path(revision)}"
    return Layout(folder, commit, blobs, links, ref)


class Etag:
    """Computes the etag of a file of `size` bytes, of the kind that `like` is, from its bytes in order."""

    def __init__(self, size: int, *, lfs: bool) -> None:
        self._hash = hashlib.sha256() if lfs else git_blob(size)
        self.update: Callable[[bytes | memoryview], None] = self._hash.update

    @property
    def text(self) -> str:
        return self._hash.hexdigest()
