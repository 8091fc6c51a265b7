"""What docs/isolation.md says of attempts: who gets which answer."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.isolation import attempts
from tests.isolation.users import CONTAINER_ROOT, DAEMON, MEMBER, OUTSIDER, READ_ONLY_SHM, ROOT, User

DOC: Final = Path(__file__).parents[2] / "docs" / "isolation.md"

WHO: Final[dict[str, tuple[User, tuple[str, ...]]]] = {
    "member": (MEMBER, ()),
    "other": (OUTSIDER, ()),
    "daemon's user": (DAEMON, ()),
    "root": (ROOT, ()),
    "daemon's user, read-only mount": (DAEMON, (READ_ONLY_SHM,)),
    "root, read-only mount": (CONTAINER_ROOT, (READ_ONLY_SHM,)),
}
"""The columns: as whom, after which mounts."""

ROWS: Final = {
    "open for reading": attempts.open_read,
    "open for writing": attempts.open_write,
    "map a read-only descriptor, shared and writable": attempts.map_write,
    "make a read-only map writable later (mprotect)": attempts.protect_later,
    "write into a read-only map": attempts.store,
    "write into a read-only map by /proc/self/mem": attempts.own_memory,
    "open /proc/self/fd/N for writing": attempts.reopen,
    "ftruncate a read-only descriptor": attempts.truncate_handle,
    "truncate by name": attempts.truncate,
    "punch a hole through a read-only descriptor": attempts.punch,
    "MADV_REMOVE on a read-only map": attempts.advise_away,
    "unlink": attempts.unlink,
    "rename": attempts.rename,
    "put another file in its place": attempts.replace,
    "hard link": attempts.hard_link,
    "chmod": attempts.change_mode,
    "chown": attempts.change_owner,
    "change the ACL": attempts.change_acl,
    "take a lease (F_SETLEASE)": attempts.lease,
    "open for writing as root of a new user namespace": attempts.namespace,
    "open the daemon's memory (/proc/PID/mem)": attempts.daemon_memory,
    "look at the daemon's descriptors": attempts.daemon_descriptors,
    "signal the daemon": attempts.kill,
}


def documented() -> dict[str, dict[str, str]]:
    """By column and row, as it stands in the first table of the page, footnotes applied to this host."""
    table = [[cell.strip() for cell in x.strip("|").split("|")] for x in _first_table()]
    head, rows = table[0], table[2:]
    return {column: {row[0]: _here(row[i]) for row in rows} for i, column in enumerate(head) if column != "attempt"}


def _first_table() -> list[str]:
    lines = DOC.read_text().splitlines()
    start = next(i for i, x in enumerate(lines) if x.startswith("| attempt"))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return lines[start:end]


def _here(cell: str) -> str:
    result, _, note = cell.partition(" ")
    if note == "¹" and _sysctl("fs/protected_hardlinks") == 0:
        return "ok"
    if note == "²" and _sysctl("kernel/yama/ptrace_scope") > 0:
        return "EACCES"
    return result


def _sysctl(name: str) -> int:
    path = Path("/proc/sys", name)
    return int(path.read_text()) if path.exists() else 0
