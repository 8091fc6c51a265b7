"""What is measured with models resident: all on one stage, for a big model takes a while to come."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from benchmarks.residency import evict, leases, memory, restart
from benchmarks.residency.stage import stage

PARTS = {"acquire": leases.measure, "memory": memory.measure, "evict": evict.measure, "restart": restart.measure}
"""In the order in which they are measured. The restart comes last: the first client ends with the first daemon."""


def measure(args: argparse.Namespace, console: Console, pages: str | None) -> dict[str, Any]:
    """Those of `args.only`, by name. Raises Unable."""
    with stage(args, console, pages) as ready:
        console.print(f"\nresident, pages {ready.where.pages}: {' and '.join(ready.refs)}")
        return {"pages": ready.where.pages} | {
            name: part(ready, args, console) for name, part in PARTS.items() if name in args.only
        }
