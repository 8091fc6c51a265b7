"""A holder is confirmed by the kernel, or it is only what a process says."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.fake_engine import DEMO, REF, FakeEngine
from tests.support.serving import Served, descriptors, short_directory
from weightd.client.aio import AsyncClient
from weightd.client.types import LeaseInfo
from weightd.engine.api import Holder, LeaseState
from weightd.kernel import accepted_from
from weightd.rpc.peers import Peer, confirm, connected, name_of, named
from weightd.rpc.server import make_server

LEASES = """
import os, sys, grpc
from weightd.wire.gen import weightd_pb2 as pb
own = (os.getpid(), int(open("/proc/self/stat").read().rpartition(")")[2].split()[19]))
pid, started = [int(x) for x in sys.argv[3:]] or own
os.setuid(int(sys.argv[2]))  # here: the interpreter may be where another user may not read
with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
    call = channel.unary_stream(
        "/weightd.v1.Weightd/Acquire", pb.AcquireRequest.SerializeToString, pb.AcquireEvent.FromString
    )(pb.AcquireRequest(ref="demo", holder=pb.Holder(pid=pid, started=started, command="worker")))
    assert next(call).handles.files
    print(*own, os.getpid(), flush=True)
    sys.stdin.read()
"""
OWN = os.geteuid()
IDLE = "import sys; print('ready', flush=True); sys.stdin.read()"


@dataclass
class Process:
    """Runs until its context ends."""

    pid: int
    said: list[str]


@contextmanager
def running(*command: str) -> Iterator[Process]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Process(process.pid, process.stdout.readline().split())
        finally:
            process.stdin.close()
            process.wait(20)


@asynccontextmanager
async def leasing(daemon: Served, *claim: int, uid: int = OWN, before: tuple[str, ...] = ()) -> AsyncIterator[Process]:
    """The daemon is in this loop, which must go on meanwhile."""
    process = running(*before, sys.executable, "-c", LEASES, str(daemon.socket), str(uid), *map(str, claim))
    worker = await asyncio.to_thread(process.__enter__)
    try:
        yield worker
    finally:
        await asyncio.to_thread(process.__exit__, None, None, None)


async def leases(daemon: Served) -> list[LeaseInfo]:
    async with AsyncClient(daemon.socket) as client:
        return await client.leases()


async def test_who_leases_is_confirmed(daemon: Served) -> None:
    daemon.socket.chmod(0o666)
    uid = 65534 if OWN == 0 else OWN
    async with leasing(daemon, uid=uid) as worker:
        (lease,) = await leases(daemon)
    holder = lease.holder
    assert (holder.confirmed, holder.pid, holder.uid, holder.command) == (True, worker.pid, uid, "worker")
    assert holder.started == int(worker.said[1])


async def test_who_says_to_be_another_is_not_confirmed(daemon: Served) -> None:
    """The other one's pid and start time anybody may read in /proc."""
    with running(sys.executable, "-c", IDLE) as victim:
        claim = name_of(victim.pid)
        assert claim is not None
        async with leasing(daemon, *claim):
            (lease,) = await leases(daemon)
    assert (lease.holder.confirmed, lease.holder.pid, lease.holder.uid) == (False, victim.pid, 0)


async def test_who_says_to_be_another_that_is_connected_too_is_not_found_out(daemon: Served) -> None:
    """The limit that the module's docstring states."""
    async with leasing(daemon) as victim, leasing(daemon, *map(int, victim.said[:2])):
        found = await leases(daemon)
    assert [(lease.holder.confirmed, lease.holder.pid) for lease in found] == [(True, victim.pid)] * 2


async def test_the_pid_of_a_former_process_is_not_confirmed(daemon: Served) -> None:
    """Same pid, another start: the holder of the pid before, or the one that is given it next."""
    async with leasing(daemon) as worker:
        pid, started = map(int, worker.said[:2])
        now = [LeaseState(REF, "r", 1.0, Holder(pid, s)) for s in (started - 1, started, started + 1, 0)]
        assert [lease.holder.confirmed for lease in confirm(now)] == [False, True, False, False]
    assert not confirm(now)[1].holder.confirmed


async def test_in_a_pid_namespace_the_daemons_view_is_told(daemon: Served) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or OWN != 0:
        pytest.skip("a PID namespace needs root and unshare(1)")
    before = (unshare, "--pid", "--fork", "--kill-child")
    async with leasing(daemon, before=before) as worker, leasing(daemon, before=before) as other:
        assert [worker.said[0], other.said[0]] == ["1", "1"]
        found = await leases(daemon)
    assert all(lease.holder.confirmed and lease.holder.pid > 1 for lease in found)
    assert len({lease.holder.pid for lease in found}) == 2


def test_a_name_that_two_have_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {10: (1, 500), 20: (1, 500), 30: (1, 501), 40: None}
    monkeypatch.setattr("weightd.rpc.peers.name_of", names.get)
    peers = [Peer(10, 0), Peer(20, 0), Peer(10, 0), Peer(30, 7), Peer(40, 0)]
    assert named(peers) == {(1, 501): Peer(30, 7)}
    assert named([Peer(10, 0), Peer(10, 0)]) == {(1, 500): Peer(10, 0)}


HIDDEN = """
import os, subprocess, sys
from weightd.rpc.peers import name_of
subprocess.run(["mount", "-t", "proc", "-o", "hidepid=invisible", "proc", "/proc"], check=True)
assert name_of(int(sys.argv[1]))
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
print(name_of(int(sys.argv[1])))
"""


def test_where_proc_is_hidden_nobody_is_confirmed() -> None:
    unshare = shutil.which("unshare")
    if unshare is None or OWN != 0:
        pytest.skip("hiding /proc needs root and unshare(1)")
    done = subprocess.run(
        [unshare, "--mount", sys.executable, "-c", HIDDEN, str(os.getpid())], capture_output=True, text=True, timeout=60
    )
    if "mount:" in done.stderr:
        pytest.skip(f"this kernel or container does not let /proc be mounted: {done.stderr}")
    assert done.stdout.strip() == "None", done.stderr


def test_a_process_that_has_ended_has_no_name() -> None:
    with running(sys.executable, "-c", IDLE) as process:
        assert name_of(process.pid) is not None
    assert name_of(process.pid) is None
    assert name_of(0) is None


def test_a_command_with_parentheses_is_no_trap(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    shutil.copy(sys.executable, program)
    with running(str(program), "-S", "-c", IDLE) as process:
        found, own = name_of(process.pid), name_of(os.getpid())
    assert found is not None
    assert own is not None
    assert found[0] == process.pid
    assert own[1] <= found[1]


@pytest.mark.parametrize("kind", ["file", "pair", "listener", "client", "datagram", "inet"])
def test_only_connections_that_were_accepted_count(kind: str) -> None:
    with short_directory() as directory, ExitStack() as stack:
        path = str(directory / "s")
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen()
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(path)
        accepted = stack.enter_context(listener.accept()[0])
        pair = [stack.enter_context(s) for s in socket.socketpair()]
        datagram = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        datagram.bind(str(directory / "d"))
        inet = stack.enter_context(socket.socket())
        file = stack.enter_context((directory / "f").open("w"))
        others = {
            "file": file,
            "pair": pair[0],
            "listener": listener,
            "client": client,
            "datagram": datagram,
            "inet": inet,
        }
        assert accepted_from(accepted.fileno()) == (os.getpid(), OWN)
        assert accepted_from(others[kind].fileno()) is None  # type: ignore[attr-defined]
        assert Peer(os.getpid(), OWN) in connected()
        assert accepted_from(accepted.fileno(), os.fsencode(path)) == (os.getpid(), OWN)
        assert accepted_from(accepted.fileno(), os.fsencode(path + "s")) is None
    assert accepted_from(accepted.fileno()) is None


async def test_who_is_connected_to_another_socket_is_told_to_nobody_there(short: Path) -> None:
    """Else one tenant could find out which processes of another one are connected, by calling itself by their names."""
    engine = FakeEngine(short)
    engine.add(REF, DEMO)
    servers = [await make_server(engine, short / name, alone=name == "alone") for name in ("all", "alone")]
    try:
        async with leasing(Served(engine, servers[0], short / "all")) as worker:
            for name, confirmed in (("all", True), ("alone", False)):
                (lease,) = await leases(Served(engine, servers[0], short / name))
                assert (lease.holder.confirmed, lease.holder.pid) == (confirmed, worker.pid)
        async with leasing(Served(engine, servers[1], short / "alone")):
            (lease,) = await leases(Served(engine, servers[1], short / "alone"))
            assert lease.holder.confirmed
    finally:
        for server in servers:
            await server.stop()
        engine.close()


def test_connections_that_come_and_go_meanwhile_are_not_disturbed() -> None:
    """Descriptors get other meanings between two looks; whoever is asked keeps its end, and the other sees it close."""
    stop, failures = threading.Event(), list[str]()

    def churn(path: str) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            while not stop.is_set():
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(20)
                    client.connect(path)
                    accepted, _ = listener.accept()
                    accepted.sendall(b"x")
                    accepted.close()
                    if client.recv(2) != b"x" or client.recv(1) != b"":
                        failures.append("disturbed")

    before = descriptors()
    with short_directory() as directory:
        threads = [threading.Thread(target=churn, args=(str(directory / str(i)),)) for i in range(4)]
        for thread in threads:
            thread.start()
        seen = [connected() for _ in range(300)]
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert set.union(*seen) <= {Peer(os.getpid(), OWN)}
    assert any(seen)
    assert descriptors() == before
