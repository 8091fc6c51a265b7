"""Who a process is, so that another one can tell whether it still lives: pids are used again, boots forget them. And
whose segments are whose."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_TEXT = re.compile(r"([0-9a-f]{8})-(\d+)-(\d+)")


@dataclass(frozen=True, slots=True)
class Owner:
    """`boot` are the first 8 digits of the host's boot id, `started` clock ticks after boot (proc_pid_stat(5))."""

    boot: str
    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether this very process runs on this host, since this boot. One of another host or boot is not."""
        return self.boot == _boot() and _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"{self.boot}-{self.pid}-{self.started}"


def this_process() -> Owner:
    """The caller. A fork is another process."""
    pid = os.getpid()
    return Owner(_boot(), pid, _started(pid) or 0)


def parse_owner(text: str) -> Owner | None:
    """From what `str` of an Owner begins with; None for anything else."""
    match = _TEXT.match(text)
    return Owner(match[1], int(match[2]), int(match[3])) if match else None


def segment_owner(state_dir: Path) -> str:
    """In the names of segments: tells daemons apart, the same after every start on one state directory."""
    return hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:10]


@cache
def boot_id() -> str:
    """Of the running kernel, another after every boot (random(4)): what belongs to memory belongs to a boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _boot() -> str:
    return boot_id()[:8]


def _started(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat, counted after the command, which may hold anything. None for a dead process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
