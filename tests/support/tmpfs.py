"""Real mounts of tmpfs, unmounted again whatever happens."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


@contextmanager
def mounted(directory: Path, options: str = "size=64m") -> Iterator[Path]:
    """A tmpfs at `directory`, which is made. Skips the test where it cannot be mounted."""
    if reason := why_not():
        pytest.skip(reason)
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        # Lazily: a descriptor that a failed test left open is no reason to leave the mount.
        subprocess.run(["umount", "-l", directory], check=True)


@cache
def why_not() -> str:
    """Why no tmpfs can be mounted here; "" where it can."""
    if os.geteuid() != 0:
        return "needs root, to mount a tmpfs"
    with TemporaryDirectory() as place:
        tried = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, text=True)
        if not tried.returncode:
            subprocess.run(["umount", place], check=True)
        return tried.stderr.strip() and f"cannot mount a tmpfs: {tried.stderr.strip()}"
