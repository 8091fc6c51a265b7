"""`python -m benchmarks.residency`: what it costs to hold models resident, and what a worker has of it.

Loads from NVMe beside fio and cp; acquires with many leases open, idle and while a fetch runs; the memory of many
workers; eviction; a restart with a big model resident. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine, nginx
from benchmarks.fetch import parse_size
from benchmarks.machine import GIB, MIB, Unable
from benchmarks.residency import fio, load, resident
from benchmarks.residency.places import own_mounts

LOAD = "load"
PARTS = (LOAD, *resident.PARTS)
QUICK = {"size": 48 * MIB, "big": 64 * MIB, "small": 8 * MIB, "fetch": 48 * MIB, "rounds": 1, "calls": 50,
         "leases": (1, 20), "workers": 3}  # fmt: skip
SPARE = 2 * GIB
"""Memory that stays for the rest of the host."""


def parse_list(text: str) -> tuple[str, ...]:
    """ "load,acquire"."""
    parts = tuple(p.strip() for p in text.split(","))
    if unknown := [p for p in parts if p not in PARTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(PARTS)}")
    return parts


def parse_counts(text: str) -> tuple[int, ...]:
    """ "1,100,1000"."""
    try:
        counts = tuple(int(n) for n in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} are not numbers of leases such as 1,100,1000")
    return counts


def parse_count(text: str) -> int:
    """At least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.residency", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--only", type=parse_list, default=PARTS, metavar="PART,…", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--size", type=parse_size, default=GIB, help="of the model that is loaded; default 1GiB")
    parser.add_argument("--big", type=parse_size, default=10 * GIB, help="of the big resident model; default 10GiB")
    parser.add_argument("--small", type=parse_size, default=90 * MIB, help="of the small one; default 90MiB, as MiniLM")
    parser.add_argument("--fetch", type=parse_size, default=GIB, help="of the file fetched beside; default 1GiB")
    parser.add_argument("--rounds", type=parse_count, default=5, help="of everything, after a warm-up; default 5")
    parser.add_argument("--calls", type=parse_count, default=500, help="of each kind in a round; default 500")
    parser.add_argument("--leases", type=parse_counts, default=(1, 100, 1000), metavar="N,…",
                        help="open at a time; default 1,100,1000")  # fmt: skip
    parser.add_argument("--workers", type=parse_count, default=8, help="that map the big model; default 8")
    parser.add_argument("--pages", choices=["4k", "2m"],
                        help="of shared memory (root); default: load with both, the rest with 4k")  # fmt: skip
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a directory on NVMe; default /var/tmp")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that all of it works, measures nothing")
    args = parser.parse_args(arguments)
    if args.quick:
        vars(args).update(QUICK)
    args.warm_up = args.rounds > 1
    return args


def needed(args: argparse.Namespace) -> tuple[int, int]:
    """Bytes of memory, and of disk, at the most."""
    held = args.big + args.small + 2 * args.fetch
    big = any(p != LOAD for p in args.only)
    memory = max(held if big else 0, 2 * args.size if LOAD in args.only else 0)
    disk = max(held + 2 * args.fetch if big else 0, 2 * args.size if LOAD in args.only else 0)
    return memory + SPARE, disk


def check(args: argparse.Namespace) -> None:
    """Raises Unable."""
    memory, disk = needed(args)
    if memory > machine.memory_available():
        raise Unable(f"this takes {memory / GIB:.1f} GiB of memory; choose a smaller --big or --size")
    if disk > machine.disk_free(args.disk):
        raise Unable(f"this takes {disk / GIB:.1f} GiB of {args.disk}; choose a smaller --big, or another --disk")


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything; returns what goes into the JSON. Raises Unable."""
    check(args)
    load_before = os.getloadavg()[0]
    facts = {**machine.facts("grpcio", "uvloop"), "nginx": nginx.version(), "fio": fio.version(), "load": load_before}
    console.print(machine.describe(facts))
    if load_before > facts["cores"] / 2:
        console.print(f"[yellow]Others keep this machine busy (load {load_before:.1f}): what follows says little.[/]")
    own = own_mounts()
    if not own:
        if args.pages:
            raise Unable("--pages mounts a tmpfs, which needs root")
        console.print("[yellow]Without root /dev/shm is taken as it is, with one size of pages.[/]")
    found: dict[str, Any] = {"machine": facts}
    if LOAD in args.only:
        kinds = [args.pages] if args.pages else ["4k", "2m"] if own else [None]
        found[LOAD] = [load.measure(args, console, pages) for pages in kinds]
    if any(p != LOAD for p in args.only):
        found |= resident.measure(args, console, args.pages or ("4k" if own else None))
    return found


if __name__ == "__main__":
    sys.exit(machine.conclude(options(), run))
