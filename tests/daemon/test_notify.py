"""sd_notify to real sockets."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from pathlib import Path

import pytest

from weightd.daemon.notify import Notifier


def listener(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.settimeout(10)
    sock.bind(address)
    return sock


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_both_kinds_of_address(tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "n") if kind == "path" else f"weightd-test-{secrets.token_hex(6)}"
    with listener(name if kind == "path" else "\0" + name) as sock:
        notifier = Notifier({"NOTIFY_SOCKET": name if kind == "path" else "@" + name})
        notifier.send("READY=1", "STATUS=serving: été")
        notifier.close()
        notifier.close()
        assert sock.recv(1000).decode() == "READY=1\nSTATUS=serving: été"


def test_without_systemd_nothing_is_sent() -> None:
    for env in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}):
        notifier = Notifier(env)
        notifier.send("READY=1")
        assert notifier.watchdog_s is None


def test_a_socket_that_nobody_reads_is_logged_and_blocks_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with listener(str(tmp_path / "n")):
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "n")})
        with caplog.at_level(logging.WARNING):
            for _ in range(5000):
                notifier.send("WATCHDOG=1")
                if caplog.records:
                    break
        assert "notify WATCHDOG=1: Resource temporarily unavailable" in caplog.text
        notifier.close()
    caplog.clear()
    (tmp_path / "n").unlink()
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "n")})
    notifier.send("READY=1")
    notifier.close()
    assert "notify READY=1: No such file" in caplog.text


@pytest.mark.parametrize(
    ("env", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_period(env: dict[str, str], seconds: float | None) -> None:
    assert Notifier(env).watchdog_s == seconds
