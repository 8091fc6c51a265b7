"""`weightd top` and `weightd watch` as programs: on a terminal, in a pipe, over a restart of the daemon."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.cli.conftest import Cli
from tests.support.fake_engine import REF
from tests.support.serving import DaemonProcess, short_directory
from weightd.client.client import Client

PATIENCE = 30.0
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"
OWN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "weightd", *sys.argv[1:]])
"""


class Terminal:
    """A program on a terminal of its own; everything it draws is in `text`."""

    def __init__(self, *arguments: str, rows: int = 24, columns: int = 80) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**env, "TERM": "xterm-256color"},
        )
        self.text = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def until(self, wanted: str) -> str:
        """Reads on until it has drawn this, from where the last `until` ended; returns what stood before."""
        end = time.monotonic() + PATIENCE
        while (found := re.search(wanted, self.text, re.DOTALL)) is None:
            assert select.select([self.ours], [], [], max(0.0, end - time.monotonic()))[0], self.text[-3000:]
            self.text += os.read(self.ours, 65536).decode(errors="replace")
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before

    def press(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def end(self) -> int:
        """Waits for it; its terminal must be as it was."""
        code = self.process.wait(PATIENCE)
        assert termios.tcgetattr(self._theirs) == self.before
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self._theirs)


@pytest.fixture
def daemon() -> Iterator[DaemonProcess]:
    with short_directory() as directory:
        it = DaemonProcess(directory)
        try:
            yield it
        finally:
            it.close()


def top(daemon: DaemonProcess, *options: str, interval: str = "0.1") -> Terminal:
    return Terminal("--socket", str(daemon.socket), "top", "--interval", interval, *options)


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x03"])
def test_q_and_ctrl_c_leave_and_the_terminal_is_as_it_was(daemon: DaemonProcess, key: bytes) -> None:
    with top(daemon) as terminal:
        terminal.until(re.escape(ENTER))
        terminal.until("MODELS.*demo")
        terminal.press(b"x")
        terminal.until("weightd")
        terminal.press(key)
        terminal.until(re.escape(LEAVE))
        assert terminal.end() == 0


def test_a_key_is_heard_long_before_the_next_look(daemon: DaemonProcess) -> None:
    with top(daemon, interval="3600") as terminal:
        terminal.until("demo")
        terminal.press(b"q")
        assert terminal.end() == 0


def test_sigterm_leaves_the_terminal_as_it_was(daemon: DaemonProcess) -> None:
    with top(daemon) as terminal:
        terminal.until("demo")
        terminal.process.send_signal(signal.SIGTERM)
        terminal.until(re.escape(LEAVE))
        assert terminal.end() == 143


def test_a_terminal_that_is_resized_is_filled_anew(daemon: DaemonProcess) -> None:
    with top(daemon, interval="3600") as terminal:
        terminal.until("demo")
        assert "resident" not in terminal.until("NVME")
        terminal.resize(40, 140)
        terminal.until(r"resident\S*  resident")
        terminal.press(b"q")
        assert terminal.end() == 0


def test_a_daemon_that_is_started_again_while_it_runs(daemon: DaemonProcess) -> None:
    with top(daemon) as terminal:
        terminal.until("SERVING")
        first = daemon.process.pid
        daemon.kill()
        terminal.until("no answer for .*no daemon")
        daemon.restart()
        terminal.until(f"started again: process {first} → {daemon.process.pid}")
        with Client(daemon.socket) as client, client.acquire(REF):
            terminal.until("LEASES.*demo")
        terminal.press(b"q")
        assert terminal.end() == 0


def test_a_daemon_that_stands_still_does_not_hold_the_keys(daemon: DaemonProcess) -> None:
    with top(daemon) as terminal:
        terminal.until("SERVING")
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            terminal.until("no answer for ")
            terminal.press(b"q")
            assert terminal.end() == 0
        finally:
            daemon.process.send_signal(signal.SIGCONT)


def test_once_prints_a_frame_and_ends(daemon: DaemonProcess, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    result = cli("--socket", daemon.socket, "top", "--once")
    assert result.code == 0
    assert result.out.startswith(" weightd ")
    assert "\x1b" not in result.out
    assert max(map(len, result.out.splitlines())) <= 90
    assert any(line.startswith(" demo ") for line in result.out.splitlines())
    with top(daemon, "--once") as terminal:
        drawn = terminal.until("demo")
        assert ENTER not in drawn
        assert terminal.end() == 0


def test_without_a_daemon_top_and_watch_end_at_once(tmp_path: Path, cli: Cli) -> None:
    for command in ("top", "watch"):
        assert cli("--socket", tmp_path / "s", command).code == 8
    assert cli("--socket", tmp_path / "s", "top", "--interval", "0").code == 2


@contextmanager
def piped(daemon: DaemonProcess, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Killed at the end, if it still runs."""
    command = [sys.executable, "-m", "weightd", "--socket", str(daemon.socket), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_with(process: subprocess.Popen[str], wanted: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if wanted in line:
            return line
    pytest.fail(f"it ended without {wanted!r}: {process.stderr.read() if process.stderr else ''}")


def test_frames_into_a_pipe_go_on_over_a_restart(daemon: DaemonProcess) -> None:
    with piped(daemon, "top", "--interval", "0.1") as process:
        assert "\x1b" not in line_with(process, "SERVING")
        line_with(process, "SERVING")
        daemon.kill()
        line_with(process, "no answer")
        daemon.restart()
        line_with(process, "started again")
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_watch_prints_what_happens(daemon: DaemonProcess) -> None:
    with piped(daemon, "watch") as process, Client(daemon.socket) as client:
        follow(client, process)
        client.pin(REF)
        line = line_with(process, " pinned ")
        assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d  pinned          {REF} 0123456789abcdef\n", line)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130


def follow(client: Client, process: subprocess.Popen[str]) -> None:
    """It listens once it has printed something that began after it: until then, something happens."""
    assert process.stdout is not None
    while not select.select([process.stdout], [], [], 0.05)[0]:
        client.unpin(REF)


def test_watch_goes_on_over_a_restart_and_says_that_something_may_be_missing(daemon: DaemonProcess) -> None:
    with piped(daemon, "watch", "--json") as process:
        with Client(daemon.socket) as client:
            follow(client, process)
            with client.acquire(REF):
                event = json.loads(line_with(process, '"acquired"'))
        assert event == {
            "type": "event",
            "kind": "acquired",
            "ref": REF,
            "revision": "0123456789abcdef",
            "time": 2.5,
            "detail": "",
        }
        daemon.kill()
        gap = json.loads(line_with(process, '"gap"'))
        assert "missing" in gap["message"]
        assert gap["since"] <= gap["time"]
        daemon.restart()
        again = json.loads(line_with(process, '"gap"'))
        assert again["message"] == "following again"
        with Client(daemon.socket) as client:
            client.pin(REF)
        assert json.loads(line_with(process, '"event"'))["kind"] == "pinned"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143


def test_watch_of_a_reader_that_leaves(daemon: DaemonProcess) -> None:
    with piped(daemon, "watch") as process, Client(daemon.socket) as client:
        follow(client, process)
        assert process.stdout is not None
        process.stdout.close()
        while process.poll() is None:
            client.unpin(REF)
        assert process.wait() == 141
