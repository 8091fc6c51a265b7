"""`[[sockets]]`: tenants, each with a socket, a group and refs of its own"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import msgspec

from weightd.core.allow import AllowList
from weightd.core.errors import ConfigError
from weightd.core.tenants import Tenant, Tenants
from weightd.daemon.config_reader import Reader, group_id, socket_mode

NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
"""It is the name of a directory, too."""


class SocketSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[sockets]]` as it is written."""

    name: str
    path: str
    group: str
    allow: tuple[str, ...]
    mode: str = "0660"
    operate: bool = False


class SocketConfig(msgspec.Struct, frozen=True):
    """A tenant's. `gid`: who may connect, and read what it may see. `allow`: patterns of refs, checked; see
    `weightd.core.allow`. `operate`: it may pin, evict, remove and verify what it sees."""

    name: str
    path: Path
    gid: int
    mode: int
    allow: tuple[str, ...]
    operate: bool

    def tenant(self) -> Tenant:
        """Configured models are not allowed by being configured: this list has to name them."""
        return Tenant(self.name, self.gid, AllowList(self.allow), self.operate)


def tenants_of(sockets: tuple[SocketConfig, ...]) -> Tenants:
    """For the engine."""
    return Tenants(s.tenant() for s in sockets)


def read_sockets(reader: Reader, main: Path, main_gid: int | None) -> tuple[SocketConfig, ...]:
    """`main`, `main_gid`: the daemon's own socket and its group, which no tenant may have. Raises ConfigError."""
    found = tuple(_read(reader, i, one) for i, one in enumerate(reader.tables("sockets", SocketSection)))
    gid = os.getegid() if main_gid is None else main_gid
    for i, one in enumerate(found):
        if _same(one.path, main):
            raise _fault(reader, i, "path", f"{one.path} is the daemon's own socket")
        if one.gid == gid:
            raise _fault(reader, i, "group", f"{gid} is the group of the daemon's own socket, which sees everything")
        for other in found[:i]:
            if one.name == other.name:
                raise _fault(reader, i, "name", f"{one.name!r} stands twice")
            if _same(one.path, other.path):
                raise _fault(reader, i, "path", f"{one.path} stands twice")
            if one.gid == other.gid:
                raise _fault(reader, i, "group", f"{one.gid} is the group of {other.name!r}; each needs its own")
    return found


def _read(reader: Reader, index: int, one: SocketSection) -> SocketConfig:
    if not NAME.fullmatch(one.name):
        raise _fault(reader, index, "name", f"{one.name!r} is not 1 to 32 lower-case letters, digits and '-'")
    at = ("sockets", str(index))
    path, gid = reader.path(one.path), reader.value((*at, "group"), group_id, one.group)
    mode = reader.value((*at, "mode"), socket_mode, one.mode)
    if path is None:
        raise _fault(reader, index, "path", "is empty; say where this tenant connects")
    if gid is None:
        raise _fault(reader, index, "group", "is empty; a tenant needs a group of its own")
    if not one.allow:
        raise _fault(reader, index, "allow", 'is empty; say which refs this tenant may see, such as ["hf://org/*"]')
    reader.value((*at, "allow"), AllowList, one.allow)
    return SocketConfig(one.name, path, gid, mode, one.allow, one.operate)


def _fault(reader: Reader, index: int, key: str, what: str) -> ConfigError:
    return reader.fault(("sockets", str(index), key), what)


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
