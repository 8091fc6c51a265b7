"""What tenants may reach of the files: each its own tree of model directories, and the bytes behind those.

`tenants/<name>/models/<key>/<revision>/…` is as `models/`, for what one tenant may see; `tenants/<name>/blobs/<hex>`
are hard links to the blobs that it leads to. Of the state directory and of `tenants/` a tenant may pass the names that
it knows, of its own tree it may list them, and nothing else is open to it: not even whether somebody else's model or
blob is there can be told. Blobs and segments are one copy for all: an access control list says which tenants read them.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from weightd.core.digest import Digest, hex_of
from weightd.core.tenants import Scope, Tenants
from weightd.storage import acl
from weightd.storage.direct import disk_errors
from weightd.storage.snapshots import ModelDirectories

ROOT: Final = "tenants"
SHM: Final = Path("/dev/shm")


class Due(NamedTuple):
    """Who may read a blob, and where it and its segment are, None for none."""

    scope: Scope
    digest: Digest
    blob: Path
    segment: Path | None = None

    @property
    def paths(self) -> list[Path]:
        return [self.blob] if self.segment is None else [self.blob, self.segment]


class TenantFiles:
    """Blocking, any thread; `open` first. `group` may list all models, as before there were tenants. `segments` is the
    directory of the segments, None for POSIX shared memory.

    Lists only grow until `settle`, so that of two changes at the same time neither undoes the other.
    """

    def __init__(self, state_dir: Path, tenants: Tenants, group: int, segments: Path | None = None) -> None:
        self._state, self._tenants, self._group, self._segments = state_dir, tenants, group, segments
        self._root = state_dir / ROOT
        self._lock = threading.Lock()
        self.trees: dict[str, ModelDirectories] = {}

    @property
    def needed(self) -> bool:
        """Whether there are tenants, or were when this was last open."""
        return bool(self._tenants) or self._root.is_dir()

    def open(self) -> None:
        """Make the trees, and close those of tenants that are no more. Raises ConfigError where files cannot have
        access control lists, AccessDenied where they are somebody else's."""
        with disk_errors(self._state):
            former = self._former()
            if self._tenants:
                acl.check(self._state)
                acl.check(self._segments or SHM)
                self._root.mkdir(mode=0o700, exist_ok=True)
                self._close_models()
            self._let_pass(former)
            for place in list(self._root.iterdir()) if self._root.is_dir() else []:
                if place.name not in {t.name for t in self._tenants} or not self._tenants:
                    shutil.rmtree(place)
            for tenant in self._tenants:
                self._make(tenant.name, tenant.gid)
            if not self._tenants and self._root.is_dir():
                self._root.rmdir()

    def _close_models(self) -> None:
        """And what has bytes, to all but `group`: their names say what is held. It stays so, as others had never to be
        there."""
        models = self._state / "models"
        models.mkdir(mode=0o750, exist_ok=True)
        acl.let(models, {self._group: acl.LIST})
        # Whatever the umask was when they were made.
        for place in (models, self._state / "blobs", self._state / "ingest"):
            if place.is_dir() and not place.is_symlink():
                place.chmod(place.stat().st_mode & 0o770)

    def _former(self) -> set[int]:
        """Groups that had been let pass."""
        return set(acl.groups(self._root)) if self._root.is_dir() else set()

    def _let_pass(self, former: set[int]) -> None:
        now = {t.gid: acl.PASS for t in self._tenants}
        places = [self._state, *([self._segments] if self._segments else []), *([self._root] if now else [])]
        for place in places:
            acl.let(place, now, former - set(now))

    def _make(self, name: str, gid: int) -> None:
        place = self._root / name
        place.mkdir(mode=0o700, exist_ok=True)
        if (former := set(acl.groups(place))) - {gid}:  # What is below begins with the rights of another group.
            shutil.rmtree(place)
            return self._make(name, gid)
        if not former:
            acl.make_default(place, {gid: acl.LIST})
            acl.let(place, {gid: acl.LIST})
        (place / "blobs").mkdir(mode=0o755, exist_ok=True)
        self.trees[name] = ModelDirectories(place / "models")
        self.trees[name].drop_leftovers()
        return None

    def shown(self, tenant: str, directory: Path) -> Path:
        """Where a tenant finds what is in a directory below `models/`."""
        return self._root / tenant / directory.relative_to(self._state)

    def blob(self, tenant: str, digest: Digest) -> Path:
        """By which name a tenant finds a blob on disk."""
        return self._root / tenant / "blobs" / hex_of(digest)

    def admit(self, due: Iterable[Due]) -> None:
        """From now on these may read these blobs and segments. What is not there is left out: it is admitted when it
        comes."""
        with self._lock, disk_errors(self._root):
            for one in due:
                gids = dict.fromkeys(self._tenants.gids(one.scope), acl.READ)
                for path in one.paths:
                    with suppress(FileNotFoundError):
                        acl.let(path, gids)
                for name in one.scope:
                    with suppress(FileNotFoundError):
                        _link(one.blob, self.blob(name, one.digest))

    def withdraw(self, digest: Digest, blob: Path) -> None:
        """The blob is about to leave its place: nobody finds it by another name, which would keep its room, and who may
        read it is found out anew should the file come back, mended, under another configuration."""
        with self._lock, disk_errors(self._root):
            for tenant in self._tenants:
                self.blob(tenant.name, digest).unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                acl.let(blob, {}, acl.groups(blob))

    def settle(self, due: Collection[Due]) -> None:
        """All blobs that are held, and who may read them: nobody else may, from now on."""
        for one in due:
            gids = self._tenants.gids(one.scope)
            for path in one.paths:
                with suppress(FileNotFoundError), disk_errors(path):
                    acl.let(path, {}, set(acl.groups(path)) - gids)
        self.admit(due)
        with disk_errors(self._root):
            for path in set(self._links()) - {self.blob(name, one.digest) for one in due for name in one.scope}:
                path.unlink()

    def _links(self) -> Iterator[Path]:
        for tenant in self._tenants:
            yield from (self._root / tenant.name / "blobs").iterdir()

    def __repr__(self) -> str:
        return f"<TenantFiles {self._root}>"


def _link(blob: Path, name: Path) -> None:
    """A hard link, in place of one to a blob that was since replaced."""
    try:
        os.link(blob, name)
    except FileExistsError:
        if not blob.samefile(name):
            fresh = name.with_name(name.name + ".new")
            fresh.unlink(missing_ok=True)
            os.link(blob, fresh)
            fresh.replace(name)
