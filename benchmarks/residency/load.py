"""NVMe → shared memory: `weightd load`, every part checked, beside fio and cp."""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import contest, machine, nginx, rounds
from benchmarks.machine import GIB, MIB, Unable
from benchmarks.residency import fio
from benchmarks.residency.host import Host, blob, host
from benchmarks.residency.places import Places, places
from benchmarks.residency.reader import Order
from benchmarks.rounds import Contender, Result

TARGET = 0.95
"""DESIGN §9: of fio's O_DIRECT read bandwidth."""
OTHERS = ((4, MIB), (1, 4 * MIB))
"""Threads and bytes of a read of further fios: one may suit the drive better."""
FRESH = "fresh tmpfs pages"
LIMIT_S = 600.0


class Bench:
    """A model of one file of random bytes, on NVMe, of a running daemon."""

    def __init__(self, stack: ExitStack, where: Places, size: int) -> None:
        from weightd import Client

        self.where, self.size = where, size
        source = where.disk / "model.bin"
        nginx.random_file(source, size)
        self.host: Host = stack.enter_context(host(where))
        self.client = stack.enter_context(Client(self.host.socket))
        self.ref = f"file://{source}"
        (file,) = self.client.fetch(self.ref, tier="nvme").files
        self.path = blob(self.host, file.digest)
        source.unlink()
        self.huge = 0

    def ours(self) -> dict[str, float]:
        """Until the whole is resident; then it is evicted, not timed. Raises Unable where nothing was moved."""
        before = self.client.status().counters.bytes_loaded
        begin = time.perf_counter()
        self.client.load(self.ref)
        seconds = time.perf_counter() - begin
        status = self.client.status()
        if status.counters.bytes_loaded - before != self.size:
            raise Unable("weightd did not load the whole model")
        self.huge = status.shm_huge_bytes
        self.client.evict(self.ref)
        return {"transfer": seconds}

    def fio(self, threads: int, block: int) -> dict[str, float]:
        return {"transfer": fio.read(self.path, threads=threads, block=block)}

    def reader(self, fresh: bool) -> dict[str, float]:
        """As many threads, reads and, where they are `fresh`, pages as weightd's; nothing is checked."""
        threads, block = loaders()
        copy = self.where.shm / "copy" if fresh else None
        order = Order(str(self.path), threads, block, str(copy or ""), self.where.huge)
        try:
            return {"transfer": float(contest.process("benchmarks.residency.reader", [order], (), LIMIT_S))}
        finally:
            if copy is not None:
                copy.unlink(missing_ok=True)

    def dd(self) -> dict[str, float]:
        """Past the page cache, one read after the other."""
        return self._copy(lambda copy: ["dd", f"if={self.path}", f"of={copy}", "iflag=direct", "bs=4M", "status=none"])

    def cp(self) -> dict[str, float]:
        """Through the page cache, of which the file is dropped before."""
        return self._copy(lambda copy: ["cp", "--sparse=never", "--reflink=never", str(self.path), copy])

    def _copy(self, command: Callable[[str], list[str]]) -> dict[str, float]:
        copy = self.where.shm / "copy"
        forget(self.path)
        try:
            begin = time.perf_counter()
            subprocess.run(command(str(copy)), check=True)
            return {"transfer": time.perf_counter() - begin}
        finally:
            copy.unlink(missing_ok=True)
            forget(self.path)

    def contenders(self) -> list[Contender]:
        threads, block = loaders()
        found = [Contender("weightd load, checked", self.ours, ours=True)]
        for number, size in dict.fromkeys([(threads, block), *OTHERS]):
            found.append(Contender(fio_name(number, size), partial(self.fio, number, size)))
        found.append(Contender("reads alone, touched memory", partial(self.reader, fresh=False)))
        found.append(Contender(f"reads alone, {FRESH}", partial(self.reader, fresh=True)))
        return [*found, Contender(f"dd, {FRESH}", self.dd), Contender(f"cp, {FRESH}", self.cp)]


def fio_name(threads: int, block: int) -> str:
    return f"fio, {threads} × {block // MIB} MiB"


def loaders() -> tuple[int, int]:
    """Threads with which weightd loads, and the bytes of each of their reads."""
    from weightd.engine.items import LOADERS
    from weightd.engine.receiver import RECEIVE

    return LOADERS, RECEIVE


def forget(path: Path) -> None:
    """The page cache drops the file, which is clean (posix_fadvise(2), POSIX_FADV_DONTNEED)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def measure(args: argparse.Namespace, console: Console, pages: str | None) -> dict[str, Any]:
    """One size of pages: a table and a verdict."""
    with ExitStack() as stack:
        where = stack.enter_context(places(args.disk, pages))
        with console.status(f"writing {args.size / GIB:g} GiB"):
            bench = Bench(stack, where, args.size)
        touch = partial(machine.touch_memory, 2 * args.size, where.shm)
        results = rounds.take_turns(console, bench.contenders(), args.rounds, touch)
        return report(console, results, bench)


def report(console: Console, results: list[Result], bench: Bench) -> dict[str, Any]:
    """Judged beside the best of all that only read: fio has no 2 MiB pages, and a drive may be read faster into those.
    What it is beside fio with as many threads and as large reads is told. What fresh pages cost stands in the table."""
    verdict = rounds.judge([r for r in results if FRESH not in r.name], TARGET)
    alike = rounds.judge([r for r in results if r.ours or r.name == fio_name(*loaders())], None)
    console.print(rounds.table(f"NVMe → shared memory, pages {bench.where.pages}", results, bench.size))
    console.print(f"{verdict.ours} ÷ {verdict.best}, the best that only reads: [bold]{verdict.ratio:.2f} ×[/]"
                  f" ({verdict.goal})")  # fmt: skip
    console.print(f"  ÷ {alike.best}, as many threads and as large reads: {alike.ratio:.2f} ×")
    console.print(f"{bench.huge / MIB:.0f} MiB of {bench.size / MIB:.0f} were in huge pages")
    return {
        "pages": bench.where.pages,
        "size": bench.size,
        "results": rounds.data(results, bench.size),
        "huge_bytes": bench.huge,
        "verdict": verdict.data(),
        "alike": alike.data(),
    }
