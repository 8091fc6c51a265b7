"""The machine that a benchmark runs on: its facts, its huge pages, its memory warmed up."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

SHM = Path("/dev/shm")
GIB = 1 << 30
MIB = 1 << 20


_LIBC = ctypes.CDLL(None)


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """For a child, before exec: this signal when the parent dies (prctl(2), PR_SET_PDEATHSIG), in a session of its
    own."""
    os.setsid()
    _LIBC.prctl(1, number)


def begin(command: Sequence[str], **how: Any) -> subprocess.Popen[Any]:
    """As subprocess.Popen, in a session of its own, ended by SIGTERM when this thread ends. Without a fork that runs
    anything here: gRPC's threads do not survive one."""
    return subprocess.Popen([need("setpriv", "util-linux"), "--pdeathsig", "TERM", *command],
                            start_new_session=True, **how)  # fmt: skip


def finish(command: Sequence[str], limit: float) -> subprocess.CompletedProcess[str]:
    """`begin` and its end, within `limit` seconds. Raises subprocess.TimeoutExpired, and then it is over too."""
    with begin(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, error = process.communicate(timeout=limit)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, error)


class Unable(Exception):
    """This benchmark cannot run here; the message says what to do."""


def need(command: str, package: str) -> str:
    """The path of a command. Raises Unable, which names the Debian package."""
    found = shutil.which(command) or shutil.which(command, path="/usr/sbin:/sbin")
    if found is None:
        raise Unable(f"{command} is not installed: apt-get install {package}")
    return found


def huge_mode() -> str:
    """The `huge=` option of /dev/shm's mount, from /proc/mounts; the kernel's default is "never"."""
    found = None
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split(" ")
        if point == str(SHM) and kind == "tmpfs":
            # The last one counts, where several are mounted over each other.
            found = next((o.removeprefix("huge=") for o in options.split(",") if o.startswith("huge=")), "never")
    if found is None:
        raise Unable(f"{SHM} is not a tmpfs")
    return found


@contextlib.contextmanager
def pages(wanted: str | None) -> Iterator[str]:
    """/dev/shm with pages of "4k" or "2m" meanwhile, or as it is (None). Yields a description."""
    before = huge_mode()
    mode = {"4k": "never", "2m": "within_size", None: before}[wanted]
    try:
        if mode != before:
            _remount(mode)
        yield f"{'4 KiB' if mode == 'never' else '2 MiB'} (huge={mode})"
    finally:
        if huge_mode() != before:
            _remount(before)


def end_by_sigterm() -> None:
    """As by Ctrl-C: what was changed for the run is put back."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _remount(mode: str) -> None:
    result = subprocess.run(["mount", "-o", f"remount,huge={mode}", str(SHM)], capture_output=True, text=True)
    if result.returncode:
        raise Unable(f"/dev/shm cannot be remounted with huge={mode} (root is needed): {result.stderr.strip()}")


def touch_memory(count: int, where: Path = SHM) -> None:
    """Fill and free `count` bytes of a tmpfs, so that no contender is the first to touch the machine's memory.

    A virtual machine gets its memory from the host page by page at the first touch, which is many times slower, and
    may give it back seconds after it was freed (free page reporting).
    """
    path = where / f"weightd-bench-touch-{os.getpid()}"
    block = memoryview(bytearray(os.urandom(MIB)) * 16)
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(-(-count // len(block))):
                file.write(block)
    finally:
        path.unlink(missing_ok=True)


def memory_available() -> int:
    """Bytes, as /proc/meminfo has it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise Unable("/proc/meminfo has no MemAvailable")


def disk_free(directory: Path) -> int:
    """Bytes, for this user. Raises Unable."""
    try:
        status = os.statvfs(directory)
    except OSError as e:
        raise Unable(f"{directory}: {e.strerror}") from None
    return status.f_bavail * status.f_frsize


class Turns(NamedTuple):
    """Seconds that a process's main thread ran, and that it was ready to run and waited for a core."""

    ran: float
    waited: float

    def since(self, before: Turns) -> Turns:
        return Turns(self.ran - before.ran, self.waited - before.waited)


def turns(pid: int) -> Turns:
    """From /proc/<pid>/task/<pid>/schedstat (proc(5): nanoseconds)."""
    ran, waited, _ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
    return Turns(int(ran) / 1e9, int(waited) / 1e9)


def facts(*packages: str) -> dict[str, Any]:
    """For the JSON and the foot of the table."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE,
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "shm_huge": huge_mode(),
        "versions": {p: _version(p) for p in ("weightd", *packages)},
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def describe(found: dict[str, Any]) -> str:
    """One line."""
    return (
        f"{found['cores']} cores of {found['cpu']}, {found['memory'] / GIB:.0f} GiB,"
        f" Linux {found['kernel']}, Python {found['python']}"
    )


def console() -> Console:
    """As wide as the terminal; 100 columns in a log."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=100)


def conclude(args: argparse.Namespace, run: Callable[[argparse.Namespace, Console], dict[str, Any]]) -> int:
    """Run a benchmark and write what it found to `args.json`, if that is given; the exit code."""
    screen = console()
    end_by_sigterm()
    try:
        found = run(args, screen)
    except Unable as e:
        screen.print(f"[bold red]Not measured:[/] {e}")
        return 1
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0
