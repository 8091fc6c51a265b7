"""From what the configuration says of a budget to bytes on this host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from weightd.core.budget import human
from weightd.core.errors import ConfigError
from weightd.daemon.sizes import BudgetSpec

SHM_SHARE: Final = 0.8
"""Of /dev/shm, for "auto": the rest is for the host's other users of shared memory (NCCL, data loaders)."""
DISK_SHARE: Final = 0.9
"""Of the free space, for "auto": the rest is for logs and whatever else grows on that disk."""
MEMORY_SHARE: Final = 0.9
"""Of available memory, for "auto": tmpfs pages are memory, whatever the size of the mount promises."""


SHM: Final = Path("/dev/shm")


def shm_budget(spec: BudgetSpec, *, total: int, free: int, held: int, memory: int, place: Path = SHM) -> int:
    """Bytes. `held` are segments that an earlier daemon left, which the start adopts or drops; `memory` is what the
    host, or the cgroup, can still give. "auto": SHM_SHARE of the mount, within what is free and what memory can
    back."""
    if spec.size is None and spec.percent is None:
        return max(0, int(min(SHM_SHARE * total, free + held, MEMORY_SHARE * memory + held)))
    return _explicit(spec, "shm", total, str(place), f"enlarge it: mount -o remount,size=… {place}")


def nvme_budget(spec: BudgetSpec, *, total: int, free: int, held: int, directory: Path) -> int:
    """Bytes. `held` is what the state directory already holds. "auto": that and DISK_SHARE of what is free."""
    if spec.size is None and spec.percent is None:
        return int(DISK_SHARE * free + held)
    return _explicit(spec, "nvme", total, str(directory), "use a larger disk")


def _explicit(spec: BudgetSpec, tier: str, total: int, place: str, otherwise: str) -> int:
    if spec.percent is not None:
        return int(total * spec.percent / 100)
    size = spec.size or 0
    if size > total:
        raise ConfigError(
            f"{tier}.budget: {human(size)} is more than the file system of {place} holds, {human(total)}",
            remedy=f"Lower {tier}.budget, or {otherwise}.",
        )
    return size


def disk_held(root: Path) -> int:
    """Bytes on disk of blobs and open ingests below the state directory."""
    total = 0
    for directory in (root / "blobs", root / "ingest"):
        for parent, _, files in os.walk(directory):
            total += sum(_allocated(Path(parent, name)) for name in files)
    return total


def shm_held(prefix: str, root: Path = SHM) -> int:
    """Bytes of segments whose names begin with `prefix`."""
    return sum(_allocated(Path(e.path)) for e in os.scandir(root) if e.name.startswith(prefix))


def _allocated(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_blocks * 512
    except FileNotFoundError:
        return 0


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be had: MemAvailable, or what the cgroup's memory.max leaves where that is less."""
    lines = (proc / "meminfo").read_text().splitlines()
    host = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))
    try:
        group = next(x[3:] for x in (proc / "self/cgroup").read_text().splitlines() if x.startswith("0::"))
        directory = cgroups / group.lstrip("/")
        limit = int((directory / "memory.max").read_text())
        used = int((directory / "memory.current").read_text())
    except (OSError, StopIteration, ValueError):
        # No cgroup v2 here, or no limit ("max").
        return host
    return min(host, max(0, limit - used))
