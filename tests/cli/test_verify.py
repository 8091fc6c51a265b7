"""`weightd verify` against a real daemon with real damage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.process import PATIENCE, Served
from tests.support.origin import Origin

DATA = os.urandom((3 << 20) + 5)


class Host:
    """A daemon that holds one model of two files, on NVMe."""

    def __init__(self, home: Path, origin: Origin, daemon: Served) -> None:
        self.home, self.origin, self.daemon = home, origin, daemon
        self.ref = origin.url("model.bin")

    def weightd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "weightd", "--socket", str(self.daemon.socket), *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    @property
    def blob(self) -> Path:
        (found,) = (self.home / "state/blobs").rglob("[0-9a-f]" * 64)
        return found

    def damage(self) -> None:
        self.blob.chmod(0o600)
        with self.blob.open("r+b") as file:
            file.seek(1 << 20)
            file.write(b"damage")


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="weightd-verify-") as name, Origin({"model.bin": DATA}) as origin:
        home = Path(name)
        with Served(home) as daemon:
            daemon.until("READY=1")
            host = Host(home, origin, daemon)
            assert host.weightd("fetch", host.ref, "--tier", "nvme").returncode == 0
            yield host


def test_sound(host: Host) -> None:
    done = host.weightd("verify")
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first == f"{host.ref} model.bin  3.0 MiB, size checked  nvme sound"
    assert last == "1 file, every byte read: 1 sound, 0 repaired, 0 lost"
    assert host.weightd("verify", host.ref, "--quick").stdout.splitlines()[1].startswith("1 file, sizes compared")


def test_repaired(host: Host) -> None:
    host.damage()
    done = host.weightd("verify", host.ref)
    assert done.returncode == 0
    assert "nvme repaired: was damaged in NVMe" in done.stdout
    assert host.blob.read_bytes() == DATA
    log = host.daemon.text()
    assert "damaged" in log
    assert "repaired" in log


def test_lost(host: Host) -> None:
    host.damage()
    host.origin.remove("model.bin")
    done = host.weightd("verify", "--json")
    assert done.returncode == 10
    check, verified = map(json.loads, done.stdout.splitlines())
    assert (check["nvme"], check["shm"], verified["lost"]) == ("lost", "absent", 1)
    assert "quarantine" in check["detail"]
    (report,) = (host.home / "state/quarantine").glob("*/report.json")
    assert json.loads(report.read_text())["digest"] == check["digest"]


def test_unknown(host: Host) -> None:
    done = host.weightd("verify", "https://nowhere.example/x")
    assert (done.returncode, done.stdout) == (4, "")
    assert "does not hold" in done.stderr


def test_nothing_held() -> None:
    with tempfile.TemporaryDirectory(prefix="weightd-verify-") as name, Served(Path(name)) as daemon:
        daemon.until("READY=1")
        done = subprocess.run(
            [sys.executable, "-m", "weightd", "--socket", str(daemon.socket), "verify"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        assert done.stdout == "0 files, every byte read: 0 sound, 0 repaired, 0 lost\n"
