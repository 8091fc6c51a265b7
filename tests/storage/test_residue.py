"""Whether somebody still maps a file, asked of the kernel: real processes, real signals."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.mappers import MAP, MAP_ALONE, OPEN, end, mapping, start
from weightd.storage import residue
from weightd.storage.residue import FileResidue, nobody_writes, only_ours
from weightd.storage.segments import PosixSegment, PosixSegmentStore

SIZE = 1 << 20


@pytest.fixture
def segment() -> Iterator[PosixSegment]:
    segment = PosixSegmentStore("t" + secrets.token_hex(6)).create("residue", SIZE)
    segment.prepare(0, SIZE)
    segment.seal()
    yield segment
    segment.unlink()


def retired(segment: PosixSegment) -> FileResidue:
    residue = segment.retire()
    assert residue is not None
    return residue


@pytest.mark.parametrize("program", [MAP, MAP_ALONE, OPEN])
@pytest.mark.parametrize("killed", [True, False])
def test_a_process_that_ends_frees_what_it_held(segment: PosixSegment, program: str, killed: bool) -> None:
    with mapping(segment.path, program) as process:
        assert segment.mapped() is True
        residue = retired(segment)
        assert not residue.gone()
        if killed:
            process.kill()
            process.wait()
            assert residue.gone()
    assert residue.gone()
    assert residue.known


def test_the_last_of_many_processes_frees_it(segment: PosixSegment) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(mapping(segment.path, MAP_ALONE)) for _ in range(8)]
        residue = retired(segment)
        for process in processes:
            assert not residue.gone()
            process.kill()
            process.wait()
        assert residue.gone()


def test_a_stopped_process_keeps_it(segment: PosixSegment) -> None:
    with mapping(segment.path, MAP_ALONE) as process:
        residue = retired(segment)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert not residue.gone()
        process.kill()
        process.wait()
        assert residue.gone()


FORKS = (
    MAP_ALONE.rpartition("print(")[0]
    + """
if os.fork():
    os._exit(0)
print("mapped", flush=True)
sys.stdin.read()
"""
)


def test_a_fork_keeps_what_its_parent_mapped(segment: PosixSegment) -> None:
    with mapping(segment.path, FORKS) as parent:
        parent.wait()
        residue = retired(segment)
        assert not residue.gone()
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.close()
        assert parent.stdout.read() == ""  # The fork has ended, or is about to: its pipe is closed.
        gone_by_itself(residue)


def gone_by_itself(residue: FileResidue) -> None:
    """A process closes its descriptors before or after its maps."""
    while not residue.gone():
        os.sched_yield()


def test_who_opens_it_again_after_the_unlink_counts(segment: PosixSegment) -> None:
    """The name is gone, and /proc leads there still."""
    with mapping(segment.path) as first:
        residue = retired(segment)
        with mapping(f"/proc/{first.pid}/fd/{inherited(first.pid, segment)}", MAP_ALONE):
            end(first)
            assert not residue.gone()
        assert residue.gone()


def inherited(pid: int, segment: PosixSegment) -> str:
    """The descriptor of a process that is of this segment."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        status = entry.stat()
        if (status.st_dev, status.st_ino) == segment.identity:
            return entry.name
    raise AssertionError("it has none")


def test_a_descriptor_that_cannot_be_mapped_does_not_count(segment: PosixSegment) -> None:
    path_only = os.open(segment.path, os.O_PATH)
    assert segment.mapped() is False
    os.close(path_only)


def test_a_writer_is_seen_and_a_reader_is_not(segment: PosixSegment) -> None:
    fd = os.open(segment.path, os.O_RDONLY)
    with mapping(segment.path):
        assert nobody_writes(fd) is True
    os.chmod(segment.path, 0o600)
    writer = os.open(segment.path, os.O_RDWR)
    assert nobody_writes(fd) is False
    os.close(writer)
    assert nobody_writes(fd) is True
    assert only_ours(fd) is True
    os.close(fd)


BROKEN = """
import fcntl, os, signal, sys, threading
from weightd.storage import residue

path, protected, kind = sys.argv[1:]
ask = fcntl.fcntl
fd = os.open(path, os.O_RDONLY)
target = [path if kind == "linked" else f"/proc/{os.getpid()}/fd/{fd}"]
opened = threading.Event()

def other():
    os.close(os.open(target[0], os.O_RDONLY))
    opened.set()

def slow(fd, command, argument=0):
    if command == fcntl.F_SETSIG and protected == "no":
        return 0
    if command == fcntl.F_SETLEASE and argument == fcntl.F_UNLCK:
        thread = threading.Thread(target=other)
        thread.start()
        # The kernel says what the lease is to become from the moment at which it tells us of the opener.
        while ask(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK:
            pass
        print("opener waits:", not opened.is_set(), flush=True)
    return ask(fd, command, argument)

fcntl.fcntl = slow
if kind == "unlinked":
    os.unlink(path)
print(residue.only_ours(fd), opened.wait(20), flush=True)
"""


@pytest.mark.parametrize("kind", ["linked", "unlinked"])
def test_who_opens_in_that_moment_waits_and_no_signal_ends_us(tmp_path: Path, kind: str) -> None:
    """The control: without our choice of a signal the kernel's ends the process."""
    for protected, code, printed in [("yes", 0, "opener waits: True\nTrue True\n"), ("no", -signal.SIGIO, "")]:
        path = tmp_path / protected
        path.write_bytes(b"x")
        run = subprocess.run(
            [sys.executable, "-c", BROKEN, path, protected, kind], capture_output=True, text=True, timeout=60
        )
        assert (run.returncode, run.stdout.startswith(printed)) == (code, True), run


@pytest.mark.parametrize(
    "code", [errno.EINVAL, errno.ENOLCK, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP]
)
def test_what_the_kernel_does_not_tell_is_not_claimed(
    segment: PosixSegment, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(fd: int, command: int, argument: int = 0) -> int:
        raise OSError(code, os.strerror(code))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(residue.fcntl, "fcntl", refuse)
    assert segment.mapped() is None
    found = retired(segment)
    assert not found.known
    assert found.gone()
    assert not segment.path.exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_kernel_that_stops_telling(segment: PosixSegment, monkeypatch: pytest.MonkeyPatch) -> None:
    with mapping(segment.path):
        found = retired(segment)
        assert found.known
        monkeypatch.setattr(residue, "_leased", lambda fd, kind: None)
        assert found.gone()
        assert not found.known


def test_a_kernel_short_of_memory_is_asked_again(segment: PosixSegment, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [errno.ENOMEM, errno.ENOMEM]
    ask = fcntl.fcntl

    def short(fd: int, command: int, argument: int = 0) -> int:
        if answers:
            raise OSError(answers.pop(), "")
        return ask(fd, command, argument)

    monkeypatch.setattr(residue.fcntl, "fcntl", short)
    found = retired(segment)
    assert not found.gone()
    assert found.gone()
    assert found.known


def test_without_a_descriptor_it_goes_all_the_same(segment: PosixSegment) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert segment.mapped() is None
        found = segment.retire()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found is not None
    assert (found.known, found.gone()) == (False, True)
    assert not segment.path.exists()


FOREIGN = """
import os, sys
from weightd.storage.residue import nobody_writes, only_ours
fd = os.open(sys.argv[1], os.O_RDONLY)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(only_ours(fd), nobody_writes(fd))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_the_file_of_another_user_cannot_be_asked_about(segment: PosixSegment) -> None:
    run = subprocess.run([sys.executable, "-c", FOREIGN, segment.path], capture_output=True, text=True, timeout=60)
    assert run.stdout == "None None\n", run


OWN = """
import os
from weightd.storage.segments import PosixSegmentStore
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
segment = PosixSegmentStore("t" + os.urandom(6).hex()).create("own", 10)
segment.prepare(0, 10)
segment.seal()
idle = segment.mapped()
with segment.opened():
    busy = segment.mapped()
print(idle, busy, segment.retire() is None)
"""


def test_a_user_without_rights_asks_about_its_own() -> None:
    """What the daemon is: the owner of its segments, without CAP_LEASE."""
    run = subprocess.run([sys.executable, "-c", OWN], capture_output=True, text=True, timeout=60)
    assert run.stdout == "False True True\n", run


def test_asked_by_many_threads_it_is_gone_once(segment: PosixSegment) -> None:
    process = start(MAP_ALONE, segment.path)
    found = retired(segment)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: found.gone(), range(200))) == {False}
        end(process)
        assert set(pool.map(lambda _: found.gone(), range(200))) == {True}
