"""A snapshot as data: which files, how large, with which digest, from where."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import msgspec

from weightd.core.crc import Crc, CrcAlgorithm
from weightd.core.digest import Digest
from weightd.core.errors import DigestMismatch, InvalidArgument, ManifestError

MAX_PATH = 1024
MAX_NAME = 255


class Validator(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the source calls this version of a file; compared on every answer."""

    etag: str = ""
    last_modified: str = ""


class FileSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file of a snapshot, pinned.

    `url` may hold credentials: it never leaves the daemon (see `weightd.core.refs.redact`). `ranges` says that the
    source answered a ranged request with 206. `digest` is the expected one where somebody gave it, the user or the
    source; `crc` is that of the whole file where the source gave one, `git_id` that of its git blob (40 hex digits).
    `stored_part`: bytes of each piece, but the last, in which the source keeps it, which are read best as they are; 0
    where that is not known.
    """

    path: str
    size: int
    url: str
    digest: Digest | None = None
    validator: Validator = Validator()
    ranges: bool = True
    crc: Crc | None = None
    git_id: str = ""
    stored_part: int = 0

    @property
    def crc_algorithm(self) -> CrcAlgorithm | None:
        """Which CRC is to be computed of its bytes: none where the digest is known."""
        return self.crc.algorithm if self.crc is not None and self.digest is None else None

    @property
    def by_git_id(self) -> bool:
        """Whether its git blob's id is to be computed: not where the digest is known."""
        return self.git_id != "" and self.digest is None

    @property
    def by_parts(self) -> bool:
        """Whether it may be put together from several answers: those of a file that nothing names could be of several
        versions, and nobody would know. Such a file comes as one stream."""
        return self.ranges and bool(self.source_key)

    @property
    def source_key(self) -> str:
        """Identity of this version at its source; two files with one key have the same bytes.

        Empty when the source names no version: then only the digest can tell.
        """
        if self.digest is not None:
            return self.digest
        if self.git_id:
            # Two files with one SHA-1 can be made: what one repository says of its files counts for no other.
            text = "\0".join((self.url.partition("@")[0], str(self.size), self.git_id))
            return "git:" + hashlib.sha256(text.encode()).hexdigest()
        if not self.validator.etag and not self.validator.last_modified:
            return ""
        text = "\0".join((self.url, str(self.size), self.validator.etag, self.validator.last_modified))
        return "source:" + hashlib.sha256(text.encode()).hexdigest()


class Manifest(msgspec.Struct, frozen=True):
    """`ref` is the user's, `format` is "safetensors" or "raw". Construct with `make_manifest`, which checks."""

    ref: str
    revision: str
    format: str
    files: tuple[FileSpec, ...]

    @property
    def size(self) -> int:
        """Bytes over all files."""
        return sum(f.size for f in self.files)


def check_path(path: str) -> str:
    """A file name from outside, returned as it is when it stays inside the model's directory. Raises ManifestError.

    Relative, "/"-separated, no empty, "." or ".." part, no NUL, control character or backslash, no part over 255
    bytes, and nothing that begins with ".weightd", which are our own temporary names.
    """
    reason = _path_fault(path)
    if reason:
        raise ManifestError(
            f"a file name in the manifest {reason}: {path[:200]!r}",
            remedy="Names must be relative and stay inside the model's directory; mend the index or models.json.",
        )
    return path


def _path_fault(path: str) -> str:
    if not path:
        return "is empty"
    if path.startswith("/"):
        return "is absolute"
    parts = path.split("/")
    if ".." in parts:
        return "climbs out of its directory"
    if any(p in ("", ".") for p in parts):
        return "has an empty or '.' part"
    if "\\" in path or any(ord(c) < 32 or ord(c) == 127 for c in path):
        return "has a control character or backslash"
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if len(raw) > MAX_PATH or any(len(p.encode()) > MAX_NAME for p in parts):
        return "is too long"
    if any(p.startswith(".weightd") for p in parts):
        return "uses a reserved name"
    return ""


def below_a_file(paths: Collection[str]) -> str | None:
    """One that lies below another of them, which cannot be a file and its directory; None where none does."""
    for path in paths:
        parents = path.split("/")[:-1]
        if any("/".join(parents[: i + 1]) in paths for i in range(len(parents))):
            return path
    return None


def make_manifest(ref: str, format: str, files: list[FileSpec], revision: str = "") -> Manifest:
    """Checks names, duplicates and sizes, sorts by path. `revision` is the source's own name of this set of files where
    it has one, a commit; else one is derived. Raises ManifestError."""
    if not files:
        raise ManifestError("no files", ref=ref)
    seen: set[str] = set()
    for file in files:
        check_path(file.path)
        if file.size < 0:
            raise ManifestError("a negative size", ref=ref, file=file.path)
        if file.path in seen:
            raise ManifestError("a file is listed twice", ref=ref, file=file.path)
        seen.add(file.path)
    if (below := below_a_file(seen)) is not None:
        raise ManifestError("a file is also a directory of another", ref=ref, file=below)
    ordered = tuple(sorted(files, key=lambda f: f.path))
    return Manifest(ref=ref, revision=revision or _revision(ordered), format=format, files=ordered)


def _revision(files: tuple[FileSpec, ...]) -> str:
    text = hashlib.sha256()
    for f in files:
        identity = f.source_key or f"{f.url}\0{f.size}"
        text.update(f"{f.path}\0{f.size}\0{identity}\n".encode())
    return text.hexdigest()[:16]


def told_apart(manifest: Manifest, digests: Mapping[str, Digest]) -> Manifest:
    """The same with a revision that the files' bytes are part of, by path: for a version of a ref that its origin calls
    by the name of another."""
    text = "".join(f"{path}\0{digest}\n" for path, digest in sorted(digests.items()))
    revision = hashlib.sha256(f"{manifest.revision}\n{text}".encode()).hexdigest()[:16]
    return msgspec.structs.replace(manifest, revision=revision)


def agreed_digest(given: Digest | None, stated: Digest | None, path: str) -> Digest | None:
    """The expected digest, from the user's and the source's. Raises DigestMismatch where they differ: what would come
    is not what is wanted, and need not come first."""
    if given is not None and stated is not None and given != stated:
        raise DigestMismatch(
            f"the origin says that its SHA-256 is {stated}, expected {given}",
            file=path,
            remedy="The origin serves other bytes than were named: correct the digest or the origin.",
        )
    return given or stated


def with_digest(manifest: Manifest, sha256: Digest | None) -> Manifest:
    """The caller's digest added to a model of one file. Raises InvalidArgument for any other model."""
    if sha256 is None:
        return manifest
    if len(manifest.files) != 1:
        raise InvalidArgument(
            f"a SHA-256 was given for a model of {len(manifest.files)} files",
            ref=manifest.ref,
            remedy="Give the digests of several files in a models.json.",
        )
    file = manifest.files[0]
    if file.digest not in (None, sha256):
        raise InvalidArgument(
            "the given SHA-256 is not the one that the configuration or the origin names",
            file=file.path,
            remedy="Correct one of the two.",
        )
    return make_manifest(manifest.ref, manifest.format, [msgspec.structs.replace(file, digest=sha256)])
