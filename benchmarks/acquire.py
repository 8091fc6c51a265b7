"""`python -m benchmarks.acquire`: what it costs a worker to acquire a resident model, beside a bare gRPC call.

A small and a big model are resident; acquires of both and echo calls take turns in blocks. Then the same while the
daemon fetches at full speed. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import machine, nginx, ours
from benchmarks.fetch import parse_size
from benchmarks.machine import GIB, MIB, SHM, Unable

BLOCK = 50
"""Calls of one kind in a row."""
TARGET_MEDIAN, TARGET_BUSY = 1.5, 5.0
"""DESIGN §9: of the echo's median; of the idle p99."""
TENSOR = "layers.{}.weight"


class Samples(NamedTuple):
    """Seconds of each call, sorted."""

    name: str
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p99(self) -> float:
        return self.seconds[min(len(self.seconds) - 1, int(len(self.seconds) * 0.99))]


Call = Callable[[], float]
"""Does it once and returns the seconds that count."""


def synthetic(path: Path, size: int, tensors: int = 400) -> None:
    """A valid safetensors file of about `size` bytes: bf16 matrices of zeros, sparse on disk."""
    each = size // tensors // 2 * 2
    header = {
        TENSOR.format(i): {"dtype": "BF16", "shape": [each // 2], "data_offsets": [i * each, (i + 1) * each]}
        for i in range(tensors)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + each * tensors)


@contextmanager
def echo(address: Path) -> Iterator[grpc.Channel]:
    """A channel to an echo server in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.echo", str(address)]
    process = machine.begin(command)
    try:
        with grpc.insecure_channel(f"unix:{address}") as channel:
            grpc.channel_ready_future(channel).result(30)
            yield channel
    finally:
        process.terminate()
        process.wait()


def echo_calls(channel: grpc.Channel) -> dict[str, Call]:
    unary: Any = channel.unary_unary("/echo/Unary")
    stream: Any = channel.unary_stream("/echo/Stream")
    payload = b"x" * 64

    def call_unary() -> float:
        begin = time.perf_counter()
        unary(payload)
        return time.perf_counter() - begin

    def call_stream() -> float:
        begin = time.perf_counter()
        answers = stream(payload)
        next(answers)
        seconds = time.perf_counter() - begin
        answers.cancel()
        return seconds

    return {"echo, unary": call_unary, "echo, stream left open": call_stream}


def acquire_call(client: Any, ref: str) -> Call:
    """Until the lease is there: the handles came. Its release is not counted, as the stream's cancel is not."""

    def call() -> float:
        begin = time.perf_counter()
        lease = client.acquire(ref)
        seconds = time.perf_counter() - begin
        lease.release()
        return seconds

    return call


def first_tensor_call(client: Any, ref: str, tensor: str) -> Call:
    """Acquire, map, parse the header, one view, one value read."""

    def call() -> float:
        begin = time.perf_counter()
        with client.acquire(ref) as lease:
            lease[tensor].flat[0]
            return time.perf_counter() - begin

    return call


def release_call(client: Any, ref: str) -> Call:
    """Acquire and release, one after the other."""

    def call() -> float:
        begin = time.perf_counter()
        with client.acquire(ref):
            pass
        return time.perf_counter() - begin

    return call


def in_turns(calls: dict[str, Call], count: int) -> dict[str, Samples]:
    """`count` of each, in blocks; the first block of each is thrown away."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-(-count // BLOCK) + 1):
        for name, call in calls.items():
            block = [call() for _ in range(BLOCK)]
            found[name] += block if number else []
    return {name: Samples(name, sorted(seconds)) for name, seconds in found.items()}


@contextmanager
def fetching(daemon: ours.Daemon, origin: nginx.Origin) -> Iterator[Path]:
    """The daemon fetches all the while. Yields the log of seconds; Raises Unable when not one fetch ended."""
    log = daemon.state.parent / "fetching"
    command = [sys.executable, "-m", "benchmarks.fetching", str(daemon.socket), origin.endpoint]
    with log.open("wb") as out:
        process = machine.begin(command, stdout=out)
    try:
        _first_line(process, log)
        yield log
    finally:
        process.terminate()
        process.wait()


def _first_line(process: subprocess.Popen[bytes], log: Path) -> None:
    """Until one fetch is complete, so that the next is under way."""
    until = time.monotonic() + 300
    while not log.read_bytes():
        if process.poll() is not None or time.monotonic() > until:
            raise Unable("the fetch beside the acquires failed")
        time.sleep(0.05)


def table(title: str, samples: list[Samples], base: Samples) -> Table:
    out = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for n, head in enumerate(("microseconds", "median", "p99", "calls", "× echo's median", "× echo's p99")):
        out.add_column(head, justify="right" if n else "left", no_wrap=True)
    for s in samples:
        cells = (f"{s.median * 1e6:,.0f}", f"{s.p99 * 1e6:,.0f}", str(len(s.seconds)))
        ratios = (f"{s.median / base.median:.2f}", f"{s.p99 / base.p99:.2f}")
        out.add_row(s.name, *cells, *ratios, style="" if s.name.startswith("echo") else "bold")
    return out


def verdict(text: str, ratio: float, target: float) -> tuple[str, dict[str, Any]]:
    """For people and for the JSON; here smaller is better."""
    reached = ratio <= target
    word = "[green]reached[/]" if reached else "[yellow]missed[/]"
    shown = f"{text}: [bold]{ratio:.2f} ×[/] (target ≤ {target:g} ×, {word})"
    return shown, {"what": text, "ratio": ratio, "target": target, "reached": reached}


def profile(console: Console, call: Call, count: int) -> None:
    """Where the client's share of an acquire goes; the rest is waiting for the daemon."""
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(count):
        call()
    profiler.disable()
    console.print(f"\n[bold]Profile of {count} acquires in the client, by own time[/]")
    stats = pstats.Stats(profiler, stream=sys.stdout)
    stats.sort_stats("tottime").print_stats(18)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.acquire", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--small", type=parse_size, default=90 * MIB, help="default 90MiB, as MiniLM")
    parser.add_argument("--big", type=parse_size, default=4 * GIB, help="default 4GiB")
    parser.add_argument("--fetch", type=parse_size, default=GIB, help="of the file fetched beside; default 1GiB")
    parser.add_argument("--calls", type=int, default=1000, help="of each kind; default 1000")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a directory on NVMe; default /var/tmp")
    parser.add_argument("--profile", action="store_true", help="also print where the client's time goes")
    return parser.parse_args()


class Bench:
    """A daemon with both models resident, and an echo server."""

    def __init__(self, stack: ExitStack, args: argparse.Namespace, console: Console) -> None:
        from weightd import Client

        self.args, self.console = args, console
        shm = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weightd-bench-", dir=SHM)))
        disk = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weightd-bench-", dir=args.disk)))
        (disk / "nginx").mkdir()
        self.origin = stack.enter_context(nginx.origin(disk / "nginx", shm / "root", args.fetch))
        self.daemon = stack.enter_context(ours.daemon(disk / "daemon"))
        self.client = stack.enter_context(Client(str(self.daemon.socket)))
        self.channel = stack.enter_context(echo(disk / "echo.sock"))
        self.refs: dict[str, str] = {}
        for label, size in (("small", args.small), ("big", args.big)):
            name = f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
            path = disk / f"{label}.safetensors"
            synthetic(path, size)
            with console.status(f"making a model of {name} resident"):
                self.client.fetch(f"file://{path}")
            self.refs[name] = f"file://{path}"

    def calls(self) -> dict[str, Call]:
        every = echo_calls(self.channel)
        for name, ref in self.refs.items():
            every[f"acquire, {name}"] = acquire_call(self.client, ref)
        for name, ref in self.refs.items():
            every[f"acquire to first tensor, {name}"] = first_tensor_call(self.client, ref, TENSOR.format(7))
        for name, ref in self.refs.items():
            every[f"acquire and release, {name}"] = release_call(self.client, ref)
        return every


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything; returns what goes into the JSON. Raises Unable."""
    needed = args.small + args.big + 3 * args.fetch
    if needed > min(12 * GIB, machine.memory_available()):
        raise Unable(f"this takes {needed / GIB:.1f} GiB of memory; choose a smaller --big or --fetch")
    facts = {**machine.facts("grpcio", "uvloop"), "nginx": nginx.version()}
    console.print(machine.describe(facts))
    with ExitStack() as stack:
        bench = Bench(stack, args, console)
        calls = bench.calls()
        with console.status("idle"):
            idle = in_turns(calls, args.calls)
        with fetching(bench.daemon, bench.origin) as log, console.status("while a fetch runs"):
            before = machine.turns(bench.daemon.pid)
            busy = in_turns(calls, args.calls)
            loop = machine.turns(bench.daemon.pid).since(before)
            fetched = [float(line) for line in log.read_text().split()]
        if args.profile:
            name = next(iter(bench.refs))
            profile(console, calls[f"acquire, {name}"], 500)
    return {"machine": facts, **report(console, idle, busy, fetched, loop, args)}


def report(
    console: Console,
    idle: dict[str, Samples],
    busy: dict[str, Samples],
    fetched: list[float],
    loop: machine.Turns,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Tables and verdicts."""
    base = idle["echo, unary"]
    console.print(table("A resident model, idle daemon", list(idle.values()), base))
    console.print(table("The same while the daemon fetches", list(busy.values()), busy["echo, unary"]))
    rate = args.fetch / statistics.median(fetched) / GIB
    console.print(f"beside: {len(fetched)} fetches of {args.fetch / GIB:g} GiB, {rate:.2f} GiB/s each (median)")
    console.print(f"the daemon's loop ran for {loop.ran:.1f} s, and waited {loop.waited:.1f} s more for a core")
    acquires = [n for n in idle if n.startswith("acquire, ")]
    verdicts = [verdict(f"{n} ÷ echo, medians", idle[n].median / base.median, TARGET_MEDIAN) for n in acquires]
    verdicts += [verdict(f"{n}, p99 while fetching ÷ idle", busy[n].p99 / idle[n].p99, TARGET_BUSY) for n in acquires]
    for text, _ in verdicts:
        console.print(text)
    echo_busy = busy["echo, unary"].p99 / base.p99
    console.print(f"  (the echo server, which fetches nothing, on the same busy cores: {echo_busy:.2f} ×)")
    small, big = (idle[n].median for n in acquires)
    console.print(f"big ÷ small, medians: {big / small:.2f} ×")
    return {
        "idle": [_data(s) for s in idle.values()],
        "fetching": [_data(s) for s in busy.values()],
        "fetch_seconds": fetched,
        "daemon_loop": loop._asdict(),
        "verdicts": [data for _, data in verdicts],
    }


def _data(samples: Samples) -> dict[str, Any]:
    return {"name": samples.name, "median": samples.median, "p99": samples.p99, "calls": len(samples.seconds)}


def main() -> int:
    return machine.conclude(options(), run)


if __name__ == "__main__":
    sys.exit(main())
