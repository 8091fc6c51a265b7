"""An eviction of the big model, and what others see of it meanwhile."""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from types import TracebackType
from typing import Any

from rich.console import Console

from benchmarks import acquire
from benchmarks.machine import GIB, Unable
from benchmarks.residency.stage import Stage, words
from weightd.core.errors import WeightdError

QUIET_S = 0.5
"""For how long acquires are timed before an eviction."""


class Prober:
    """Acquires of a model, one after the other, from a thread, until it is left, which raises what one raised."""

    def __init__(self, call: acquire.Call) -> None:
        self.seconds: list[float] = []
        self._call, self._over = call, threading.Event()
        self._error: WeightdError | None = None
        self._thread = threading.Thread(target=self._run, name="prober")

    def _run(self) -> None:
        try:
            while not self._over.is_set() or not self.seconds:
                self.seconds.append(self._call())
        except WeightdError as error:
            self._error = error

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None and e is None:
            raise self._error


def measure(stage: Stage, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The big model is evicted and loaded again, `args.rounds` times. Raises Unable where it did not go."""
    evictions, loads, quiet, meanwhile = [], [], [], []
    call = acquire.acquire_call(stage.client, stage.small)
    for _ in range(args.rounds):
        with console.status(f"evicting {words(stage.big_size)}"):
            with Prober(call) as before:
                time.sleep(QUIET_S)
            with Prober(call) as during:
                begin = time.perf_counter()
                freed = stage.client.evict(stage.big)
                evictions.append(time.perf_counter() - begin)
            if freed.shm < stage.big_size or freed.draining:
                raise Unable(f"the eviction freed {freed.shm} bytes, {freed.draining} of them still mapped")
        quiet.append(max(before.seconds))
        meanwhile.append(max(during.seconds))
        with console.status(f"loading {words(stage.big_size)}"):
            begin = time.perf_counter()
            stage.client.load(stage.big)
            loads.append(time.perf_counter() - begin)
    return report(stage, console, {"evict": evictions, "load": loads, "quiet": quiet, "meanwhile": meanwhile})


def report(stage: Stage, console: Console, found: dict[str, list[float]]) -> dict[str, Any]:
    """Medians over rounds; `quiet` and `meanwhile` are the slowest acquires of the small model in each."""
    medians = {name: statistics.median(values) for name, values in found.items()}
    evict, quiet, meanwhile = (medians[n] * 1e3 for n in ("evict", "quiet", "meanwhile"))
    console.print(f"\n[bold]Eviction of {words(stage.big_size)}, pages {stage.where.pages}[/]")
    console.print(f"evict: [bold]{evict:.1f} ms[/] (up to {max(found['evict']) * 1e3:.1f})")
    console.print(f"slowest acquire of the small model meanwhile: {meanwhile:.1f} ms; before: {quiet:.1f} ms")
    console.print(f"load again: {medians['load']:.2f} s, {stage.big_size / medians['load'] / GIB:.2f} GiB/s")
    return {"size": stage.big_size, "pages": stage.where.pages, "seconds": found, "medians": medians}
