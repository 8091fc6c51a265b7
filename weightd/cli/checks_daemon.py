"""What `weightd doctor` looks at between this user and the daemon."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from weightd.cli.checks import Check
from weightd.core.errors import WeightdError
from weightd.version import __version__

START = "weightd serve, or systemctl start weightd"


def daemon_checks(socket: str | None) -> Iterator[Check]:
    """That the socket exists, that this user may open it, that a daemon of this version answers."""
    from weightd.client.client import Client

    try:
        client = Client(socket)
    except WeightdError as e:
        yield Check("socket", "failed", str(e), e.remedy)
        return
    with client:
        found = socket_rights(client.socket)
        yield found
        if found.status != "ok":
            return
        try:
            status = client.status()
        except WeightdError as e:
            yield Check("daemon", "failed", e.message, e.remedy or START)
            return
    about = f"version {status.version}, process {status.pid}, {status.state.value}"
    if status.version != __version__:
        fix = "Install the same version on both sides, and restart the daemon."
        yield Check("daemon", "warning", f"{about}; this is {__version__}", fix)
    else:
        yield Check("daemon", "ok", about)


def socket_rights(path: Path) -> Check:
    """By the file system alone; asks nobody."""
    try:
        status = path.stat()
    except PermissionError:
        return Check("socket", "failed", f"{path}: its directory is closed to this user", f"chmod o+x {path.parent}")
    except OSError:
        return Check("socket", "warning", f"{path} does not exist: no daemon runs here", f"Start it: {START}.")
    if not stat.S_ISSOCK(status.st_mode):
        return Check("socket", "failed", f"{path} is not a socket", "Move it away and start the daemon.")
    mode = f"{path}, {_user(status.st_uid)}:{_group(status.st_gid)} {stat.S_IMODE(status.st_mode):04o}"
    if not os.access(path, os.R_OK | os.W_OK):
        me, group = _user(os.geteuid()), _group(status.st_gid)
        if group == "root" or not status.st_mode & stat.S_IWGRP:
            fix = "Set daemon.socket_group to a group of yours, and restart the daemon."
        else:
            fix = f"usermod -aG {group} {me}, then log in again."
        return Check("socket", "failed", f"{mode}: may not be opened by {me}", fix)
    return Check("socket", "ok", mode)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
