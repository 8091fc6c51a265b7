"""Where daemon and clients meet when nobody says where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

SOCKET_VARIABLE: Final = "WEIGHTD_SOCKET"
HOST_SOCKET: Final = "/run/weightd/weightd.sock"
"""Of the host's one daemon, which systemd or Kubernetes starts."""
MAX_SOCKET_PATH: Final = 107
"""Bytes: `sun_path` of unix(7) holds 108, the last of them NUL."""


def default_socket(env: Mapping[str, str], uid: int, exists: Callable[[str], bool]) -> str:
    """The socket's path: $WEIGHTD_SOCKET, the host's daemon for root or when it is there, else the user's own.

    `exists` is asked about sockets. A daemon of an ordinary user passes one that says no: then the host's socket is
    not chosen, and clients, which ask the file system, find the one that is.
    """
    given = env.get(SOCKET_VARIABLE, "")
    if given:
        return given.removeprefix("unix://").removeprefix("unix:")
    if uid == 0 or exists(HOST_SOCKET):
        return HOST_SOCKET
    runtime = env.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return f"{runtime.rstrip('/')}/weightd/weightd.sock"
    login = f"/run/user/{uid}/weightd/weightd.sock"
    return login if exists(login) else f"/tmp/weightd-{uid}/weightd.sock"
