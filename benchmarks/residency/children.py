"""Processes of workers: begun, ready, and ended."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.machine import Unable, begin

LIMIT_S = 300.0


class Child(NamedTuple):
    """`said`: its first line, with which it is ready."""

    pid: int
    said: str


@contextlib.contextmanager
def children(count: int, module: str, *arguments: object) -> Iterator[list[Child]]:
    """`count` processes of `python -m module arguments`, once each has printed a line. They end with their stdin.
    Raises Unable where one fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with contextlib.ExitStack() as stack:
        begun = [stack.enter_context(_child(command)) for _ in range(count)]
        yield [Child(process.pid, _line(process, module)) for process in begun]


@contextlib.contextmanager
def _child(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    process = begin(command, stdin=pipe, stdout=pipe, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def _line(process: subprocess.Popen[str], module: str) -> str:
    if process.stdout is None or not select.select([process.stdout], [], [], LIMIT_S)[0]:
        raise Unable(f"{module} was not ready after {LIMIT_S:.0f} s")
    line = process.stdout.readline().strip()
    if not line:
        raise Unable(f"{module} failed")
    return line
