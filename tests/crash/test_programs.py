"""The programs themselves, killed in the middle of a real download: the next one asks only for the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.process import PATIENCE, Served
from tests.support.origin import Fault, Origin
from weightd.storage.ledger import Ledger

MIB = 1 << 20
DATA = os.urandom(24 * MIB + 17)
CONFIG = '[fetch]\npart_size = "1MiB"\nreceivers = 2\n'
WEIGHTD = (sys.executable, "-m", "weightd")


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"model.bin": DATA}) as origin:
        yield origin


@pytest.fixture
def home() -> Iterator[Path]:
    """Short: a socket's path has little room."""
    with tempfile.TemporaryDirectory(prefix="weightd-crash-") as name:
        (Path(name) / "config.toml").write_text(CONFIG)
        yield Path(name)


def parts(origin: Origin, since: int) -> list[int]:
    """Parts that were asked for after so many requests; probes of one byte are none."""
    ranges = [r.headers.get("range", "") for r in origin.requests[since:]]
    return sorted(int(r[6:].split("-")[0]) // MIB for r in ranges if r and r != "bytes=0-0")


def recorded(where: Path) -> set[int]:
    found: set[int] = set()
    for path in where.rglob("ledger"):
        read = Ledger.read(path)
        found |= set(read[1]) if read else set()
    return found


def until(condition: object, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.01)


def half_way(origin: Origin) -> None:
    """The thirteenth and later requests stall in their bodies."""
    origin.fault("model.bin", Fault(), times=12)
    origin.fault("model.bin", Fault(stall_after=1000))


def test_fetch_into_a_directory(origin: Origin, home: Path) -> None:
    half_way(origin)
    command = [*WEIGHTD, "fetch", origin.url("model.bin"), "--to", str(home / "out"), "--config", "config.toml"]
    first = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: len(recorded(home / "out")) >= 8, "nothing was recorded")
    first.send_signal(signal.SIGKILL)
    first.wait(PATIENCE)
    assert [p for p in (home / "out").iterdir() if not p.name.startswith(".weightd-")] == []
    origin.mend()
    held, before = recorded(home / "out"), len(origin.requests)
    again = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert again.returncode == 0, again.stderr
    assert (home / "out/model.bin").read_bytes() == DATA
    assert set(parts(origin, before)) == set(range(25)) - held
    assert [p.name for p in (home / "out").iterdir()] == ["model.bin"]


def test_interrupted_by_hand(origin: Origin, home: Path) -> None:
    """Control-C: it ends soon, and what it received is kept."""
    half_way(origin)
    command = [*WEIGHTD, "fetch", origin.url("model.bin"), "--to", str(home / "out"), "--config", "config.toml"]
    first = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: len(recorded(home / "out")) >= 8, "nothing was recorded")
    first.send_signal(signal.SIGINT)
    assert first.wait(PATIENCE) == 130
    origin.mend()
    held, before = recorded(home / "out"), len(origin.requests)
    assert len(held) >= 8
    subprocess.run(command, cwd=home, capture_output=True, timeout=PATIENCE, check=True)
    assert (home / "out/model.bin").read_bytes() == DATA
    assert set(parts(origin, before)) == set(range(25)) - held


def test_the_daemon(origin: Origin, home: Path) -> None:
    half_way(origin)
    fetch = [*WEIGHTD, "fetch", origin.url("model.bin"), "--json"]
    config = ("--config", str(home / "config.toml"))
    with Served(home, *config) as daemon:
        daemon.until("READY=1")
        env = {**os.environ, "WEIGHTD_SOCKET": str(daemon.socket)}
        asking = subprocess.Popen(fetch, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: len(recorded(daemon.state_dir)) >= 8, "nothing was recorded")
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait(PATIENCE)
        assert asking.wait(PATIENCE) == 8
    origin.mend()
    held, before = recorded(home / "state"), len(origin.requests)
    with Served(home, *config) as daemon:
        daemon.until("READY=1")
        subprocess.run(fetch, env=env, capture_output=True, timeout=PATIENCE, check=True)
        (blob,) = (home / "state/blobs").rglob("[0-9a-f]" * 64)
        assert blob.read_bytes() == DATA
        assert set(parts(origin, before)) == set(range(25)) - held
        assert list((home / "state/ingest").iterdir()) == []
