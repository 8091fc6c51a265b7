"""What workers hold of a real daemon, and what becomes of it when they die, stop, fork, lose it, or merely let go."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.leaks import assert_settles, use
from tests.e2e.host import Host, safetensors
from tests.e2e.worker import Resident, Start, until, workers
from tests.support.origin import Fault, Origin
from weightd import Client
from weightd.client.types import LeaseInfo, TierInfo

SIZE = 2 << 20
MODEL = safetensors(SIZE, b"held")
SUM = hashlib.sha256(MODEL).hexdigest()
FILE = "held.safetensors"
CYCLES = 1000


@pytest.fixture
def start() -> Iterator[Start]:
    with workers() as start:
        yield start


@pytest.fixture
def held(origin: Origin, host: Host) -> Iterator[str]:
    """A model that is in shared memory; afterwards nobody leases it."""
    origin.put(FILE, MODEL)
    ref = origin.url(FILE)
    host.fetch(ref)
    yield ref
    until(lambda: leases(host, ref) == [])


def leases(host: Host, ref: str) -> list[LeaseInfo]:
    with Client(host.socket) as client:
        return client.leases(ref)


def pids(host: Host, ref: str) -> set[int]:
    return {lease.holder.pid for lease in leases(host, ref)}


def draining(host: Host) -> int:
    return shm(host).draining


def shm(host: Host) -> TierInfo:
    with Client(host.socket) as client:
        return client.status().shm


def holding(start: Start, host: Host, ref: str) -> Resident:
    worker = start(host.socket)
    assert worker("acquire", ref=ref)["mapped"] == {FILE: SUM}
    return worker


def test_sigkill_ends_a_lease(start: Start, host: Host, held: str) -> None:
    worker, other = holding(start, host, held), holding(start, host, held)
    listed = host.cli("leases", held, "--json").objects
    assert {lease["pid"] for lease in listed} == {worker.pid, other.pid}
    for lease in listed:
        assert (lease["confirmed"], lease["uid"], lease["waiting"]) == (True, os.getuid(), False)
        assert "tests.e2e.worker" in str(lease["command"])
    worker.kill()
    until(lambda: pids(host, held) == {other.pid})
    assert other("states") == ["alive"]
    other.kill()


def test_sigstop_ends_none_and_nothing_takes_the_model(start: Start, host: Host, held: str) -> None:
    worker = holding(start, host, held)
    os.kill(worker.pid, signal.SIGSTOP)
    for command in ("evict", "rm"):
        ended = host.cli(command, held)
        assert ended.code == 6, ended
        assert f"process {worker.pid} (" in ended.err
        assert f"  process {worker.pid}, " in ended.err.splitlines()[1]
        assert "tests.e2e.worker" in ended.err
    assert pids(host, held) == {worker.pid}
    os.kill(worker.pid, signal.SIGCONT)
    assert worker("sums") == [SUM]
    assert worker("states") == ["alive"]
    worker.kill()


def test_a_lease_ends_with_who_took_it_though_a_forked_child_reads_on(start: Start, host: Host, held: str) -> None:
    worker = holding(start, host, held)
    parent = worker.process.pid
    child = worker("fork")
    try:
        assert pids(host, held) == {parent}
        assert worker("states") == ["inherited"]
        os.kill(parent, signal.SIGKILL)
        until(lambda: leases(host, held) == [])
        (gone,) = host.cli("evict", held, "--json").objects
        assert gone["shm"] == gone["draining"] == draining(host) > SIZE
        assert worker("sums") == [SUM]
    finally:
        os.kill(child, signal.SIGKILL)
    until(lambda: draining(host) == 0)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare (util-linux)")
def test_a_container_that_is_killed_ends_its_leases(start: Start, host: Host, held: str) -> None:
    """As a runtime does it: the first process of a PID namespace, and with it everything else there."""
    inside = ("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", '"$@"; exit 0', "sh")
    worker = start(host.socket, inside)
    worker("acquire", ref=held)
    (lease,) = leases(host, held)
    names = Path(f"/proc/{worker.pid}/status").read_text().split("NSpid:")[1].split("\n")[0].split()
    assert names == [str(worker.pid), "2"]
    assert (lease.holder.pid, lease.holder.confirmed) == (worker.pid, True)
    (first,) = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()
    os.kill(int(first), signal.SIGKILL)
    until(lambda: leases(host, held) == [])


def test_a_connection_that_breaks_ends_a_lease_which_comes_again(start: Start, host: Host, held: str) -> None:
    with Between(host.home / "between.sock", host.socket) as between:
        worker = start(between.path)
        worker("acquire", ref=held)
        (lease,) = leases(host, held)
        assert (lease.holder.pid, lease.holder.confirmed) == (worker.pid, False)
        between.cut()
        until(lambda: leases(host, held) == [])
        until(lambda: worker("states") == ["regaining"])
        assert worker("sums") == [SUM]
        between.listen()
        until(lambda: worker("states") == ["alive"])
        assert len(leases(host, held)) == 1
        worker.kill()


def test_who_waits_is_listed_and_leaves_nothing_when_killed(start: Start, host: Host, origin: Origin) -> None:
    origin.put("slow.safetensors", MODEL)
    origin.fault("slow.safetensors", Fault(), times=1)
    origin.fault("slow.safetensors", Fault(stall_after=1000))
    ref = origin.url("slow.safetensors")
    waiting = start(host.socket)
    waiting.ask("acquire", ref=ref)
    until(lambda: pids(host, "") == {waiting.pid})
    (lease,) = host.cli("leases", "--json").objects
    assert (lease["ref"], lease["waiting"], lease["revision"]) == (ref, True, "")
    (transfer,) = host.status()["transfers_under_way"]
    assert (transfer["ref"], transfer["urgent"]) == (ref, True)
    waiting.kill()
    until(lambda: leases(host, "") == [])
    with Client(host.socket) as client:
        until(lambda: client.status().transfers == 0)
        assert client.status().shm.reserved == client.status().nvme.reserved == 0
    origin.mend()


def test_what_was_released_and_is_still_mapped_drains(start: Start, host: Host, held: str) -> None:
    worker = holding(start, host, held)
    worker("release")
    until(lambda: leases(host, held) == [])
    before = shm(host)
    assert host.cli("evict", held).out.strip().endswith(" of it still mapped")
    after = shm(host)
    assert after.draining == before.resident - after.resident > SIZE
    assert worker("sums") == [SUM]
    worker("forget")
    until(lambda: draining(host) == 0)
    worker.kill()


def test_programs_that_know_nothing_of_us_read_on(start: Start, host: Host, held: str) -> None:
    """The model's directory leads into shared memory, to NVMe, and back; what was opened stays what it was."""
    reader = start(host.socket)
    path = str(Path(reader("fetch", ref=held)["path"]) / FILE)
    in_memory = reader("open", path=path)
    assert in_memory.startswith("/dev/shm/weightd-")
    tensor = reader("safetensors", path=path)
    assert tensor == hashlib.sha256(MODEL[-SIZE:]).hexdigest()
    assert host.cli("evict", held).code == 0
    assert reader("open", path=path).startswith(str(host.state_dir / "blobs"))
    assert reader("safetensors", path=path) == tensor
    assert host.cli("load", held).code == 0
    assert reader("open", path=path).startswith("/dev/shm/weightd-")
    assert host.cli("rm", held).code == 0
    assert not os.path.lexists(path)
    assert reader("rest") == [SUM] * 3
    host.fetch(held)
    reader.kill()


@pytest.mark.alone
def test_thousands_of_leases_leave_nothing(start: Start, host: Host, held: str) -> None:
    """Of the daemon; what they leave in workers is counted in `tests.client`."""
    before = use(host.process.pid)

    def once() -> None:
        worker = start(host.socket)
        worker("cycle", ref=held, count=CYCLES)
        worker.kill()
        thousand_at_once(start, host, held)
        until(lambda: use(host.process.pid).descriptors <= before.descriptors)

    assert_settles(host.process.pid, once)


def thousand_at_once(start: Start, host: Host, ref: str) -> None:
    worker = start(host.socket)
    worker("many", ref=ref, count=1000)
    assert len(leases(host, ref)) == 1000
    worker.kill()
    until(lambda: leases(host, ref) == [])


class Between:
    """Passes connections on from one Unix socket to another, until it is cut."""

    def __init__(self, path: Path, to: Path) -> None:
        self.path, self._to = path, to
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None

    def listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._spawn(self._accept, self._listener)

    def cut(self) -> None:
        """Every connection breaks, and none can be made."""
        assert self._listener is not None
        self.path.unlink()
        for sock in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        for sock in (self._listener, *self._open):
            sock.close()
        self._open.clear()
        self._threads.clear()

    def _spawn(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(self._to))
            self._open += [near, far]
            self._spawn(self._pump, near, far)

    def _pump(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        with contextlib.suppress(OSError):
            while True:
                for sock in select.select([near, far], [], [])[0]:
                    data = sock.recv(65536)
                    if not data:
                        raise ConnectionResetError
                    other[sock].sendall(data)
        for sock in (near, far):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Between:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
