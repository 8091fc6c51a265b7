"""`python -m benchmarks.fetch`: how fast a model comes onto the host, beside the strongest downloaders.

Three tables: received into shared memory; received and verified by SHA-256; brought to NVMe and shared memory.
The origin is nginx on the loopback with one file of random bytes in /dev/shm. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine, nginx, ours, rounds
from benchmarks.machine import GIB, MIB, SHM, Unable
from benchmarks.peers import PACKAGES, PEERS
from benchmarks.rounds import Contender

RECEIVE, VERIFY, STORE = "receive", "verify", "store"
TARGETS = {RECEIVE: {"4 KiB": 1.0, "2 MiB": 1.7}, VERIFY: {"": 1.3}, STORE: {"": 1.5}}
"""DESIGN §9. That of the first table depends on the page size: with 4 KiB, page faults bound all."""
TITLES = {
    RECEIVE: "Origin → shared memory (weightd checks every part with xxh3-128, the peers nothing)",
    VERIFY: "Origin → shared memory, verified by SHA-256 (peers: then SHA-256 by OpenSSL)",
    STORE: "Origin → NVMe and shared memory, verified (peers: to disk, SHA-256 by OpenSSL, cp to /dev/shm)",
}
WITHOUT = {RECEIVE: rounds.NONE, VERIFY: frozenset({"sha256sum"}), STORE: frozenset({"sha256sum", "fsync"})}
"""Measured too, but not in the medians. Debian's sha256sum does not use the CPU's SHA instructions, OpenSSL does: the
peers get the faster one. And no peer calls fsync, while weightd always has the bytes on the disk when it says so."""
VARIANTS = {
    VERIFY: {"verified by sha256sum": frozenset({"openssl"})},
    STORE: {
        "verified by sha256sum": frozenset({"openssl", "fsync"}),
        "with fsync, as durable as weightd": frozenset({"sha256sum"}),
    },
}
"""The same, judged with other steps."""
MAX_MEMORY = 12 * GIB


class Bench:
    """Paths and steps that the contenders share. `shm` and `disk` are directories of this run alone."""

    def __init__(self, origin: nginx.Origin, shm: Path, disk: Path) -> None:
        self.origin, self.shm, self.disk = origin, shm, disk
        self.checked: set[str] = set()

    def contenders(self, kind: str, peers: list[str]) -> list[Contender]:
        if kind == STORE:
            us = [Contender("weightd", self.daemon_fetch, ours=True)]
            return us + [Contender(p, self._peer(p, self.peer_store)) for p in peers]
        mode, act = ("plain", self.peer_receive) if kind == RECEIVE else ("hash", self.peer_verify)
        us = [Contender("weightd", lambda: self.receive(mode), ours=True)]
        return us + [Contender(p, self._peer(p, act)) for p in peers]

    def _peer(self, name: str, act: Callable[[str], dict[str, float]]) -> Callable[[], dict[str, float]]:
        return lambda: act(name)

    def receive(self, mode: str) -> dict[str, float]:
        answer = _json("benchmarks.ours", self.origin.endpoint, mode)
        if answer["sha256"] != self.origin.sha256:
            raise Unable("weightd received other bytes than the origin has")
        return {"transfer": answer["seconds"]}

    def _get(self, name: str, file: Path) -> float:
        answer = _json("benchmarks.peers", name, self.origin.endpoint, str(self.origin.size), str(file))
        if name not in self.checked and _sha256sum(file) != self.origin.sha256:
            raise Unable(f"{name} received other bytes than the origin has")
        self.checked.add(name)
        return float(answer["seconds"])

    def peer_receive(self, name: str) -> dict[str, float]:
        file = self.shm / "received"
        try:
            return {"transfer": self._get(name, file)}
        finally:
            file.unlink(missing_ok=True)

    def peer_verify(self, name: str) -> dict[str, float]:
        file = self.shm / "received"
        try:
            return {"transfer": self._get(name, file), **self._verify(file)}
        finally:
            file.unlink(missing_ok=True)

    def peer_store(self, name: str) -> dict[str, float]:
        """fsync comes last and is counted apart: the peers do not do it, weightd always does."""
        file, copy = self.disk / "received", self.shm / "copy"
        try:
            steps = {"transfer": self._get(name, file), **self._verify(file)}
            steps["cp"] = _timed(["cp", str(file), str(copy)])
            steps["fsync"] = _timed(["sync", str(file)])
            return steps
        finally:
            file.unlink(missing_ok=True)
            copy.unlink(missing_ok=True)

    def _verify(self, file: Path) -> dict[str, float]:
        """The same file twice, by the two ways."""
        steps = {}
        for name, digest in (("openssl", _openssl), ("sha256sum", _sha256sum)):
            begin = time.perf_counter()
            if digest(file) != self.origin.sha256:
                raise Unable(f"{name} disagrees")
            steps[name] = time.perf_counter() - begin
        return steps

    def daemon_fetch(self) -> dict[str, float]:
        """Through the daemon, as a user does: `Client.fetch` of a ref that it never saw, on an empty state."""
        from weightd import Client

        home = self.disk / "daemon"
        try:
            with ours.daemon(home) as daemon, Client(str(daemon.socket)) as client:
                begin = time.perf_counter()
                model = client.fetch(self.origin.url)
                seconds = time.perf_counter() - begin
                if self.origin.sha256 not in str(model.files[0].digest):
                    raise Unable("the daemon received other bytes than the origin has")
            return {"fetch": seconds}
        finally:
            shutil.rmtree(home, ignore_errors=True)


def _json(module: str, *arguments: str) -> Any:
    result = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=900)
    if result.returncode:
        raise Unable(f"{module} {arguments[0]}: {result.stderr.strip()[-1000:]}")
    return json.loads(result.stdout)


def _sha256sum(file: Path) -> str:
    return subprocess.run(["sha256sum", str(file)], check=True, capture_output=True, text=True).stdout.split()[0]


def _openssl(file: Path) -> str:
    """By hashlib, which is OpenSSL."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _timed(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begin


def parse_size(text: str) -> int:
    """ "2GiB", "512MiB" or plain bytes."""
    match = re.fullmatch(r"(\d+)\s*(GiB|MiB|KiB|)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2GiB")
    return int(match[1]) * {"GiB": GIB, "MiB": MIB, "KiB": 1024, "": 1}[match[2]]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fetch", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--size", type=parse_size, default=2 * GIB, help="of the file; default 2GiB")
    parser.add_argument("--rounds", type=int, default=5, help="after one warm-up round; default 5")
    parser.add_argument("--pages", choices=["4k", "2m"], help="remount /dev/shm for the run (root); default: as it is")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a directory on NVMe; default /var/tmp")
    parser.add_argument("--tables", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    return parser.parse_args()


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything; returns what goes into the JSON. Raises Unable."""
    for command, package in (("nginx", "nginx"), ("aria2c", "aria2"), ("curl", "curl"), ("sha256sum", "coreutils")):
        machine.need(command, package)
    needed = 4 * args.size
    if needed > min(MAX_MEMORY, machine.memory_available()):
        raise Unable(f"a size of {args.size / GIB:g} GiB takes {needed / GIB:g} GiB of memory; choose a smaller --size")
    with ExitStack() as stack:
        pages = stack.enter_context(machine.pages(args.pages))
        shm = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weightd-bench-", dir=SHM)))
        disk = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weightd-bench-", dir=args.disk)))
        facts = {**machine.facts(*PACKAGES), "nginx": nginx.version(), "pages": pages, "size": args.size}
        console.print(f"{machine.describe(facts)}; /dev/shm pages {pages}; {args.size / GIB:g} GiB from nginx")
        console.print(
            f"Before each turn {2 * args.size / GIB:g} GiB of /dev/shm are filled and freed: nobody meets new memory."
        )
        (disk / "nginx").mkdir()
        origin = stack.enter_context(nginx.origin(disk / "nginx", shm / "root", args.size))
        bench = Bench(origin, shm, disk)
        return {"machine": facts, "tables": {k: measure(bench, k, args, console, pages) for k in args.tables}}


def measure(bench: Bench, kind: str, args: argparse.Namespace, console: Console, pages: str) -> dict[str, Any]:
    """One table."""
    touch = partial(machine.touch_memory, 2 * args.size)
    results = rounds.take_turns(console, bench.contenders(kind, args.peers), args.rounds, touch)
    without = WITHOUT[kind]
    target = next(t for page, t in TARGETS[kind].items() if page in pages)
    verdict = rounds.judge(results, target, without)
    console.print(rounds.table(TITLES[kind], results, bench.origin.size, without))
    console.print(verdict.text())
    variants = {name: rounds.judge(results, target, steps) for name, steps in VARIANTS.get(kind, {}).items()}
    for name, variant in variants.items():
        console.print(f"  peers {name}: {variant.ratio:.2f} × {variant.best}")
    return {
        "results": rounds.data(results, bench.origin.size, without),
        "verdict": verdict.data(),
        "variants": {name: variant.data() for name, variant in variants.items()},
    }


def main() -> int:
    args = options()
    console = machine.console()
    machine.end_by_sigterm()
    try:
        found = run(args, console)
    except Unable as e:
        console.print(f"[bold red]Not measured:[/] {e}")
        return 1
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
