"""Which socket a client uses, and what is the matter with one that does not answer."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from pathlib import Path
from urllib.parse import quote

from weightd.core.errors import ConfigError, DaemonUnavailable, SocketDenied, WeightdError
from weightd.core.paths import MAX_SOCKET_PATH, default_socket

START = "Start it: weightd serve, or systemctl start weightd."
PATIENCE = 1.0
"""Seconds that a probe waits for a daemon whose queue of connections is full."""


def socket_path(given: str | os.PathLike[str] | None = None) -> Path:
    """`given`, or the default of `weightd.core.paths`. Raises ConfigError for what the kernel cannot take."""
    text = os.fspath(given) if given is not None else default_socket(os.environ, os.getuid(), os.path.exists)
    path = Path(text.removeprefix("unix://").removeprefix("unix:")).absolute()
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise ConfigError(
            f"the socket's path has {length} bytes, the kernel takes {MAX_SOCKET_PATH}",
            file=str(path),
            remedy="Choose a shorter one, in WEIGHTD_SOCKET or the configuration.",
        )
    _check_owner(path)
    return path


def segment_directory(given: str | os.PathLike[str] | None = None) -> str:
    """Where this process sees the daemon's segments: `given`, or WEIGHTD_SHM; empty where the daemon says it."""
    text = os.fspath(given) if given is not None else os.environ.get("WEIGHTD_SHM", "")
    return os.path.abspath(text) if text else ""


def _check_owner(path: Path) -> None:
    """Below /tmp anybody may have made the directory first, and would be asked for weights."""
    uid = os.getuid()
    if path.parent != Path(f"/tmp/weightd-{uid}"):
        return
    try:
        made_by = path.parent.lstat().st_uid
    except FileNotFoundError:
        return
    if made_by not in (uid, 0):
        raise SocketDenied(
            f"the socket's directory belongs to user {made_by}, not to you ({uid})",
            file=str(path.parent),
            remedy="Remove it, or set WEIGHTD_SOCKET.",
        )


def target(path: Path) -> str:
    """As gRPC's resolver reads it: a URI, whose path is percent-encoded."""
    return "unix:" + quote(os.fsencode(path))


def listens(path: Path) -> bool:
    """Whether a process accepts connections there now."""
    return _connect(path) is None


def diagnose(path: Path) -> WeightdError:
    """Why a call found no daemon. Connects once, at most PATIENCE seconds."""
    fault = _connect(path)
    if fault is None:
        return DaemonUnavailable(
            "the daemon ended or was restarted during the call", file=str(path), remedy="Call again."
        )
    if isinstance(fault, PermissionError):
        return _denied(path)
    if isinstance(fault, FileNotFoundError):
        return DaemonUnavailable("no daemon: the socket does not exist", file=str(path), remedy=START)
    if isinstance(fault, ConnectionRefusedError):
        return DaemonUnavailable("no daemon: nobody listens on the socket", file=str(path), remedy=START)
    reason = fault.strerror or str(fault) or errno.errorcode.get(fault.errno or 0, "")
    return DaemonUnavailable(f"no daemon answers: {reason}", file=str(path), remedy=START)


def _connect(path: Path) -> OSError | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PATIENCE)
        try:
            probe.connect(os.fsencode(path))
        except OSError as error:
            return error
    return None


def _denied(path: Path) -> WeightdError:
    group = _group_of(path)
    who = f"group {group}" if group else "the socket's group"
    join = f"usermod -aG {group} <user>" if group else "usermod -aG <group> <user>"
    return SocketDenied(
        "this user may not open the daemon's socket",
        file=str(path),
        remedy=f"Join {who} ({join}, then log in again), or run as a user who is in it.",
    )


def _group_of(path: Path) -> str:
    """Empty when the directory hides it, or the group has no right either."""
    try:
        state = path.stat()
        if not state.st_mode & stat.S_IWGRP or state.st_gid == 0:
            return ""
        return grp.getgrgid(state.st_gid).gr_name
    except (OSError, KeyError):
        return ""
