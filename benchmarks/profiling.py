"""Where the CPU goes while weightd receives: seconds by kind of thread, and within receivers by step.

Not a sampling profiler: the steps are few and long, so each is measured with the thread's own CPU clock
(CLOCK_THREAD_CPUTIME_ID), at a cost of less than a microsecond for some thousand calls.
"""

from __future__ import annotations

import re
import resource
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

STEPS = {
    "prepare memory": ("weightd.engine.buffers", "SegmentBuffers.acquire"),
    "ask, read the head": ("weightd.sources.http_reader", "HttpReader.start"),
    "receive": ("weightd.sources.http_reader", "HttpReader.readinto"),
    "end of the body": ("weightd.sources.http_reader", "HttpReader.finish"),
    "xxh3-128 of a part": ("xxhash", "xxh3_128_digest"),
    "seal: unmap": ("weightd.storage.tmpfs", "TmpfsSegment.seal"),
    "(free it again)": ("weightd.storage.tmpfs", "TmpfsSegment.unlink"),
    "SHA-256": ("weightd.engine.jobs", "Frontier.drain"),
    "write to disk": ("weightd.storage.ingests", "FileIngest.write"),
    "record in the ledger": ("weightd.storage.ingests", "FileIngest.record"),
}
"""By what they are called in the table: functions that do not call each other."""
OTHERS = {"asyncio": "around the transfer", "Thread": "the loop's executor"}


class Cost(NamedTuple):
    """Seconds on a core, seconds that passed, and calls."""

    cpu: float = 0.0
    wall: float = 0.0
    calls: int = 0

    def plus(self, cpu: float, wall: float) -> Cost:
        return Cost(self.cpu + cpu, self.wall + wall, self.calls + 1)


class Profile:
    """Patches the steps of this process while it is entered. One per process."""

    def __init__(self) -> None:
        self._steps: defaultdict[tuple[str, str], Cost] = defaultdict(Cost)
        self._threads: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
        self._lock = threading.Lock()
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Profile:
        import importlib

        for step, (module, path) in STEPS.items():
            owner: Any = importlib.import_module(module)
            *outer, name = path.split(".")
            for part in outer:
                owner = getattr(owner, part)
            self._patch(owner, name, self._timed(step, getattr(owner, name)))
        self._patch(threading.Thread, "run", self._counted(threading.Thread.run))
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._cpu = time.process_time() - self._cpu
        self._wall = time.perf_counter() - self._wall
        for undo in self._undo:
            undo()

    def _patch(self, owner: Any, name: str, new: Any) -> None:
        old = getattr(owner, name)
        self._undo.append(lambda: setattr(owner, name, old))
        setattr(owner, name, new)

    def _timed(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
                key = (_kind(threading.current_thread().name), step)
                with self._lock:
                    self._steps[key] = self._steps[key].plus(cpu, wall)

        return timed

    def _counted(self, run: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
        def counted(thread: threading.Thread) -> None:
            try:
                run(thread)
            finally:
                used = resource.getrusage(resource.RUSAGE_THREAD)
                with self._lock:
                    total = self._threads[_kind(thread.name)]
                    for n, value in enumerate((1, used.ru_utime, used.ru_stime)):
                        total[n] += value

        return counted

    def data(self) -> dict[str, Any]:
        """Call after it was left. Seconds; `other` of a kind of thread is what no step of it accounts for."""
        threads: list[dict[str, Any]] = []
        for kind, (count, user, system) in sorted(self._threads.items(), key=lambda i: -sum(i[1][1:])):
            steps = {step: cost for (of, step), cost in self._steps.items() if of == kind}
            other = user + system - sum(c.cpu for c in steps.values())
            listed = [{"step": s, **c._asdict()} for s, c in sorted(steps.items(), key=lambda i: -i[1].cpu)]
            threads.append(
                {"kind": kind, "count": count, "user": user, "system": system, "other": other, "steps": listed}
            )
        rest = self._cpu - sum(t["user"] + t["system"] for t in threads)
        return {"wall": self._wall, "cpu": self._cpu, "main": rest, "threads": threads}


def _kind(name: str) -> str:
    """A thread's name without what tells it from its like: "weightd-receive-3", "weightd-hash_0"."""
    name = re.sub(r"([-_]\d+)?( \(.*\))?$", "", name)
    return OTHERS.get(name, name)


def table(title: str, data: dict[str, Any], size: int) -> Table:
    """For people: seconds of CPU for each GiB. `waiting` is time in a step without a core, for bytes or for others."""
    gib = size / (1 << 30)
    out = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for n, head in enumerate(("CPU seconds for each GiB", "CPU", "user", "system", "waiting", "calls")):
        out.add_column(head, justify="right" if n else "left", no_wrap=True)
    for thread in data["threads"]:
        cpu = (thread["user"] + thread["system"], thread["user"], thread["system"])
        out.add_row(f"{thread['kind']} × {thread['count']}", *(f"{c / gib:.3f}" for c in cpu), style="bold")
        for s in thread["steps"]:
            out.add_row(
                f"  {s['step']}",
                f"{s['cpu'] / gib:.3f}",
                "",
                "",
                f"{(s['wall'] - s['cpu']) / gib:.3f}",
                str(s["calls"]),
            )
        out.add_row("  other", f"{thread['other'] / gib:.3f}")
    out.add_row("main thread", f"{data['main'] / gib:.3f}", style="bold")
    out.add_row("all", f"{data['cpu'] / gib:.3f}", style="bold", end_section=True)
    return out
