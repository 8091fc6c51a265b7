"""However many files a model has and however large they are: what is in use at a time follows from the options."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.many import OPTIONS, PART
from tests.support.extent import LONG
from tests.support.origin import Origin
from weightd.core.parts import MIB
from weightd.engine.transfer import TransferOptions
from weightd.engine.workers import IO_THREADS
from weightd.sources.connection import HttpOptions
from weightd.sources.safetensors_repo import PROBES

pytestmark = pytest.mark.alone
HERE = Path(__file__).parents[2]
LARGE = 5
"""Files of several parts among the many small ones."""
TRANSFER = OPTIONS.receivers + OPTIONS.hashers + OPTIONS.writers
CONNECTIONS = PROBES + 2 * OPTIONS.receivers
"""While it is resolved, and two that each receiver may keep."""
DEFAULT_EXECUTOR = min(32, (os.cpu_count() or 1) + 4)


class Counting(Origin):
    """Knows how many connections were open at once."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        self._counting = threading.Lock()
        self._now = self.most = 0

    def _serve(self, *args: Any) -> None:
        with self._counting:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            super()._serve(*args)
        finally:
            with self._counting:
                self._now -= 1


def content(count: int) -> dict[str, bytes]:
    """By path: 1 to 20 KiB each, and some of a few parts."""
    rng = random.Random(count)
    files = {f"{i % 100}/{i}.bin": rng.randbytes(rng.randint(1 << 10, 20 << 10)) for i in range(count - LARGE)}
    return files | {f"large{i}.bin": rng.randbytes(3 * PART + i) for i in range(LARGE)}


def models(origin: Origin, files: dict[str, bytes]) -> str:
    many = {"source": origin.url("m/"), "files": [{"path": p, "size": len(d)} for p, d in files.items()]}
    return json.dumps({"models": {"warm": {"source": origin.url("warm.bin")}, "many": many}})


def run(how: str, directory: Path, count: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.engine.many", how, directory, str(count)],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def fetched(how: str, directory: Path) -> Iterator[tuple[Path, str]]:
    """What is where it stays."""
    root = directory / ("out" if how == "export" else "state/blobs")
    for path in root.rglob("*"):
        if path.is_file():
            yield path, str(path.relative_to(root))


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["shm", "nvme", "export"])
def test_many_files(tmp_path: Path, how: str) -> None:
    """The count is what each bound would be near if it were lifted."""
    count = 10_000 if LONG else 1500
    files = content(count)
    with Counting({"warm.bin": b"warm"} | {f"m/{p}": d for p, d in files.items()}) as origin:
        (tmp_path / "models.json").write_text(models(origin, files))
        report = run(how, tmp_path, count)
        assert origin.most <= CONNECTIONS
    before, most = report["before"], report["most"]
    # A descriptor of its own for each thread that is at a file, two for each segment that is filled.
    assert OPTIONS.open_files == 2 * TRANSFER
    segments = OPTIONS.open_files if how == "shm" else 0
    busy = TRANSFER + 1 + IO_THREADS + 1 + DEFAULT_EXECUTOR
    connections = PROBES + HttpOptions().connections_per_host
    assert most["descriptors"] <= before["descriptors"] + busy + 2 * segments + connections
    # Receivers, hashers and writers; one that records, one that waits for them; those that look, here and in the test.
    assert most["threads"] <= before["threads"] + TRANSFER + 2 + IO_THREADS + 1 + DEFAULT_EXECUTOR + 1
    # Of each thread its stack, with a guard, and its arena, in two pieces; and what it maps for one block of a file.
    threads = most["threads"] - before["threads"]
    assert most["maps"] <= before["maps"] + segments + OPTIONS.slabs + 5 * threads + busy
    # A commit of each open file; the probes, while it is resolved; the fetch, its flight, the writer of records.
    assert most["tasks"] <= before["tasks"] + max(OPTIONS.open_files, PROBES) + 3
    assert report["on_the_loop"] == []
    assert sum(1 for _ in fetched(how, tmp_path)) == count + 1
    if how == "export":
        assert all((tmp_path / "out" / path).read_bytes() == data for path, data in files.items())


SLAB = 4 * MIB
"""64 MiB of these fill all slabs of the default options."""


def peak_of_an_export(directory: Path, size: int) -> int:
    """Bytes of memory that `weightd fetch --to` had at most."""
    (directory / "origin").mkdir()
    with (directory / "origin" / "model.bin").open("wb") as file:
        file.truncate(size)  # without blocks: read as zeros, and sent so
    (directory / "config.toml").write_text(f'[fetch]\nreceivers = 4\npart_size = "{SLAB >> 20}MiB"\n')
    with Origin(directory / "origin") as origin:
        command = ("fetch", "--config", directory / "config.toml", origin.url("model.bin"), "--to", directory / "out")
        process = subprocess.Popen([sys.executable, "-m", "weightd", *map(str, command)], cwd=HERE)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert (directory / "out" / "model.bin").stat().st_size == size
    (directory / "out" / "model.bin").unlink()
    return usage.ru_maxrss << 10


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for size in (64 * MIB, 1024 * MIB):
        (tmp_path / str(size)).mkdir()
        peaks.append(peak_of_an_export(tmp_path / str(size), size))
    assert TransferOptions(receivers=4).slabs * SLAB <= 64 * MIB
    assert peaks[1] - peaks[0] < 3 * SLAB
