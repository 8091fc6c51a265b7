"""Which socket, and what is said when it does not answer."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.serving import DaemonProcess
from weightd import AsyncClient, Client, errors
from weightd.client.address import socket_path
from weightd.core.paths import HOST_SOCKET, default_socket

NOBODY = 65534


@pytest.mark.parametrize(
    ("env", "uid", "there", "expected"),
    [
        ({"WEIGHTD_SOCKET": "/x/s"}, 0, {HOST_SOCKET}, "/x/s"),
        ({"WEIGHTD_SOCKET": "unix:///x/s"}, 0, set(), "/x/s"),
        ({"WEIGHTD_SOCKET": "unix:/x/s"}, 7, set(), "/x/s"),
        ({"WEIGHTD_SOCKET": ""}, 0, set(), HOST_SOCKET),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, set(), HOST_SOCKET),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, {HOST_SOCKET}, HOST_SOCKET),
        ({"XDG_RUNTIME_DIR": "/run/user/7/"}, 7, set(), "/run/user/7/weightd/weightd.sock"),
        ({}, 7, {"/run/user/7/weightd/weightd.sock"}, "/run/user/7/weightd/weightd.sock"),
        ({"XDG_RUNTIME_DIR": "relative"}, 7, set(), "/tmp/weightd-7/weightd.sock"),
        ({}, 7, set(), "/tmp/weightd-7/weightd.sock"),
    ],
)
def test_the_default(env: dict[str, str], uid: int, there: set[str], expected: str) -> None:
    assert default_socket(env, uid, there.__contains__) == expected


def test_the_environment_and_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTD_SOCKET", "/from/env")
    assert Client().socket == Path("/from/env")
    assert Client("unix:/given").socket == AsyncClient(Path("/given")).socket == Path("/given")


def test_a_path_too_long_is_refused_before_anything() -> None:
    with pytest.raises(errors.ConfigError, match="107"):
        Client("/" + "x" * 107)
    assert Client("/" + "x" * 106).socket


def test_a_directory_below_tmp_that_somebody_else_made_is_not_trusted() -> None:
    directory = Path(f"/tmp/weightd-{os.getuid()}")
    if directory.exists():
        pytest.skip(f"{directory} is in use")
    directory.mkdir()
    try:
        assert socket_path(directory / "weightd.sock")
        os.chown(directory, NOBODY, NOBODY)
        with pytest.raises(errors.SocketDenied, match="belongs to user 65534"):
            socket_path(directory / "weightd.sock")
    finally:
        directory.rmdir()


def fault_of(path: Path) -> errors.WeightdError:
    """The same from both clients, and soon."""
    began = time.monotonic()
    with pytest.raises(errors.WeightdError) as sync, Client(path) as client:
        client.acquire("demo")

    async def call() -> None:
        async with AsyncClient(path) as client:
            await client.status()

    with pytest.raises(type(sync.value)):
        asyncio.run(call())
    assert time.monotonic() - began < 10, "a hang, not a matter of speed"
    return sync.value


def test_no_socket(short: Path) -> None:
    fault = fault_of(short / "nothing")
    assert type(fault) is errors.DaemonUnavailable
    assert "does not exist" in fault.message
    assert fault.ref == "demo"
    assert "weightd serve" in fault.remedy
    assert "systemctl start weightd" in fault.remedy


def test_nobody_listens(short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(short / "s"))
    fault = fault_of(short / "s")
    assert type(fault) is errors.DaemonUnavailable
    assert "nobody listens" in fault.message


def test_not_a_socket_and_a_file_as_directory(short: Path) -> None:
    (short / "s").write_text("")
    assert type(fault_of(short / "s")) is errors.DaemonUnavailable
    assert type(fault_of(short / "s" / "s")) is errors.DaemonUnavailable


def test_somebody_who_is_no_daemon(short: Path) -> None:
    """Takes connections and closes them."""
    import threading

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short / "s"))
        listener.listen()

        def refuse() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=refuse)
        thread.start()
        try:
            assert type(fault_of(short / "s")) is errors.DaemonUnavailable
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


DENIED = """
import asyncio, concurrent.futures.thread, os, sys  # all that is needed, as another user may not read it
from weightd import AsyncClient, Client, errors
import weightd.client.client, weightd.client.aio
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
async def call():
    async with AsyncClient(sys.argv[1]) as client:
        await client.status()
for run in (Client(sys.argv[1]).status, lambda: asyncio.run(call())):
    try:
        run()
    except errors.SocketDenied as e:
        print(e.exit_code, e)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("hidden", [False, True], ids=["socket", "directory"])
def test_a_socket_without_rights(process: DaemonProcess, hidden: bool) -> None:
    shutil.chown(process.socket, group="daemon")
    if hidden:
        process.directory.chmod(0o700)
    command = [sys.executable, "-c", DENIED, process.socket]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert line.startswith("5 this user may not open the daemon's socket")
        assert ("usermod -aG daemon <user>" in line) is not hidden
