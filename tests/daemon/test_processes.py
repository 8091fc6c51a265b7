"""A daemon that receives in processes of its own: they die, it dies, and nobody can write what is published."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.process import PATIENCE, Served
from tests.support.origin import Fault, Origin
from tests.support.tls import make_certificate
from weightd.client.client import Client
from weightd.client.types import ModelInfo

MIB = 1 << 20
DATA = os.urandom(24 * MIB + 17)
CONFIG = '[fetch]\npart_size = "1MiB"\nreceivers = 4\nprocesses = 2\n[http]\nca_file = "ca.pem"\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(CONFIG)
    make_certificate(tmp_path / "ca.pem")
    return tmp_path


@pytest.fixture
def origin(home: Path) -> Iterator[Origin]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(home / "ca.pem")
    with Origin({"model.bin": DATA, "other.bin": DATA[::-1]}, tls=tls) as origin:
        yield origin


def children(pid: int) -> list[int]:
    return [int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]


def until(condition: object, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.01)


def check(model: ModelInfo, data: bytes) -> None:
    assert (Path(model.directory) / model.files[0].path).read_bytes() == data


def writable(pids: list[int], name: str) -> list[str]:
    """Maps of a segment through which one of these processes could write."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return [line for line in lines if line.endswith(name) and "w" in line.split()[1]]


@pytest.mark.parametrize("tier", ["shm", "nvme"])
def test_a_fetch(home: Path, origin: Origin, tier: str) -> None:
    with Served(home, "--config", str(home / "config.toml")) as served, Client(served.ready().socket) as client:
        check(client.fetch(origin.url("model.bin"), tier=tier), DATA)
        received = children(served.process.pid)
        assert 1 <= len(received) <= 2
        for name in served.segments():
            assert writable([served.process.pid, *received], name) == []
        assert served.stop() == 0
        assert not [p for p in received if Path(f"/proc/{p}").exists()]


def test_a_receiver_process_that_is_killed_costs_its_parts_only(home: Path, origin: Origin) -> None:
    origin.fault("model.bin", Fault(), times=10)
    origin.fault("model.bin", Fault(stall_after=1000), times=4)
    with Served(home, "--config", str(home / "config.toml")) as served, Client(served.ready().socket) as client:
        fetched: list[ModelInfo] = []
        thread = threading.Thread(target=lambda: fetched.append(client.fetch(origin.url("model.bin"))))
        thread.start()
        origin.wait_for(14)  # Probe, nine parts, four that stall in both processes.
        for pid in children(served.process.pid):
            os.kill(pid, 9)
        thread.join(PATIENCE)
        check(fetched[0], DATA)
        # Some of what the four have yet to bring may have been taken over before.
        assert 1 + 25 + 4 <= len(origin.requests) <= 1 + 25 + 4 + 4
        asked = [r.headers["range"].removeprefix("bytes=").split("-") for r in origin.requests[1:]]
        assert sum(int(last) + 1 - int(first) for first, last in asked) <= len(DATA) + 8 * (len(DATA) // 25 + 1)


def test_they_end_with_a_daemon_that_is_killed_and_the_next_one_goes_on(home: Path, origin: Origin) -> None:
    origin.fault("model.bin", Fault(), times=10)
    origin.fault("model.bin", Fault(stall_after=1000), times=4)
    command = [sys.executable, "-m", "weightd", "--socket", str(home / "w.sock"), "fetch", origin.url("model.bin")]
    with Served(home, "--config", str(home / "config.toml")) as served:
        served.ready()
        fetch = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        origin.wait_for(14)
        received = children(served.process.pid)
        assert len(received) == 2
        served.process.kill()
        served.process.wait()
        fetch.wait(PATIENCE)
        until(lambda: not [p for p in received if Path(f"/proc/{p}").exists()], "a receiver outlived its daemon")
    with Served(home, "--config", str(home / "config.toml")) as served, Client(served.ready().socket) as client:
        check(client.fetch(origin.url("model.bin")), DATA)


def test_fetch_into_a_directory(home: Path, origin: Origin) -> None:
    command = [sys.executable, "-m", "weightd", "fetch", origin.url("model.bin"), "--to", "out", "--config"]
    subprocess.run([*command, "config.toml"], cwd=home, check=True, timeout=PATIENCE, capture_output=True)
    assert (home / "out/model.bin").read_bytes() == DATA


def test_ctrl_c_ends_it_at_once(home: Path, origin: Origin) -> None:
    origin.fault("model.bin", Fault(), times=3)
    origin.fault("model.bin", Fault(stall_after=1000))
    command = [sys.executable, "-m", "weightd", "fetch", origin.url("model.bin"), "--to", "out", "--config"]
    fetch = subprocess.Popen([*command, "config.toml"], cwd=home, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    origin.wait_for(6)
    received = children(fetch.pid)
    fetch.send_signal(2)
    assert fetch.wait(PATIENCE) == 130
    assert received
    assert not [p for p in received if Path(f"/proc/{p}").exists()]


def test_a_stream_that_breaks_off_is_read_again_from_its_start(home: Path, origin: Origin) -> None:
    """And compared with what is here already."""
    whole = Fault(no_ranges=True)
    origin.fault("model.bin", whole, times=1)  # of the probe
    origin.fault("model.bin", Fault(no_ranges=True, short=3 * MIB + 200_000), times=1)
    origin.fault("model.bin", whole)
    with Served(home, "--config", str(home / "config.toml")) as served, Client(served.ready().socket) as client:
        check(client.fetch(origin.url("model.bin")), DATA)
        assert [r.headers.get("range") for r in origin.requests].count(None) == 2
