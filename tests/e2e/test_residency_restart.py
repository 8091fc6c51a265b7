"""A daemon that ends and is started again under its workers: upgrades, crashes, reboots, with the origin down."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.crash.test_programs import MIB, half_way, parts, recorded
from tests.daemon.process import PATIENCE
from tests.e2e.host import Host, assert_refused, daemon, safetensors
from tests.e2e.worker import Start, until, workers
from tests.support.origin import Origin
from weightd import Client
from weightd.core.errors import Draining

SIZE = 8 << 20
FILES = {f"{name}.safetensors": safetensors(SIZE, name.encode()) for name in ("used", "left", "disk", "new")}
SUMS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
USED, LEFT, DISK, NEW = FILES
CONFIG = """
[shm]
budget = "20MiB"
[fetch]
retries = 0
"""
"""Two models fit."""


@contextlib.contextmanager
def lasting(config: str = CONFIG) -> Iterator[Host]:
    """Its segments outlive SIGTERM; at the end Ctrl-C, after which nothing of it is in shared memory."""
    with daemon("--at-stop", "auto", config=config) as host:
        yield host
        assert host.stop(signal.SIGINT) == 0, host.text()
        assert host.segments() == []


@pytest.fixture
def start() -> Iterator[Start]:
    with workers() as start:
        yield start


def ended(host: Host, how: signal.Signals) -> None:
    assert host.stop(how) == (0 if how == signal.SIGTERM else -how), host.text()


def objects(host: Host) -> dict[str, int]:
    """Segments by name, and which files they are."""
    return {name: Path("/dev/shm", name).stat().st_ino for name in host.segments()}


def test_workers_notice_nothing_of_an_upgrade_nor_of_a_crash(start: Start) -> None:
    with Origin(FILES) as origin, lasting() as host, Client(host.socket) as client:
        used, left, disk = (origin.url(name) for name in (USED, LEFT, DISK))
        running, stopped = start(host.socket), start(host.socket)
        for worker in (running, stopped):
            assert worker("acquire", ref=used)["mapped"] == {USED: SUMS[USED]}
        client.fetch(left)
        client.fetch(disk, tier="nvme")
        client.pin(left)
        before, asked = objects(host), len(origin.requests)
        os.kill(stopped.pid, signal.SIGSTOP)
        ended(host, signal.SIGTERM)
        until(lambda: running("states") == ["regaining"])
        assert running("sums") == [SUMS[USED]]
        assert objects(host) == before
        origin.stop()
        host.start_again()

        until(lambda: running("states") == ["alive"])
        assert objects(host) == before
        assert served_from_memory(client)
        assert [model.ref for model in client.models() if model.pinned] == [left]
        assert_refused(host.cli("evict", left, "--json"), 6, "ModelPinned", left)

        # The other worker had no time yet: what it maps stays, whatever is wanted.
        running.kill()
        until(lambda: client.leases(used) == [])
        assert_refused(host.cli("load", disk, "--json"), 9, "BudgetExceeded", f"{used} adopted after a restart")
        for command in ("evict", "rm"):
            assert_refused(host.cli(command, used, "--json"), 6, "ModelBusy", used, "after a restart")
        os.kill(stopped.pid, signal.SIGCONT)
        until(lambda: stopped("states") == ["alive"])
        assert_refused(host.cli("evict", used, "--json"), 6, "ModelLeased", used, str(stopped.pid))

        ended(host, signal.SIGKILL)
        host.start_again()
        until(lambda: stopped("states") == ["alive"])
        assert served_from_memory(client)
        assert stopped("sums") == [SUMS[USED]]
        (lease,) = client.leases()
        assert (lease.ref, lease.holder.pid) == (used, stopped.pid)
        assert objects(host) == before
        assert len(origin.requests) == asked
        stopped.kill()


def served_from_memory(client: Client) -> bool:
    """Both models and the one of small files were adopted, and not a byte was read since."""
    counters = client.status().counters
    return (counters.adopted, counters.bytes_fetched, counters.bytes_loaded) == (3, 0, 0)


def test_after_a_reboot_everything_comes_from_nvme(start: Start) -> None:
    """Shared memory is empty then. The boot is the same here, so that the records of segments look good."""
    with Origin(FILES) as origin, lasting() as host:
        ref = origin.url(USED)
        with Client(host.socket) as client:
            path = Path(client.fetch(ref).directory, USED)
        assert os.path.realpath(path).startswith("/dev/shm/")
        asked = len(origin.requests)
        ended(host, signal.SIGTERM)
        origin.stop()
        for name in host.segments():
            Path("/dev/shm", name).unlink()
        host.start_again()
        assert os.path.realpath(path).startswith(str(host.state_dir / "blobs"))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == SUMS[USED]
        assert start(host.socket)("acquire", ref=ref)["mapped"] == {USED: SUMS[USED]}
        counters = host.status()["counters"]
        assert counters["adopted"] == 0
        assert counters["bytes_loaded"] >= SIZE
        assert os.path.realpath(path).startswith("/dev/shm/")
        assert len(origin.requests) == asked


def test_with_the_origin_down_what_is_held_is_served(start: Start) -> None:
    with Origin(FILES) as origin, lasting() as host:
        used, disk, new = (origin.url(name) for name in (USED, DISK, NEW))
        with Client(host.socket) as client:
            client.fetch(used)
            client.fetch(disk, tier="nvme")
        origin.stop()
        worker = start(host.socket)
        assert worker("acquire", ref=used)["mapped"] == {USED: SUMS[USED]}
        assert worker("acquire", ref=disk)["mapped"] == {DISK: SUMS[DISK]}
        for do in ("acquire", "fetch"):
            assert worker.refused(do, ref=new).kind == "SourceUnavailable"
        assert_refused(host.cli("fetch", new, "--json"), 8, "SourceUnavailable", new)
        assert host.status()["shm"]["reserved"] == 0
        worker.kill()


def test_a_drain_tells_who_waits_and_the_next_daemon_goes_on_part_by_part(start: Start) -> None:
    data = os.urandom(24 * MIB + 17)
    config = '[fetch]\npart_size = "1MiB"\nreceivers = 2\n'
    with Origin({"model.bin": data, **FILES}) as origin, lasting(config) as host:
        half_way(origin)
        ref = origin.url("model.bin")
        worker = start(host.socket)
        worker.ask("acquire", ref=ref)
        with ThreadPoolExecutor(1) as pool, Client(host.socket, reconnect=0) as client:
            asked = threading.Event()
            fetch = pool.submit(client.fetch, ref, on_progress=lambda _: asked.set())
            assert asked.wait(PATIENCE)
            until(lambda: client.leases() and len(recorded(host.state_dir)) >= 8)
            ended(host, signal.SIGTERM)
            with pytest.raises(Draining, match="stopping"):
                fetch.result(PATIENCE)
        assert not host.socket.exists()
        origin.mend()
        held, before = recorded(host.state_dir), len(origin.requests)
        assert len(held) >= 8
        host.start_again()
        assert worker.answer()["mapped"] == {"model.bin": hashlib.sha256(data).hexdigest()}
        assert set(parts(origin, before)) == set(range(25)) - held
        assert list((host.state_dir / "ingest").iterdir()) == []
        worker.kill()
