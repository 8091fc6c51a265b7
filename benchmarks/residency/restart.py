"""From the exec of the next daemon to the first acquire of what its predecessor left resident."""

from __future__ import annotations

import argparse
import signal
import statistics
import time
from typing import Any

from rich.console import Console

from benchmarks.machine import Unable
from benchmarks.residency.stage import Stage, words
from weightd import Client

TARGET_S = 1.0
"""DESIGN §9, and no request to the origin."""
HOW = {"SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}


def once(stage: Stage, number: signal.Signals) -> dict[str, float]:
    """Seconds: until the old one had ended; from the next one's exec until it listened, and until a lease was given.
    Raises Unable where anything was loaded or fetched for it."""
    begin = time.perf_counter()
    stage.host.end(number)
    ended = time.perf_counter()
    stage.host.start()
    listening = time.perf_counter()
    with Client(stage.host.socket) as client, client.acquire(stage.big):
        given = time.perf_counter()
        counters = client.status().counters
    if counters.bytes_fetched or counters.bytes_loaded or not counters.hits or counters.adopted < len(stage.refs):
        raise Unable(f"the model was not adopted: {counters}")
    return {"ended": ended - begin, "listening": listening - ended, "given": given - ended}


def measure(stage: Stage, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """By turns; the first of each is a warm-up, where there are several."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in HOW}
    before = stage.requests()
    for turn in range(args.rounds + args.warm_up):
        for name, number in HOW.items():
            with console.status(f"restart after {name}"):
                seconds = once(stage, number)
            found[name] += [seconds] if turn >= args.warm_up else []
    return report(stage, console, found, stage.requests() - before)


def report(stage: Stage, console: Console, found: dict[str, list[dict[str, float]]], requests: int) -> dict[str, Any]:
    console.print(f"\n[bold]Restart with {words(stage.big_size)} resident, to the first acquire of it[/]")
    data: dict[str, Any] = {"seconds": found, "requests": requests, "target": TARGET_S}
    for name, turns in found.items():
        given, listening, ended = (statistics.median(t[k] for t in turns) for k in ("given", "listening", "ended"))
        reached = given < TARGET_S and not requests
        word = "[green]reached[/]" if reached else "[yellow]missed[/]"
        console.print(
            f"after {name}: [bold]{given:.2f} s[/] from exec (target < {TARGET_S:g} s, {word}), {listening:.2f} of them"
            f" until it listens; the old one took {ended:.2f} s to end"
        )
        data[name] = {"given": given, "listening": listening, "ended": ended, "reached": reached}
    console.print(f"requests to the origin: {requests}")
    return data
