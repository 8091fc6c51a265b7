"""`python -m benchmarks.eviction`: who waits for how long under which eviction policy, simulated.

Made-up traces of several kinds, with several seeds each, a recorded one, and those that are given; weightd's policy by
its own code, against LRU, LFU, GDSF and one that knows the future; tiers of 10 to 80 % of what is asked for. The same
options give the same numbers on any machine. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.eviction import azure, plot, report, synthetic, trace
from benchmarks.eviction.simulate import NVME, SHM
from benchmarks.eviction.trace import Trace
from benchmarks.machine import Unable

RECORDED = Path(__file__).parent / "traces" / "soak.jsonl"
HELD_OUT = (1, 3, 5, 7)
"""Seeds. The constants of weightd.core.eviction were chosen on 0, 2, 4 and 6."""
TIERS = {t.name: t for t in (SHM, NVME)}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.eviction", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--trace", type=Path, action="append", metavar="FILE", help="only this one, as recorded")
    parser.add_argument(
        "--azure-functions", type=Path, metavar="FILE", help="only this one, Azure's trace of functions of 2021"
    )
    parser.add_argument("--kinds", nargs="+", choices=synthetic.KINDS, default=list(synthetic.KINDS), metavar="KIND")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(HELD_OUT), metavar="N")
    parser.add_argument("--tempos", type=_tempo, nargs="+", default=[1.0], metavar="N", help="how many times as fast")
    parser.add_argument("--tiers", nargs="+", choices=TIERS, default=list(TIERS))
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the first of the tiers: .svg or .png")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    args = parser.parse_args()
    if args.plot and args.plot.suffix not in (".svg", ".png"):
        parser.error("--plot is a file .svg or .png")
    return args


def _tempo(text: str) -> float:
    tempo = float(text)
    if not 1e-3 <= tempo <= 1e3:
        raise argparse.ArgumentTypeError(f"{text} is not from 0.001 to 1000")
    return tempo


def traces(args: argparse.Namespace) -> Iterator[Trace]:
    for tempo in args.tempos:
        yield from (one if tempo == 1 else trace.faster(one, tempo) for one in _chosen(args))


def _chosen(args: argparse.Namespace) -> Iterator[Trace]:
    if args.trace or args.azure_functions:
        yield from map(trace.read, args.trace or ())
        if args.azure_functions:
            yield azure.read(args.azure_functions)
        return
    for kind in args.kinds:
        for seed in args.seeds:
            yield synthetic.make(kind, seed)
    yield trace.read(RECORDED)


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Raises Unable."""
    if args.plot:
        plot.check(args.plot)
    found: list[report.Point] = []
    about = []
    for one in traces(args):
        size = one.distinct_bytes
        text = f"{one.name}: {len(one.requests)} requests, {len(one.snapshots)} snapshots, {size / 1e9:,.1f} GB"
        with console.status(text):
            found += report.points(one, [TIERS[t] for t in args.tiers])
        about.append({"name": one.name, "about": one.about, "requests": len(one.requests), "bytes": size})
    if not found:
        raise Unable("no model of these traces fits into a tier of any of the sizes")
    for tier in args.tiers:
        console.print(report.trace_table(found, tier))
        console.print(report.rate_table(found, tier))
    total = report.summary(found)
    console.print(report.summary_table(total))
    if args.plot:
        plot.draw(found, args.tiers[0], args.plot)
    return {"seeds": args.seeds, "traces": about, "summary": total, "points": report.data(found)}


def main() -> int:
    return machine.conclude(options(), run)


if __name__ == "__main__":
    sys.exit(main())
