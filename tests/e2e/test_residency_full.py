"""64 MiB of shared memory, and more models than fit: who goes, who stays, who is told what, and where every byte is."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.crash.test_programs import recorded
from tests.daemon.process import PATIENCE
from tests.e2e.host import Host, assert_refused, daemon, safetensors
from tests.e2e.worker import Resident, until, workers
from tests.support.origin import Fault, Origin
from weightd import Client
from weightd.client.types import TierInfo
from weightd.core.errors import BudgetExceeded, ShmFull
from weightd.core.lifecycle import Residency

MIB = 1 << 20
SIZE = 20 * MIB
FILES = {f"{name}.safetensors": safetensors(SIZE, name.encode()) for name in "abc"}
SUMS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
A, B, C = FILES
FETCH = '[fetch]\npart_size = "1MiB"\nreceivers = 2\nretries = 4\nstall_timeout_s = 2.0\n'

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0
    or not all(map(shutil.which, ("unshare", "nsenter")))
    or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="mounts a tmpfs, which needs root, unshare and nsenter",
)


class Small:
    """A daemon whose segments are on a tmpfs of 64 MiB, at `place` in its mount namespace, with its `budget` of it."""

    def __init__(self, host: Host, worker: Resident, place: Path, budget: int, origin: Origin) -> None:
        self.host, self.worker, self.place, self.budget = host, worker, place, budget
        self.client = Client(host.socket)
        self.a, self.b, self.c = (origin.url(name) for name in FILES)

    @property
    def directory(self) -> Path:
        return self.host.root / str(self.place)[1:]

    def resident(self) -> set[str]:
        """Of the three models, those that are in shared memory."""
        there = {m.ref for m in self.client.models() if m.shm is Residency.RESIDENT}
        return there & {self.a, self.b, self.c}

    def reconciled(self) -> TierInfo:
        """What the daemon says is what the kernel says, to the byte."""
        shm, mount = self.client.status().shm, os.statvfs(self.directory)
        assert (shm.total, shm.free) == (mount.f_blocks * mount.f_frsize, mount.f_bavail * mount.f_frsize)
        held = sum(p.stat().st_blocks * 512 for p in self.directory.iterdir() if self.host.owner in p.name)
        assert (shm.resident, shm.reserved) == (held, 0)
        assert shm.other == shm.total - shm.free - held - shm.draining
        return shm

    def empty(self) -> None:
        """Nobody leases, pins or maps anything."""
        self.worker("release")
        self.worker("forget")
        until(lambda: self.client.leases() == [])
        for model in self.client.models():
            self.client.unpin(model.ref)
            self.client.evict(model.ref)
        until(lambda: self.client.status().shm.draining == 0)


@pytest.fixture(scope="module")
def files() -> Iterator[Origin]:
    with Origin(FILES) as origin:
        yield origin


@pytest.fixture(scope="module", params=["/dev/shm", "directory"])
def served(request: pytest.FixtureRequest, files: Origin) -> Iterator[Small]:
    if request.param == "directory":
        config, budget = '[shm]\ndirectory = "shm"\nbudget = "75%"\n', 48 * MIB
        mount = "mkdir {home}/shm && mount -t tmpfs -o size=64m,mode=0755 tmpfs {home}/shm"
    else:
        config, budget = "", 64 * MIB * 8 // 10
        mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    with daemon(config=config + FETCH, mounts=(mount,)) as host:
        place = host.home / "shm" if request.param == "directory" else Path("/dev/shm")
        with workers() as start:
            worker = start(host.socket, ("nsenter", f"--mount=/proc/{host.process.pid}/ns/mnt"))
            yield Small(host, worker, place, budget, files)


@pytest.fixture
def small(served: Small) -> Small:
    served.empty()
    return served


only_posix = pytest.mark.parametrize("served", ["/dev/shm"], indirect=True)
"""What is tested does not know where segments are."""


def test_the_third_takes_the_place_of_the_one_that_nobody_uses(small: Small) -> None:
    worker, client = small.worker, small.client
    assert worker("acquire", ref=small.a)["mapped"] == {A: SUMS[A]}
    client.fetch(small.b)
    shm = small.reconciled()
    assert (shm.total, shm.budget) == (64 * MIB, small.budget)
    assert shm.leased > SIZE
    assert small.resident() == {small.a, small.b}
    client.fetch(small.c)
    assert small.resident() == {small.a, small.c}
    assert client.model(small.b).nvme is Residency.RESIDENT
    small.reconciled()
    assert worker("acquire", ref=small.b)["mapped"] == {B: SUMS[B]}
    assert small.resident() == {small.a, small.b}
    assert worker("sums") == [SUMS[A], SUMS[B]]
    small.reconciled()


@only_posix
def test_what_holds_the_room_is_named(small: Small) -> None:
    worker, client = small.worker, small.client
    worker("acquire", ref=small.a)
    client.fetch(small.b)
    client.pin(small.b)
    words = f"{small.a} leased by process {worker.pid} (", f"{small.b} pinned"
    assert_refused(small.host.cli("fetch", small.c, "--json"), 9, "BudgetExceeded", *words)
    refused = worker.refused("acquire", ref=small.c)
    assert refused.kind == "BudgetExceeded"
    assert all(word in refused.message for word in words)
    assert small.reconciled().pinned > SIZE
    client.unpin(small.b)
    client.fetch(small.c)
    assert small.resident() == {small.a, small.c}


@only_posix
def test_memory_that_somebody_still_maps_is_not_given_twice(small: Small) -> None:
    worker, client = small.worker, small.client
    for ref in (small.a, small.b):
        worker("acquire", ref=ref)
    worker("release")
    until(lambda: client.leases() == [])
    assert client.evict(small.a).draining > SIZE
    assert small.reconciled().draining > SIZE
    with pytest.raises(BudgetExceeded, match=r"20\.0 MiB draining"):
        client.fetch(small.c)
    assert worker("sums") == [SUMS[A], SUMS[B]]
    worker("forget")
    client.fetch(small.c)
    until(lambda: client.status().shm.draining == 0)
    small.reconciled()


def test_a_file_of_somebody_else_is_an_error_and_no_signal(small: Small) -> None:
    worker, client = small.worker, small.client
    worker("acquire", ref=small.a)
    with filled(small.directory, leave=10 * MIB):
        shm = client.status().shm
        assert shm.other == 64 * MIB - shm.free - shm.resident > 0
        assert_refused(small.host.cli("fetch", small.b, "--json"), 9, "ShmFull", small.b, str(small.place))
        assert worker.refused("acquire", ref=small.b).kind == "ShmFull"
        assert "\nshm: of " in small.host.cli("status").out
        assert worker("sums") == [SUMS[A]]
    small.reconciled()
    assert worker("acquire", ref=small.b)["mapped"] == {B: SUMS[B]}


def test_one_that_comes_while_a_segment_is_being_filled(small: Small, files: Origin) -> None:
    """With 4 KiB pages memory is taken part by part, so that there is room at first."""
    files.put("late.safetensors", safetensors(SIZE, b"late"))
    files.fault("late.safetensors", Fault(), times=4)
    files.fault("late.safetensors", Fault(stall_after=1000), times=2)
    ref = files.url("late.safetensors")
    with ThreadPoolExecutor(1) as pool:
        fetch = pool.submit(small.client.fetch, ref)
        until(lambda: recorded(small.host.state_dir))
        with contextlib.ExitStack() as stack:
            with standing(small.host.process.pid):
                stack.enter_context(filled(small.directory, leave=0))
            with pytest.raises(ShmFull):
                fetch.result(PATIENCE)
    small.reconciled()
    small.client.fetch(ref)
    small.client.remove(ref)
    small.reconciled()


@contextlib.contextmanager
def standing(pid: int) -> Iterator[None]:
    """Every thread of this process is stopped meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: {_state(task) for task in Path(f"/proc/{pid}/task").iterdir()} == {"T"})
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _state(task: Path) -> str:
    """proc_pid_stat(5)."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


@contextlib.contextmanager
def filled(root: Path, leave: int) -> Iterator[None]:
    """A file of somebody else, which leaves so many bytes free."""
    mount = os.statvfs(root)
    path = root / "somebody-elses"
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, mount.f_bavail * mount.f_frsize - leave)
        yield
    finally:
        path.unlink()
