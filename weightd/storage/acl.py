"""POSIX access control lists: groups beside the one that a file has (acl(5)).

Linux keeps a list as an extended attribute, `system.posix_acl_access`: a version, then entries of a tag, rights and an
id, in the order of the tags and ids (linux/posix_acl_xattr.h). Only the owner may change it, and need not be a member
of the groups. The bits of the group in a file's mode are then the mask, the most that any entry but the owner's and
the others' gives.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from weightd.core.errors import ConfigError

ACCESS: Final = "system.posix_acl_access"
DEFAULT: Final = "system.posix_acl_default"
"""What is made in a directory begins with it; the umask then does not count."""
READ: Final = 4
PASS: Final = 1
LIST: Final = READ | PASS
"""Rights: read a file; pass a directory to a name in it that is known; list its names as well."""

_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
_OWNER, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID: Final = 0xFFFFFFFF
_Acl = dict[tuple[int, int], int]
"""Rights by tag and id."""


def groups(path: Path) -> dict[int, int]:
    """Rights of the groups that are named beside the one of the file, as long as its mask lets them."""
    return {gid: rights for (tag, gid), rights in _parsed(path, _raw(path)).items() if tag == _GROUP}


def let(path: Path, gids: Mapping[int, int], gone: Collection[int] = ()) -> None:
    """Give these groups these rights, whatever a chmod has left of them, and take all from those that are `gone`; of
    other entries none changes. Raises OSError."""
    raw = _raw(path)
    acl = _parsed(path, raw)
    wanted = {k: v for k, v in acl.items() if not (k[0] == _GROUP and k[1] in gone)}
    wanted.update({(_GROUP, gid): rights for gid, rights in gids.items()})
    if wanted != acl or (raw is not None and raw != _packed(acl)):
        _write(path, wanted)


def make_default(path: Path, gids: Mapping[int, int]) -> None:
    """What is made in a directory, whatever the umask, is its owner's, and these groups' with these rights. Raises
    OSError."""
    acl = {(_OWNER, _NO_ID): 7, (_GROUP_OBJ, _NO_ID): 0, (_OTHER, _NO_ID): 0}
    acl.update({(_GROUP, gid): rights for gid, rights in gids.items()})
    os.setxattr(path, DEFAULT, _packed(acl), follow_symlinks=False)


def check(directory: Path) -> None:
    """Raises ConfigError where files of this directory can have no list."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as e:
        if e.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        raise _unsupported(directory, e) from None
    try:
        os.setxattr(fd, ACCESS, _packed({**_of_mode(0o440), (_GROUP, os.getegid()): READ}))
    except OSError as e:
        raise _unsupported(directory, e) from None
    finally:
        os.close(fd)


def _unsupported(directory: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"[[sockets]] needs access control lists, and the file system of {directory} has none: {error.strerror}",
        remedy="Use one that has (ext4, xfs, btrfs, tmpfs; mounted without noacl), or leave out [[sockets]].",
    )


def _of_mode(mode: int) -> _Acl:
    return {(_OWNER, _NO_ID): mode >> 6 & 7, (_GROUP_OBJ, _NO_ID): mode >> 3 & 7, (_OTHER, _NO_ID): mode & 7}


def _raw(path: Path) -> bytes | None:
    """None for a file without a list."""
    try:
        return os.getxattr(path, ACCESS, follow_symlinks=False)
    except OSError as e:
        if e.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return None


def _parsed(path: Path, raw: bytes | None) -> _Acl:
    """Without the mask: it is to be what the entries need."""
    if raw is None:
        return _of_mode(stat.S_IMODE(path.lstat().st_mode))
    entries = list(_ENTRY.iter_unpack(raw[len(_VERSION) :]))
    return {(tag, number): rights for tag, rights, number in entries if tag != _MASK}


def _write(path: Path, acl: _Acl) -> None:
    if any(tag in (_USER, _GROUP) for tag, _ in acl):
        os.setxattr(path, ACCESS, _packed(acl), follow_symlinks=False)
        return
    # Without the list the bits of the mask would be the group's.
    os.removexattr(path, ACCESS, follow_symlinks=False)
    kept = {tag: rights for (tag, _), rights in acl.items()}
    os.chmod(path, kept[_OWNER] << 6 | kept[_GROUP_OBJ] << 3 | kept[_OTHER])


def _packed(acl: _Acl) -> bytes:
    mask = 0
    for (tag, _), rights in acl.items():
        mask |= rights if tag in (_USER, _GROUP_OBJ, _GROUP) else 0
    entries = sorted([*acl.items(), ((_MASK, _NO_ID), mask)])
    return _VERSION + b"".join(_ENTRY.pack(tag, rights, number) for (tag, number), rights in entries)
