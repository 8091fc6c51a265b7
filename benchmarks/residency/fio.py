"""fio reads a file past the page cache: what the drive gives to whoever only reads."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from benchmarks.machine import MIB, Unable, finish, need

LIMIT_S = 600.0


def read(path: Path, *, threads: int, block: int) -> float:
    """Seconds for the whole file, read by `threads` side by side, each a slice of it from front to back in reads of
    `block` bytes into private memory that is used again and again. fio's own time, without its start. Raises Unable."""
    size = path.stat().st_size
    each = size // threads // MIB * MIB
    if not each:
        raise Unable(f"{path} is too small for {threads} threads")
    return size / _run([
        need("fio", "fio"), "--readonly", "--output-format=json", "--group_reporting", "--thread", "--direct=1",
        "--ioengine=psync", "--rw=read", f"--filename={path}", "--name=slice", f"--numjobs={threads}",
        f"--bs={min(block, each)}", f"--size={each}", f"--offset_increment={each}",
    ])  # fmt: skip


def _run(command: list[str]) -> float:
    """Bytes per second."""
    try:
        result = finish(command, LIMIT_S)
    except subprocess.TimeoutExpired:
        raise Unable(f"fio was not done after {LIMIT_S:.0f} s") from None
    if result.returncode:
        raise Unable(f"fio failed: {(result.stderr or result.stdout).strip()[-500:]}")
    (job,) = json.loads(result.stdout[result.stdout.index("{") :])["jobs"]
    if not job["read"]["bw_bytes"]:
        raise Unable("fio read nothing")
    return float(job["read"]["bw_bytes"])


def version() -> str:
    """From `fio --version`."""
    return subprocess.run([need("fio", "fio"), "--version"], capture_output=True, text=True).stdout.strip()
