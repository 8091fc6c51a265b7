"""The shaped path for real: namespaces, TUN devices, TCP across."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import netns, shaped, wire
from benchmarks.machine import Unable

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/net/tun").exists(), reason="network namespaces and TUN devices need root"
)
SERVE = """
import os, socket
with socket.create_server(("198.18.1.1", 8080)) as s:
    print("ready", flush=True)
    c, _ = s.accept()
    c.sendall(os.urandom(1) * int(c.recv(100)))
"""
FETCH = """
import hashlib, socket, sys
with socket.create_connection((sys.argv[1], 8080)) as s:
    s.sendall(sys.argv[2].encode())
    data = b""
    while block := s.recv(1 << 20):
        data += block
print(len(data), hashlib.sha256(data).hexdigest())
"""


def left() -> list[Path]:
    return [p for d in (netns.NAMESPACES, netns.FILES) for p in d.glob(f"{netns.PREFIX}{os.getpid()}-*")]


def test_a_namespace_is_gone_after_an_error() -> None:
    with pytest.raises(KeyError):
        with netns.namespace("client", resolver="127.0.0.1") as name:
            assert name in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
            raise KeyError
    assert left() == []


def test_what_a_killed_run_left_is_removed_by_the_next() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = f"{netns.PREFIX}{dead.pid}-client"
    subprocess.run(["ip", "netns", "add", stale], check=True)
    with netns.namespace("client"):
        assert not (netns.NAMESPACES / stale).exists()


def test_a_command_that_fails_is_named() -> None:
    with netns.namespace("client"), pytest.raises(Unable, match="netns add"):
        with netns.namespace("client"):
            pass


def test_a_path_that_cannot_be_made_says_why() -> None:
    with netns.namespace("client") as client, pytest.raises(Unable, match="No such file"):
        with shaped.path_between(client, f"{client}-none", shaped.SCENARIOS["cap"], []):
            pass


@pytest.mark.parametrize(
    "scenario",
    [
        shaped.Scenario("as it is", 0.0, 0),
        shaped.Scenario("far and capped", 0.01, 50e6, 20e6),
        shaped.Scenario("lossy, by name", 0.002, 0, 0, loss=0.02, slow=1e6),
    ],
    ids=lambda s: s.title,
)
def test_bytes_cross_the_path_whole(scenario: shaped.Scenario) -> None:
    size, reports = 1_500_000, list[wire.Report]()
    host = shaped.NAME if scenario.slow else shaped.SERVERS[0]
    with netns.namespace("client", resolver="127.0.0.1") as client, netns.namespace("server") as server:
        with shaped.path_between(client, server, scenario, reports):
            serve = [*netns.within(server), sys.executable, "-c", SERVE.replace("198.18.1.1", "0.0.0.0")]
            with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                process.stdout.readline()
                fetch = [*netns.within(client), sys.executable, "-c", FETCH, host, str(size)]
                got = subprocess.run(fetch, capture_output=True, text=True, check=True).stdout.split()
    assert got[0] == str(size)
    assert got[1] in {hashlib.sha256(bytes([n]) * size).hexdigest() for n in range(256)}
    assert reports[0].bytes > size
    assert (reports[0].lost > 0) == (scenario.loss > 0)
    assert left() == []


@pytest.mark.skipif(
    not all(shutil.which(c, path="/usr/sbin:/usr/bin") for c in ("nginx", "aria2c")), reason="needs nginx and aria2"
)
def test_a_run_that_is_terminated_leaves_no_namespace() -> None:
    command = [sys.executable, "-m", "benchmarks.shaped", "--scenarios", "cap", "--size", "64MiB"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        line = process.stdout.readline()  # Of the warm-up: everything is up.
        while b"warm-up" not in line and line:
            line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    prefix = f"{netns.PREFIX}{process.pid}-"
    assert not [p for d in (netns.NAMESPACES, netns.FILES) for p in d.glob(f"{prefix}*")]
