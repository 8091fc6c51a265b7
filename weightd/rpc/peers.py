"""Which of the processes that lease are really connected.

gRPC tells nothing of the peer of a Unix socket, so what a holder says of itself is checked against the kernel: this
process's own descriptors are the connections, and each has the pid and uid of whoever connected it (SO_PEERCRED,
unix(7)), in our own PID namespace. A holder is confirmed when exactly one connected process has the id, in its own
innermost namespace, and the start time that the holder says.

What this does not prove: which connection a lease came by. A process that says it is another one is found out unless
that other one is connected too. Holders stay unconfirmed where the daemon may not read /proc/<pid> (hidepid, or
ProtectProc= in a unit), where it does not see the peer's PID namespace (a container without hostPID), where two peers
cannot be told apart, and in another time namespace. Nothing is decided by any of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from weightd.engine.api import Holder, LeaseState
from weightd.kernel import accepted_from

Name = tuple[int, int]
"""What a process can know of itself, and no other process of its namespace has: pid and start time."""


class Peer(NamedTuple):
    """`pid` in the daemon's PID namespace; `uid` as it was when it connected."""

    pid: int
    uid: int


def confirm(leases: Sequence[LeaseState], socket: Path | None = None) -> list[LeaseState]:
    """The same leases, their holders confirmed where the kernel agrees. Reads /proc: not on the event loop.

    With `socket`, of those that are connected to it: else one tenant could call itself by the names of processes, and
    read which of them another one has.
    """
    if not any(lease.holder.pid for lease in leases):
        return list(leases)
    known = named(connected(socket))
    return [msgspec.structs.replace(lease, holder=_confirmed(lease.holder, known)) for lease in leases]


def _confirmed(holder: Holder, known: dict[Name, Peer]) -> Holder:
    peer = known.get((holder.pid, holder.started))
    if peer is None:
        return holder
    return msgspec.structs.replace(holder, pid=peer.pid, uid=peer.uid, confirmed=True)


def connected(socket: Path | None = None) -> set[Peer]:
    """Whoever has a connection to a socket that this process listens on, or to this one.

    No descriptor is duplicated: a duplicate that outlived gRPC's close would keep the connection in its epoll set.
    """
    listener = None if socket is None else os.fsencode(socket)
    found = (_peer(name, listener) for name in os.listdir("/proc/self/fd"))
    return {peer for peer in found if peer is not None}


def _peer(descriptor: str, listener: bytes | None) -> Peer | None:
    """What the descriptor is may change at any moment: the inode says whether one socket was asked throughout."""
    try:
        before = os.readlink(f"/proc/self/fd/{descriptor}")
        if not before.startswith("socket:"):
            return None
        credentials = accepted_from(int(descriptor), listener)
        if credentials is None or os.readlink(f"/proc/self/fd/{descriptor}") != before:
            return None
    except OSError:
        return None  # closed meanwhile
    return Peer(*credentials)


def named(peers: Iterable[Peer]) -> dict[Name, Peer]:
    """By what each says of itself if it does not lie. A name that two have, in two namespaces, is nobody's."""
    found: dict[Name, Peer | None] = {}
    for peer in peers:
        name = name_of(peer.pid)
        if name is not None:
            found[name] = None if name in found and found[name] != peer else peer
    return {name: peer for name, peer in found.items() if peer is not None}


def name_of(pid: int) -> Name | None:
    """None for a process that has ended, or that this one may not look at."""
    try:
        directory = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _innermost(_read(directory, "status")), _started(_read(directory, "stat"))
    except (OSError, ValueError, LookupError):
        return None
    finally:
        os.close(directory)


def _read(directory: int, name: str) -> str:
    """Through the directory's descriptor both files are of one process, also when its pid is given to another."""
    with open(name, opener=lambda path, flags: os.open(path, flags, dir_fd=directory), errors="replace") as file:
        return file.read()


def _innermost(status: str) -> int:
    """The last of NSpid: proc_pid_status(5)."""
    line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    return int(line.split()[-1])


def _started(stat: str) -> int:
    """Field 22 of proc_pid_stat(5); the second, the command's name, may hold spaces and parentheses."""
    return int(stat.rpartition(")")[2].split()[22 - 3])
