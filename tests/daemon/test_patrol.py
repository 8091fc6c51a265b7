"""`[verify]` in a real daemon: damage is found without being asked for, mended, told and recorded."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.process import PATIENCE, Served
from tests.support.origin import Origin
from weightd.client.client import Client, Watch
from weightd.client.types import EventInfo, EventKind

DATA = os.urandom((3 << 20) + 5)
SMALL = os.urandom(5000)
FOUND = (EventKind.DAMAGED, EventKind.REPAIRED)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"model.bin": DATA, "small.bin": SMALL}) as origin:
        yield origin


def serve(home: Path, verify: str) -> Served:
    (home / "c.toml").write_text(f'[fetch]\nretries = 0\npart_size = "1MiB"\n[verify]\n{verify}\n')
    return Served(home, "--config", str(home / "c.toml"))


def blob(home: Path, size: int = len(DATA)) -> Path:
    (found,) = (p for p in (home / "state/blobs").rglob("[0-9a-f]" * 64) if p.stat().st_size == size)
    return found


def damage(path: Path, at: int = 1 << 20) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"damage")


def next_of(watch: Watch, *kinds: EventKind) -> EventInfo:
    """Blocks; the test's own timeout ends it."""
    return next(e for e in watch if e.kind in kinds)


def cli(served: Served, *arguments: str) -> str:
    command = [sys.executable, "-m", "weightd", "--socket", str(served.socket), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


def test_damage_is_found_mended_and_told(tmp_path: Path, origin: Origin) -> None:
    with serve(tmp_path, 'every = "1s"\nmax_rate = 0') as served, Client(served.ready().socket) as client:
        ref = origin.url("model.bin")
        fetched = client.fetch(ref, tier="nvme").last_verified
        with client.watch() as watch:
            before = len(origin.requests)
            damage(blob(tmp_path))
            assert next_of(watch, *FOUND).kind is EventKind.DAMAGED
            event = next_of(watch, *FOUND)
            assert (event.kind, event.ref) == (EventKind.REPAIRED, ref)
        assert blob(tmp_path).read_bytes() == DATA
        asked = [r.headers["range"] for r in origin.requests[before:]]
        assert asked == [f"bytes={1 << 20}-{(2 << 20) - 1}"]
        status = json.loads(cli(served, "status", "--json"))["verify"]
        assert (status["every"], status["damaged"], status["repaired"], status["lost"]) == (1, 1, 1, 0)
        model = json.loads(cli(served, "ls", "--json"))
        assert model["last_verified"] == model["files"][0]["last_verified"] > fetched
        assert "verified every 1 s; oldest verified " in (text := cli(served, "status"))
        assert "1 damaged, 1 repaired, 0 lost" in text
        assert served.stop() == 0
        log = served.text()
        assert f" damaged {ref} " in log
        assert f" repaired {ref} " in log
        assert "Traceback" not in log


def test_damage_in_shared_memory_while_a_worker_maps_it(tmp_path: Path, origin: Origin) -> None:
    with serve(tmp_path, 'every = "1s"') as served, Client(served.ready().socket) as client:
        ref = origin.url("model.bin")
        with client.acquire(ref), client.watch() as watch:
            (name,) = served.segments()
            damage(Path("/dev/shm", name))
            assert "which 1 leases" in next_of(watch, EventKind.DAMAGED).detail
            next_of(watch, EventKind.REPAIRED)
            with client.acquire(ref) as lease:
                assert bytes(lease.file("model.bin").buffer) == DATA
        assert name not in served.segments()
        assert served.stop() == 0


def test_what_is_lost_while_its_origin_is_down_comes_back_with_it(tmp_path: Path, origin: Origin) -> None:
    with serve(tmp_path, 'every = "1s"') as served, Client(served.ready().socket) as client:
        client.fetch(origin.url("model.bin"), tier="nvme")
        client.fetch(origin.url("small.bin"), tier="nvme")
        origin.remove("model.bin")
        with client.watch() as watch:
            damage(blob(tmp_path))
            next_of(watch, EventKind.DAMAGED)
            next_of(watch, EventKind.FETCH_FAILED)
            damage(blob(tmp_path, len(SMALL)), 100)  # the others are verified all the same
            assert next_of(watch, EventKind.REPAIRED).ref == origin.url("small.bin")
            assert client.status().verify.lost == 1
            origin.put("model.bin", DATA)
            assert next_of(watch, EventKind.REPAIRED).ref == origin.url("model.bin")
        assert client.status().verify.lost == 0
        assert blob(tmp_path).read_bytes() == DATA
        assert list((tmp_path / "state/quarantine").iterdir()) == []
        assert served.stop() == 0
        assert "cannot be repaired" in served.text()


def patrols(served: Served) -> bool:
    """Whether one of its threads has the idle class of ioprio_get(2)."""
    number = {"x86_64": 252, "aarch64": 31, "riscv64": 31}.get(platform.machine())
    if number is None:
        pytest.skip(f"the number of ioprio_get on {platform.machine()} is not known here")
    tasks = os.listdir(f"/proc/{served.process.pid}/task")
    return any(ctypes.CDLL(None).syscall(number, 1, int(t)) >> 13 == 3 for t in tasks)


def wait_for(happened: Callable[[], bool]) -> None:
    """For what nobody announces."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stop_does_not_wait_for_a_slow_reading_and_a_start_goes_on(tmp_path: Path, origin: Origin) -> None:
    """The reading takes 48 s; neither a command nor the stop waits for it."""
    with serve(tmp_path, 'every = "1s"\nmax_rate = "64KiB"') as served:
        with Client(served.ready().socket) as client:
            client.fetch(origin.url("model.bin"), tier="nvme")
            wait_for(lambda: patrols(served))
            verified = json.loads(cli(served, "verify", "--json").splitlines()[0])
            assert verified["nvme"] == "sound"
            wait_for(lambda: patrols(served))
        assert served.stop() == 0
        assert "not drained" not in served.text()
    damage(blob(tmp_path))
    with serve(tmp_path, 'every = "1s"\nmax_rate = 0') as served:
        with Client(served.ready().socket) as client:
            wait_for(lambda: client.status().verify.repaired == 1)
        assert blob(tmp_path).read_bytes() == DATA
        assert served.stop() == 0
        assert f" repaired {origin.url('model.bin')} " in served.text()


def test_a_wrong_period_stops_the_start(tmp_path: Path) -> None:
    with serve(tmp_path, 'every = "weekly"') as served:
        assert served.process.wait(PATIENCE) == 3
        assert "c.toml, line 5: verify.every: 'weekly' is not a period" in served.text()
