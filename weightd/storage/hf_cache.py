"""A snapshot in a Hugging Face cache, made of links to what this host holds already.

Everything that stands in the way is found before anything is made. Then come the blobs, each at once whole; then the
snapshot, a new one by one rename; the ref last: a client sees nothing of a run that was interrupted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from weightd.core.errors import AccessDenied, NotFound, PathInTheWay
from weightd.core.hf_layout import Etag, Layout
from weightd.storage.direct import disk_errors, fsync_directory

TAG = "CACHEDIR.TAG"
TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This file is a cache directory tag created by weightd.\n"
    "# For information about cache directory tags, see:\n"
    "#\thttps://bford.info/cachedir/\n"
)
_STAGING = ".weightd-"
_NO_HARD_LINK = (
    errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOENT,
)  # fmt: skip
"""Another file system, fs.protected_hardlinks, too many of them, none here, or the blob has just gone from disk."""
_PIECE = 1 << 20


@dataclass(frozen=True)
class Held:
    """A file that this host holds. `path` resolves for as long as the model is held; `blob`, where it is known, is the
    regular file on disk that a hard link may be made to."""

    size: int
    path: Path
    blob: Path | None = None


@dataclass
class Linked:
    """What one run made: `kept` blobs were there already. `snapshot` is the directory."""

    snapshot: Path
    hard: int = 0
    symbolic: int = 0
    kept: int = 0


def etag_of(path: Path, *, lfs: bool) -> str:
    """From the file's bytes. Raises NotFound or AccessDenied."""
    with _readable(path), path.open("rb", buffering=0) as stream:
        etag = Etag(os.fstat(stream.fileno()).st_size, lfs=lfs)
        while piece := stream.read(_PIECE):
            etag.update(piece)
    return etag.text


def link_snapshot(root: Path, layout: Layout, held: Mapping[str, Held]) -> Linked:
    """Make `layout` below `root`, each blob a link to the file `held` under its etag: a hard link where the system
    allows one, else a symlink. Idempotent; runs on one repository take turns.

    Raises PathInTheWay for a file that is there and has other bytes, NotFound, AccessDenied, DiskFull.
    """
    root = root.absolute()
    for file in held.values():
        _check_held(file)
    repo = root / layout.repo
    with _in_the_way(), disk_errors(root):
        for directory in ("snapshots", "blobs"):
            (repo / directory).mkdir(parents=True, exist_ok=True)
        with _staging(repo) as staging:
            _check_directories(root, layout)
            blobs = {place: _standing(root / place, etag, held[etag]) for place, etag in layout.blobs.items()}
            missing = [place for place, text in layout.links.items() if not _leads(root / place, text, held)]
            made = Linked(root / layout.snapshot, kept=sum(blobs.values()))
            _tag(root)
            for place, there in blobs.items():
                if not there:
                    _link_blob(root / place, layout.blobs[place], held, staging, made)
            fsync_directory(repo / "blobs")
            _make_snapshot(root, layout, missing, staging)
            _write_ref(root, layout, staging)
    return made


def _check_held(held: Held) -> None:
    there = [path for path in (held.path, held.blob) if path is not None and _exists(path)]
    if not there:
        raise _gone(held.path)
    if not any(os.access(path, os.R_OK) for path in there):
        raise _denied(there[0])


def _check_directories(root: Path, layout: Layout) -> None:
    """What is to hold something is a directory or not there yet, and the ref is none."""
    places = [*layout.links, layout.ref] if layout.ref else [*layout.links]
    for parent in sorted({parent for place in places for parent in PurePosixPath(place).parents}):
        path = root / parent
        if os.path.lexists(path) and not path.is_dir():
            raise PathInTheWay(f"{path} is not a directory", remedy="Move what stands there away.")
    if layout.ref and (root / layout.ref).is_dir():
        raise PathInTheWay(f"{root / layout.ref} is a directory", remedy="Move it away.")


def _standing(place: Path, etag: str, held: Held) -> bool:
    """Whether the file is there, with the bytes that `etag` says; False too for a symlink that leads nowhere."""
    try:
        found = place.stat()
    except FileNotFoundError:
        return False
    if stat.S_ISREG(found.st_mode) and (
        _same(place, held) or (found.st_size == held.size and etag_of(place, lfs=len(etag) == 64) == etag)
    ):
        return True
    raise PathInTheWay(
        f"{place} is there and is not the file whose name it has", remedy="Remove it: a loader would take it for that."
    )


def _same(place: Path, held: Held) -> bool:
    known = [path for path in (held.blob, held.path) if path is not None and _exists(path)]
    return any(place.samefile(path) for path in known)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # Of a directory above it.
        return False


def _leads(link: Path, text: str, held: Mapping[str, Held]) -> bool:
    """Whether this name of the snapshot is there already. Some systems have files in place of the links."""
    if link.is_symlink() and os.readlink(link) == text:
        return True
    etag = PurePosixPath(text).name
    return _standing(link, etag, held[etag])


def _link_blob(place: Path, etag: str, held: Mapping[str, Held], staging: Path, made: Linked) -> None:
    """Never over a file that has come in the meantime; a symlink that leads nowhere is replaced."""
    try:
        hard = _link_to(held[etag], place)
    except FileExistsError:
        if _standing(place, etag, held[etag]):
            made.kept += 1
            return
        fresh = staging / etag
        hard = _link_to(held[etag], fresh)
        fresh.replace(place)
    made.hard += hard
    made.symbolic += not hard


def _link_to(held: Held, place: Path) -> bool:
    """Whether it is a hard link. link(2) and symlink(2) make whole entries."""
    if held.blob is not None and _hard_link(held.blob, place):
        return True
    if not os.access(held.path, os.R_OK):
        raise _denied(held.path)
    place.symlink_to(held.path)
    return False


def _hard_link(blob: Path, fresh: Path) -> bool:
    try:
        os.link(blob, fresh, follow_symlinks=False)
    except OSError as e:
        if e.errno in _NO_HARD_LINK:
            return False
        raise
    return True


def _make_snapshot(root: Path, layout: Layout, missing: list[str], staging: Path) -> None:
    """A new directory appears whole; one that is there gets what it lacks, name by name."""
    snapshot = root / layout.snapshot
    if snapshot.is_dir():
        for place in missing:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            fresh = staging / secrets.token_hex(6)
            fresh.symlink_to(layout.links[place])
            fresh.replace(root / place)
        return
    building = staging / layout.commit
    for place, text in layout.links.items():
        link = building / PurePosixPath(place).relative_to(layout.snapshot)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(text)
    for directory, _, _ in os.walk(building):
        fsync_directory(Path(directory))
    building.rename(snapshot)
    fsync_directory(snapshot.parent)


def _write_ref(root: Path, layout: Layout, staging: Path) -> None:
    if not layout.ref:
        return
    ref = root / layout.ref
    with suppress(FileNotFoundError):
        if ref.read_text() == layout.commit:
            return
    ref.parent.mkdir(parents=True, exist_ok=True)
    fresh = staging / "ref"
    with fresh.open("w") as stream:
        stream.write(layout.commit)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(ref)
    fsync_directory(ref.parent)


def _tag(root: Path) -> None:
    """What backup programs look for. One that is there is not ours to change."""
    with suppress(FileExistsError):
        with (root / TAG).open("x") as stream:
            stream.write(TAG_TEXT)


@contextmanager
def _staging(repo: Path) -> Iterator[Path]:
    """A directory for what has no name yet, while no other run is in `repo`; those of runs that died are removed. The
    client looks at none of them."""
    lock = os.open(repo, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # Of a file system without locks.
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in repo.glob(f"{_STAGING}*"):
            shutil.rmtree(left)
        staging = repo / f"{_STAGING}{secrets.token_hex(6)}"
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    finally:
        os.close(lock)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise _denied(path) from None
    except FileNotFoundError:
        raise _gone(path) from None


def _gone(path: Path) -> NotFound:
    return NotFound(f"{path} leads nowhere", remedy="Fetch the model again.")


def _denied(path: Path) -> AccessDenied:
    return AccessDenied(f"{path} may not be read by this user", remedy="Add the user to the group of the daemon.")


@contextmanager
def _in_the_way() -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as e:
        place = e.filename2 or e.filename
        raise PathInTheWay(f"{place} is in the way: {e.strerror}", remedy="Move what stands there away.") from None
