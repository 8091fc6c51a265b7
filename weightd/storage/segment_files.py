"""Segments as files of a dedicated tmpfs directory: what a container shares by a mount, without the host's /dev/shm."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from weightd.core.errors import AccessDenied, ConfigError, PathInTheWay
from weightd.core.numa import Placement
from weightd.storage.pages import mount_options
from weightd.storage.places import Place
from weightd.storage.tmpfs_store import TmpfsStore


class DirectorySegmentStore(TmpfsStore):
    """See `TmpfsStore`: its segments are the files `<directory>/weightd-<owner>-<label>-<random>`.

    `directory` is absolute, on a tmpfs, no symlink, owned by this user, writable for nobody else (unless sticky), as
    who may write it may remove segments. Others reach the segments where they may enter it. Raises ConfigError,
    PathInTheWay or AccessDenied for another. It is held open, so that it cannot be unmounted, until `close`.
    """

    def __init__(
        self, directory: Path, owner: str, *, group: int | None = None, placement: Placement | None = None
    ) -> None:
        fd = _opened(directory)
        place = Place(directory, fd)
        try:
            _check(directory, fd)
            super().__init__(place, owner, group=group, placement=placement)
        except BaseException:
            place.close()
            raise
        self.directory = str(directory)

    def close(self) -> None:
        """Nothing is asked of it any more. Idempotent."""
        self._place.close()


def _opened(directory: Path) -> int:
    if not directory.is_absolute():
        raise ConfigError(f"shm.directory {directory} is not absolute", remedy="Name it from the root.")
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:  # Also for a symlink.
        raise PathInTheWay(
            f"{directory} is not a directory", remedy="Name the directory itself, no symlink to it, as shm.directory."
        ) from None
    except FileNotFoundError:
        raise ConfigError(f"there is no directory {directory}", remedy=_how_to_mount(directory)) from None
    except PermissionError as e:
        raise AccessDenied(f"{directory} may not be read: {e.strerror}", remedy=_how_to_own(directory)) from None


def _check(directory: Path, fd: int) -> None:
    kind, options = mount_options(directory)
    if kind != "tmpfs":
        raise ConfigError(f"{directory} is on {kind}, not on a tmpfs", remedy=_how_to_mount(directory))
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"{directory} belongs to user {status.st_uid}, and weightd runs as {os.geteuid()}",
            remedy=_how_to_own(directory),
        )
    if "ro" in options or not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"{directory} may not be written", remedy=_how_to_own(directory))
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        raise ConfigError(
            f"{directory} has mode {stat.S_IMODE(status.st_mode):04o}: others could remove segments from it",
            remedy=f"chmod 0750 {directory}",
        )


def _how_to_mount(directory: Path) -> str:
    return (
        f"Mount one there: mount -t tmpfs -o size=80%,huge=within_size,mode=0750,uid={os.geteuid()},"
        f"gid=<the workers' group> tmpfs {directory}"
    )


def _how_to_own(directory: Path) -> str:
    return f"Make it weightd's: chown {os.geteuid()} {directory} && chmod 0750 {directory}"
