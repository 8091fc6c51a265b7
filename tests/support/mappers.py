"""Other processes that map a file, and end when they are told to, or are killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAP = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
held = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
os.close(fd)
print("mapped", flush=True)
sys.stdin.read()
"""
"""Python's map has a descriptor of its own as well, before 3.13."""
MAP_ALONE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
fd = os.open(sys.argv[1], os.O_RDONLY)
assert libc.mmap(None, os.fstat(fd).st_size, 1, 2, fd, 0) not in (None, ctypes.c_void_p(-1).value)
os.close(fd)
print("mapped", flush=True)
sys.stdin.read()
"""
"""PROT_READ, MAP_PRIVATE, and no descriptor stays."""
OPEN = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print("mapped", flush=True)
sys.stdin.read()
"""


def start(program: str, path: Path | str) -> subprocess.Popen[str]:
    """Returns once the process has it."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if process.stdout.readline() != "mapped\n":
        end(process)
        raise AssertionError("it could not be mapped")
    return process


def end(process: subprocess.Popen[str]) -> None:
    """By closing what it waits for; SIGKILL where that does not help. Idempotent."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    try:
        process.wait(20)
    finally:
        process.kill()
        process.wait()


@contextmanager
def mapping(path: Path | str, program: str = MAP) -> Iterator[subprocess.Popen[str]]:
    process = start(program, path)
    try:
        yield process
    finally:
        end(process)
