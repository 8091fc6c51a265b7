"""The NUMA nodes of this host, and pages on them."""

from __future__ import annotations

import errno
import mmap
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from weightd.core.budget import human
from weightd.core.errors import ConfigError, ShmFull
from weightd.core.numa import NumaMode, Placement, parse_nodes
from weightd.kernel import MPOL_BIND, MPOL_INTERLEAVE, address_of, set_memory_policy

NODES: Final = Path("/sys/devices/system/node")
_MODES: Final = {NumaMode.BIND: MPOL_BIND, NumaMode.INTERLEAVE: MPOL_INTERLEAVE}


def memory_nodes(root: Path = NODES) -> list[int]:
    """Those with memory that this process may use (cpuset(7)); [] where the kernel knows none."""
    try:
        there = parse_nodes((root / "has_memory").read_text().strip())
        status = Path("/proc/self/status").read_text()
    except OSError:
        return []
    allowed = re.search(r"^Mems_allowed_list:\s*(\S*)$", status, re.MULTILINE)
    return [n for n in there if allowed is None or n in parse_nodes(allowed[1])]


def bound(placement: Placement | None) -> tuple[int, ...] | None:
    """The nodes beside which there is no memory for a segment; None where there is."""
    return placement.nodes if placement is not None and placement.mode is NumaMode.BIND else None


def room_on(nodes: Iterable[int], root: Path = NODES) -> tuple[int, int]:
    """Bytes that can still be had on these nodes, and that they have: free, and what the kernel drops of its cache of
    files, but for a 64th that is the kernel's own."""
    free = total = 0
    for node in nodes:
        text = (root / f"node{node}" / "meminfo").read_text()
        found = {m[1]: int(m[2]) << 10 for m in re.finditer(r"^Node \d+ (\S+):\s+(\d+) kB", text, re.MULTILINE)}
        available = found["MemFree"] + found.get("Active(file)", 0) + found.get("Inactive(file)", 0)
        free += max(0, available - found["MemTotal"] // 64)
        total += found["MemTotal"]
    return free, total


def check_room(placement: Placement | None, size: int) -> None:
    """Raises ShmFull unless the nodes that segments are bound to have room: for a page that finds none there the kernel
    ends a process, whatever is free on other nodes and on the mount."""
    if (only := bound(placement)) is None or size <= (free := room_on(only)[0]):
        return
    raise ShmFull(
        f"there is no room on the nodes of shm.numa {placement}: {human(size)} wanted, {human(free)} free",
        remedy="Free memory there, bind to more nodes, or interleave.",
    )


def place(mapping: mmap.mmap, placement: Placement) -> None:
    """All pages of a shared map of a tmpfs file, whoever touches them: the policy is the file's. Those that are there
    stay where they are. Raises ConfigError."""
    try:
        set_memory_policy(address_of(mapping), len(mapping), _MODES[placement.mode], placement.nodes)
    except OSError as e:
        if e.errno == errno.ENOMEM:
            raise
        raise ConfigError(
            f"the kernel does not place memory by shm.numa {placement}: {e.strerror}",
            remedy="In a container it may need CAP_SYS_NICE, or a seccomp profile that allows mbind; or leave it out.",
        ) from None


def check(placement: Placement) -> None:
    """Raises ConfigError where memory cannot be placed so."""
    with mmap.mmap(-1, mmap.PAGESIZE) as trial:
        place(trial, placement)
