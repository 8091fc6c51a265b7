"""An acquire while 1, 100 and 1,000 leases are open, of a small and a big model, idle and while a fetch runs, beside a
bare gRPC call."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import acquire, machine
from benchmarks.acquire import BLOCK, TARGET_BUSY, TARGET_MEDIAN, Call, Samples
from benchmarks.machine import GIB
from benchmarks.residency.children import children
from benchmarks.residency.stage import Stage

ECHO = "echo, unary"
IDLE, BUSY = "idle", "while fetching"


class Point(NamedTuple):
    """Of one kind of call, with `leases` open: p50 and p99 of each round, in seconds."""

    name: str
    leases: int
    state: str
    medians: list[float]
    p99s: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.medians)

    @property
    def p99(self) -> float:
        """The median of the rounds'."""
        return statistics.median(self.p99s)


def measure(stage: Stage, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Two tables and the verdicts."""
    points: list[Point] = []
    beside: dict[str, Any] = {}
    with acquire.echo(stage.where.sockets / "echo.sock") as channel:
        calls = {ECHO: acquire.echo_calls(channel)[ECHO]}
        calls |= {name: acquire.acquire_call(stage.client, ref) for name, ref in stage.refs.items()}
        for count in args.leases:
            with held(stage, count), console.status(f"{count} leases"):
                points += rounds(calls, count, IDLE, args)
                with fetching(stage, beside, count):
                    points += rounds(calls, count, BUSY, args)
    return report(console, points, beside, args)


@contextmanager
def held(stage: Stage, count: int) -> Iterator[None]:
    """So many leases less one, which is the one that is measured; both models' in turn, in another process."""
    if count == 1:
        yield
        return
    with children(1, "benchmarks.residency.holders", stage.host.socket, count - 1, *stage.refs.values()):
        yield


@contextmanager
def fetching(stage: Stage, beside: dict[str, Any], count: int) -> Iterator[None]:
    """The daemon fetches all the while; `beside` gets how fast, and how long its loop waited for a core."""
    with acquire.fetching(stage.host.daemon, stage.origin) as log:
        before, done = machine.turns(stage.host.daemon.pid), len(log.read_text().split())
        yield
        loop = machine.turns(stage.host.daemon.pid).since(before)
        seconds = [float(line) for line in log.read_text().split()]
        beside[str(count)] = {"fetch_seconds": seconds[done:] or seconds[-1:], "loop": loop._asdict()}


def rounds(calls: dict[str, Call], count: int, state: str, args: argparse.Namespace) -> list[Point]:
    """Each round has `args.calls` of each kind, in blocks by turns; the first round is a warm-up, where there are
    several."""
    points = {name: Point(name, count, state, [], []) for name in calls}
    for number in range(args.rounds + args.warm_up):
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(-(-args.calls // BLOCK)):
            for name, call in calls.items():
                found[name] += [call() for _ in range(BLOCK)]
        for name, seconds in found.items() if number >= args.warm_up else ():
            samples = Samples(name, sorted(seconds))
            points[name].medians.append(samples.median)
            points[name].p99s.append(samples.p99)
    return list(points.values())


def table(title: str, points: list[Point], of: Point) -> Table:
    """Microseconds, and ratios to the echo's with as many leases."""
    out = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for n, head in enumerate(("microseconds", "leases", "p50", "p99", "× echo's p50", "× echo's p99")):
        out.add_column(head, justify="right" if n else "left", no_wrap=True)
    for p in points:
        of = p if p.name == ECHO else of
        cells = (str(p.leases), f"{p.median * 1e6:,.0f}", f"{p.p99 * 1e6:,.0f}")
        ratios = (f"{p.median / of.median:.2f}", f"{p.p99 / of.p99:.2f}")
        out.add_row(p.name, *cells, *ratios, style="" if p.name == ECHO else "bold")
    return out


def report(console: Console, points: list[Point], beside: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    for state in (IDLE, BUSY):
        some = [p for p in points if p.state == state]
        console.print(table(f"Acquire of a resident model, {state}", some, some[0]))
    for leases, found in beside.items():
        rate = args.fetch / statistics.median(found["fetch_seconds"]) / GIB
        console.print(f"beside {leases} leases: fetches of {args.fetch / GIB:.2g} GiB at {rate:.2f} GiB/s;"
                      f" the loop waited {found['loop']['waited']:.1f} s for a core")  # fmt: skip
    by = {(p.name, p.leases, p.state): p for p in points}
    verdicts = []
    for (name, count, state), p in by.items():
        if name == ECHO or state != IDLE:
            continue
        label = f"acquire, {name}, {count} leases"
        echo, busy = by[ECHO, count, IDLE], by[name, count, BUSY]
        verdicts.append(acquire.verdict(f"{label}: p50 ÷ echo's", p.median / echo.median, TARGET_MEDIAN))
        verdicts.append(acquire.verdict(f"{label}: p99 while fetching ÷ idle", busy.p99 / p.p99, TARGET_BUSY))
    for text, _ in verdicts:
        console.print(text)
    data = [{**p._asdict(), "median": p.median, "p99": p.p99} for p in points]
    return {"points": data, "beside": beside, "verdicts": [d for _, d in verdicts]}
