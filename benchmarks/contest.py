"""The tables of `benchmarks.fetch`: what weightd and its peers do in each, and what counts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import ours, peers
from benchmarks.machine import Unable, finish
from benchmarks.nginx import Origin, Served
from benchmarks.rounds import NONE, Contender

RECEIVE, VERIFY, DISK, STORE = "receive", "verify", "disk", "store"
TARGETS: dict[str, dict[str, float | None]] = {
    RECEIVE: {"4 KiB": 1.0, "2 MiB": 1.7},
    VERIFY: {"": 1.3},
    DISK: {"": None},
    STORE: {"": 1.5},
}
"""DESIGN §9. That of the first table depends on the page size: with 4 KiB, page faults bound all."""
TITLES = {
    RECEIVE: "Origin → shared memory (weightd checks every part with xxh3-128, the peers nothing)",
    VERIFY: "Origin → shared memory, verified by SHA-256 (peers: then SHA-256 by OpenSSL)",
    DISK: "Origin → NVMe, verified (peers: to disk, SHA-256 by OpenSSL)",
    STORE: "Origin → NVMe and shared memory, verified (peers: to disk, SHA-256 by OpenSSL, cp to /dev/shm)",
}
WITHOUT = {
    RECEIVE: NONE,
    VERIFY: frozenset({"sha256sum"}),
    DISK: frozenset({"sha256sum", "fsync"}),
    STORE: frozenset({"sha256sum", "fsync"}),
}
"""Measured too, but not in the medians. Debian's sha256sum does not use the CPU's SHA instructions, OpenSSL does: the
peers get the faster one. And no peer calls fsync, while weightd always has the bytes on the disk when it says so."""
_BY_SHA256SUM = {"verified by sha256sum": frozenset({"openssl"})}
_TO_DISK = {
    "verified by sha256sum": frozenset({"openssl", "fsync"}),
    "with fsync, as durable as weightd": frozenset({"sha256sum"}),
}
VARIANTS: dict[str, dict[str, frozenset[str]]] = {RECEIVE: {}, VERIFY: _BY_SHA256SUM, DISK: _TO_DISK, STORE: _TO_DISK}
"""The same, judged with other steps."""


def target(kind: str, pages: str) -> float | None:
    """Of a table, on pages as `machine.pages` describes them."""
    return next(t for page, t in TARGETS[kind].items() if page in pages)


class Contest:
    """Paths and steps that the contenders share. `shm` and `disk` are directories of this run alone; `weightd` are the
    settings by name with which weightd takes part."""

    def __init__(self, origin: Origin, shm: Path, disk: Path, weightd: Mapping[str, ours.Settings]) -> None:
        self.origin, self.shm, self.disk, self.weightd = origin, shm, disk, weightd
        self.checked: set[str] = set()

    def contenders(self, kind: str, names: Iterable[str]) -> list[Contender]:
        us = [Contender(name, self._ours(kind, settings), ours=True) for name, settings in self.weightd.items()]
        return us + [Contender(name, self._peer(kind, name)) for name in names]

    def _ours(self, kind: str, settings: ours.Settings) -> Callable[[], dict[str, float]]:
        if kind in (DISK, STORE):
            tier = "nvme" if kind == DISK else "shm"
            return lambda: {"fetch": ours.daemon_fetch(self.disk / "daemon", self.origin, settings, tier)}
        return lambda: {"transfer": receive(self.origin, settings, hashing=kind == VERIFY)["seconds"]}

    def _peer(self, kind: str, name: str) -> Callable[[], dict[str, float]]:
        base = self.disk if kind in (DISK, STORE) else self.shm

        def act() -> dict[str, float]:
            directory, copy = base / "received", self.shm / "copy"
            directory.mkdir()
            try:
                return self._steps(kind, name, directory, copy)
            finally:
                shutil.rmtree(directory)
                shutil.rmtree(copy, ignore_errors=True)

        return act

    def _steps(self, kind: str, name: str, directory: Path, copy: Path) -> dict[str, float]:
        """fsync comes last and is counted apart: the peers do not do it, weightd always does."""
        goal = peers.goal(self.origin, directory)
        steps = {"transfer": get(name, goal, () if name in self.checked else self.origin.files)}
        self.checked.add(name)
        if kind != RECEIVE:
            steps |= self._verify(directory)
        if kind == STORE:
            steps["cp"] = _timed(["cp", "-r", str(directory), str(copy)])
        if kind in (DISK, STORE):
            steps["fsync"] = _timed(["sync", *map(str, directory.iterdir())])
        return steps

    def _verify(self, directory: Path) -> dict[str, float]:
        """The same files twice, by the two ways."""
        files = {peers.landed(directory, f): f.sha256 for f in self.origin.files}
        steps = {}
        for name, digests in (("openssl", _openssl), ("sha256sum", _sha256sum)):
            begin = time.perf_counter()
            found = digests([*files])
            steps[name] = time.perf_counter() - begin
            if found != [*files.values()]:
                raise Unable(f"{name} disagrees")
        return steps


def receive(
    origin: Origin, settings: ours.Settings, *, within: Sequence[str] = (), limit: float = 900, **more: Any
) -> Any:
    """weightd's receiver alone, in a process of its own. Raises Unable when it got other bytes than the origin has."""
    answer = process("benchmarks.ours", [ours.order(origin, settings, **more)], within, limit)
    if answer["sha256"] != {f.name: f.sha256 for f in origin.files}:
        raise Unable("weightd received other bytes than the origin has")
    return answer


def get(
    name: str, goal: peers.Goal, check: Iterable[Served] = (), *, within: Sequence[str] = (), limit: float = 900
) -> float:
    """Seconds that a peer takes, in a process of its own. Raises Unable for other bytes than those of `check`."""
    answer = process("benchmarks.peers", [name, goal], within, limit)
    for file in check:
        if _sha256sum([peers.landed(Path(goal.directory), file)]) != [file.sha256]:
            raise Unable(f"{name} received other bytes than the origin has")
    return float(answer["seconds"])


def process(module: str, arguments: Iterable[Any], within: Sequence[str], limit: float) -> Any:
    """What a module prints as JSON. `arguments`: text as it is, else as JSON. `limit` in seconds. Raises Unable."""
    texts = [a if isinstance(a, str) else msgspec.json.encode(a).decode() for a in arguments]
    command = [*within, sys.executable, "-m", module, *texts]
    try:
        result = finish(command, limit)
    except subprocess.TimeoutExpired:
        raise Unable(f"not done after {limit:.0f} s") from None
    if result.returncode:
        raise Unable(_reason(result.stderr) or f"{module} ended with {result.returncode}")
    return json.loads(result.stdout)


def _reason(stderr: str) -> str:
    """The line of a traceback that names the exception, else the last line."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Unable|Exhausted|Corruption)\b", line)]
    return (named or lines or [""])[-1].removeprefix("benchmarks.machine.Unable: ")[:500]


def _side_by_side(digest: Callable[[Path], str], files: Sequence[Path]) -> list[str]:
    """As many files at a time as there are cores: weightd hashes several at a time too."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(digest, files))


def _sha256sum(files: Sequence[Path]) -> list[str]:
    def digest(file: Path) -> str:
        return subprocess.run(["sha256sum", str(file)], check=True, capture_output=True, text=True).stdout.split()[0]

    return _side_by_side(digest, files)


def _openssl(files: Sequence[Path]) -> list[str]:
    """By hashlib, which is OpenSSL, and lets go of the interpreter's lock meanwhile."""

    def digest(file: Path) -> str:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    return _side_by_side(digest, files)


def _timed(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begin
