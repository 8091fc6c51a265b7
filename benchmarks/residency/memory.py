"""What many workers that read the whole of a model cost: PSS, in which a shared page counts by the share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import xxhash
from rich.console import Console

from benchmarks import acquire
from benchmarks.machine import MIB, Unable
from benchmarks.residency.children import children
from benchmarks.residency.stage import Stage, words

TARGET = 1.02
"""DESIGN §9: of one copy of the model."""


def pss(pid: int) -> dict[str, int]:
    """Bytes by field ("Pss", "Pss_Shmem", …), from /proc/<pid>/smaps_rollup (proc(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split()[0].rstrip(":"): int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss")}


def measure(stage: Stage, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All at the same time. Raises Unable where one read other bytes than the others, or than there are."""
    with console.status(f"{args.workers} workers read {words(stage.big_size)}"):
        with children(args.workers, "benchmarks.residency.worker", stage.host.socket, stage.big) as workers:
            found = [pss(w.pid) for w in workers]
            daemon = pss(stage.host.daemon.pid)
            if {w.said for w in workers} != {expected(stage)}:
                raise Unable("a worker read other bytes than the origin has")
    pages, all_ = (sum(f[field] for f in found) for field in ("Pss_Shmem", "Pss"))
    text, data = acquire.verdict(f"PSS of {args.workers} workers' model ÷ its size", pages / stage.big_size, TARGET)
    console.print(f"\n[bold]{args.workers} workers map and read {words(stage.big_size)}[/]\n{text}")
    console.print(
        f"with their interpreters {all_ / stage.big_size:.3f} ×: {(all_ - pages) / args.workers / MIB:.0f} MiB more for"
        f" each; the daemon maps {daemon['Pss_Shmem'] / MIB:.0f} MiB of shared memory"
    )
    return {"workers": found, "daemon": daemon, "size": stage.big_size, "all_ratio": all_ / stage.big_size, **data}


def expected(stage: Stage) -> str:
    """xxh3-128 of the origin's file."""
    digest = xxhash.xxh3_128()
    with (stage.where.disk / "root" / stage.big.removeprefix(f"{stage.origin.endpoint}/")).open("rb") as file:
        while block := file.read(16 * MIB):
            digest.update(block)
    return digest.hexdigest()
