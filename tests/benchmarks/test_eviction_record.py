"""What a recorder writes of a real daemon."""

from __future__ import annotations

import contextlib
import io
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import ours
from benchmarks.eviction import trace
from benchmarks.eviction.record import Recorder
from weightd import Client

BUDGETS = {"shm.budget": 8 << 20, "nvme.budget": 8 << 20}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ours.Daemon]:
    with ours.daemon(tmp_path_factory.mktemp("d"), BUDGETS) as running:
        yield running


def model(path: Path, size: int) -> str:
    path.write_bytes(random.Random(path.name).randbytes(size))
    return path.as_uri()


def test_what_a_daemon_serves_is_recorded_and_read_back(tmp_path: Path, daemon: ours.Daemon) -> None:
    one, other = model(tmp_path / "one.bin", 1 << 20), model(tmp_path / "other.bin", 3000)
    out = io.BytesIO()
    with Client(daemon.socket) as client, Client(daemon.socket) as watching:
        client.fetch(one)
        recorder = Recorder(watching, out, "a test")
        thread = threading.Thread(target=recorder.run)
        thread.start()
        try:
            until_written(out, b'"snapshot"')
            for _ in range(3):
                with client.acquire(one), client.acquire(other):
                    pass
            until_written(out, b'"released"', 6)
        finally:
            recorder.stop()
            thread.join(20)
        models = {m.ref: m for m in client.models()}
    assert not thread.is_alive()
    path = tmp_path / "recorded.jsonl"
    path.write_bytes(out.getvalue())
    found = trace.read(path)
    assert [r.ref for r in found.requests] == [one, other] * 3
    assert recorder.requests == 6
    assert all(0 < r.held < 60 for r in found.requests)
    for ref, held in models.items():
        assert found.snapshots[ref, held.revision].blobs == {f.digest: f.size for f in held.files}


def until_written(out: io.BytesIO, text: bytes, times: int = 1) -> None:
    """Polls: a buffer cannot be awaited."""
    waiting = threading.Event()
    for _ in range(2000):
        if out.getvalue().count(text) >= times:
            return
        waiting.wait(0.01)
    raise AssertionError(out.getvalue())


def test_an_anonymous_record_has_no_names(tmp_path: Path, daemon: ours.Daemon) -> None:
    ref = model(tmp_path / "secret.bin", 3000)
    out = io.BytesIO()
    with Client(daemon.socket) as client, Client(daemon.socket) as watching:
        recorder = Recorder(watching, out, "", anonymous=True)
        thread = threading.Thread(target=recorder.run)
        thread.start()
        try:
            until_written(out, b'"trace"')
            while not out.getvalue().count(b'"released"'):
                with client.acquire(ref):
                    pass
        finally:
            recorder.stop()
            thread.join(20)
    assert b"secret" not in out.getvalue()
    assert b"sha256:" not in out.getvalue()
    path = tmp_path / "recorded.jsonl"
    path.write_bytes(out.getvalue())
    assert 3000 in {s.size for s in trace.read(path).snapshots.values()}


@contextlib.contextmanager
def recording(socket: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.eviction.record", "--socket", str(socket), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def until_in(path: Path, text: str) -> None:
    """Polls another process's file."""
    waiting = threading.Event()
    for _ in range(2000):
        if path.exists() and text in path.read_text():
            return
        waiting.wait(0.01)
    raise AssertionError(path.read_text() if path.exists() else "no file")


def test_a_record_goes_on_when_the_daemon_is_started_again_and_ends_by_sigterm(tmp_path: Path) -> None:
    home, out = tmp_path / "d", tmp_path / "out.jsonl"
    ref = model(tmp_path / "m.bin", 3000)
    with contextlib.ExitStack() as stack:
        with ours.daemon(home, BUDGETS) as running, Client(running.socket) as client:
            client.fetch(ref)
            process = stack.enter_context(recording(running.socket, out))
            until_in(out, '"snapshot"')
            with client.acquire(ref):
                until_in(out, '"acquired"')
        until_in(out, '"gap"')
        with ours.daemon(home, BUDGETS) as running, Client(running.socket) as client:
            # When it watches again, nobody tells.
            while '"acquired"' not in out.read_text().partition('"gap"')[2]:
                with client.acquire(ref):
                    pass
            process.send_signal(signal.SIGTERM)
            told, _ = process.communicate(timeout=20)
    assert process.returncode == 0, told
    assert told == f"{len(trace.read(out).requests)} requests are in {out}\n"
    assert "recorded until here" in out.read_text().splitlines()[-1]


def test_where_nothing_can_be_recorded_it_says_why(tmp_path: Path, daemon: ours.Daemon) -> None:
    out = tmp_path / "out.jsonl"
    with recording(tmp_path / "nobody", out) as process:
        told, _ = process.communicate(timeout=20)
    assert (process.returncode, out.exists()) == (1, False)
    assert told.startswith("Not recorded: no daemon")
    out.write_text("mine")
    with recording(daemon.socket, out) as process:
        told, _ = process.communicate(timeout=20)
    assert (process.returncode, out.read_text()) == (1, "mine")
    assert "choose another --out" in told
