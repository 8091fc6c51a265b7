"""`weightd serve` as a real process: starts, serves, drains, dies, starts again."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.process import SERVE, Served
from tests.support.origin import Fault, Origin
from weightd.client.client import Client
from weightd.core.errors import DaemonUnavailable, Draining, WeightdError

NOBODY = 65534
DATA = os.urandom(3 << 20)


def test_ready_then_stopping_then_nothing_is_left(tmp_path: Path) -> None:
    with Served(tmp_path, "--at-stop", "drop") as served:
        lines = served.until("READY=1")
        assert any(line.startswith("STATUS=serving: ") for line in lines)
        assert stat.S_IMODE(served.socket.stat().st_mode) == 0o660
        assert stat.S_IMODE(served.state_dir.stat().st_mode) == 0o750
        with Origin({"f.bin": DATA}) as origin, Client(served.socket) as client:
            client.fetch(origin.url("f.bin"))
        assert served.segments()
        served.process.send_signal(signal.SIGTERM)
        served.until("STOPPING=1")
        assert served.process.wait(30) == 0
        assert served.segments() == []
        assert not served.socket.exists()
        log = served.text().splitlines()
    assert "starting weightd" in log[0]
    assert "serving on" in log[1]
    assert "fetch_started http://127.0.0.1" in log[2]
    assert "fetch_finished http://127.0.0.1" in log[3]
    assert "SIGTERM: stopping" in log[4]
    assert log[5].endswith("stopped")
    assert len(log) == 6


@pytest.mark.parametrize("at_stop", ["auto", "keep", "drop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_keeps_segments_for_the_next_start(tmp_path: Path, at_stop: str, number: int) -> None:
    """Unless it was Ctrl-C, or the configuration says so."""
    with Origin({"f.bin": DATA}) as origin, Served(tmp_path, "--at-stop", at_stop) as served:
        with Client(served.ready().socket) as client:
            client.fetch(origin.url("f.bin"))
        left = served.segments()
        assert served.stop(number) == 0
        assert not served.socket.exists()
        kept = at_stop == "keep" or (at_stop == "auto" and number == signal.SIGTERM)
        assert served.segments() == (left if kept else [])
        asked = len(origin.requests)
        with Served(_second(tmp_path), "--at-stop", "drop", *_same(served)) as again:
            again.ready()
            with Client(served.socket) as client, client.acquire(origin.url("f.bin")) as lease:
                assert bytes(lease.file("f.bin").buffer) == DATA
                assert (served.segments() == left) == kept
            assert again.stop() == 0
        assert len(origin.requests) == asked
        assert served.segments() == []


def test_an_open_lease_and_a_fetch_under_way_do_not_hold_up_a_stop(tmp_path: Path) -> None:
    with Served(tmp_path, "--at-stop", "drop") as served, Origin({"f.bin": DATA, "slow.bin": DATA}) as origin:
        origin.fault("slow.bin", Fault(stall_after=1000))
        served.ready()
        slow = subprocess.Popen(
            [sys.executable, "-m", "weightd", "--socket", str(served.socket), "fetch", origin.url("slow.bin")],
            stderr=subprocess.PIPE,
            text=True,
        )
        with Client(served.socket) as client, client.acquire(origin.url("f.bin")) as lease:
            origin.wait_for(4)
            view = lease.file("f.bin").buffer
            assert served.stop() == 0
            assert bytes(view) == DATA
            view.release()
        _, text = slow.communicate(timeout=30)
        assert slow.returncode == Draining.exit_code
        assert "weightd: error: the daemon is stopping" in text
        assert served.segments() == []
        assert list((served.state_dir / "ingest").iterdir()) == []


def test_after_kill_9_it_starts_again_and_asks_no_origin(tmp_path: Path) -> None:
    with Origin({"f.bin": DATA}) as origin:
        ref = origin.url("f.bin")
        with Served(tmp_path) as served:
            with Client(served.ready().socket) as client:
                client.fetch(ref)
            asked = len(origin.requests)
            assert served.stop(signal.SIGKILL) == -signal.SIGKILL
            left = served.segments()
            assert left
            assert served.socket.exists()
            with pytest.raises(DaemonUnavailable), Client(served.socket) as client:
                client.status()
            with Served(_second(tmp_path), *_same(served)) as again:
                again.ready()
                assert served.segments() == left
                with Client(served.socket) as client, client.acquire(ref) as lease:
                    assert bytes(lease.file("f.bin").buffer) == DATA
                assert len(origin.requests) == asked
                assert again.stop(signal.SIGINT) == 0
            assert served.segments() == []


def _second(tmp_path: Path) -> Path:
    (tmp_path / "second").mkdir()
    return tmp_path / "second"


def _same(served: Served) -> tuple[str, ...]:
    return "--state-dir", str(served.state_dir), "--socket", str(served.socket)


def test_a_second_daemon_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        served.ready()
        with Served(_second(tmp_path), *_same(served)) as other:
            assert other.process.wait(30) == 6
            line = other.text().strip()
            assert line.startswith("weightd: error: the state directory ")
            assert f"is in use by process {served.process.pid} (" in line
            assert f"listening on {served.socket}" in line
            assert "Traceback" not in line
        with Client(served.socket) as client:
            assert client.status().pid == served.process.pid


def test_the_socket_of_another_daemon_is_left_alone(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        served.ready()
        with Served(_second(tmp_path), "--socket", str(served.socket)) as other:
            assert other.process.wait(30) == 6
            assert f"process {served.process.pid} listens on the socket" in other.text()
        with Client(served.socket) as client:
            assert client.status().pid == served.process.pid


STUCK = """
import asyncio, sys
from weightd.engine.engine import Engine
from weightd.cli.main import main

async def stop(self, *, keep=None):
    await asyncio.Event().wait()

Engine.stop = stop
main(["serve", *sys.argv[1:]])
"""


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with Served(tmp_path, command=(sys.executable, "-c", STUCK)) as served:
        served.ready().process.send_signal(signal.SIGTERM)
        served.until("STOPPING=1")
        assert served.stop() == 128 + signal.SIGTERM
        assert "SIGTERM again: exit at once" in served.text()


def test_a_stop_that_hangs_is_forced_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[daemon]\nstop_timeout_s = 0.2\n")
    with Served(tmp_path, "--config", "c.toml", "--at-stop", "drop", command=(sys.executable, "-c", STUCK)) as served:
        with Origin({"f.bin": DATA}) as origin, Client(served.ready().socket) as client:
            client.fetch(origin.url("f.bin"))
        assert served.segments()
        assert served.stop() == 0
        assert "not drained after 0.2 s: 1 segments dropped" in served.text()
        assert served.segments() == []
        assert not served.socket.exists()


def test_the_watchdog_is_fed(tmp_path: Path) -> None:
    with Served(tmp_path, env={"WATCHDOG_USEC": "100000"}) as served:
        served.until("WATCHDOG=1")
        assert served.stop() == 0


def test_systemd_says_where(tmp_path: Path) -> None:
    for name in ("run", "state", "etc"):
        (tmp_path / name).mkdir()
    (tmp_path / "etc/config.toml").write_text('[daemon]\nlog_format = "json"\n')
    env = {
        "RUNTIME_DIRECTORY": str(tmp_path / "run"),
        "STATE_DIRECTORY": str(tmp_path / "state"),
        "CONFIGURATION_DIRECTORY": str(tmp_path / "etc"),
    }
    with Served(tmp_path, env=env, defaults=True) as served:
        with Client(served.ready().home / "run/weightd.sock") as client:
            assert client.status().state_directory == str(tmp_path / "state")
        assert served.stop() == 0
        assert served.text().startswith('{"time": ')


FAULTS = {
    "unknown key": ("[shm]\nbugdet = 1\n", 3, "c.toml, line 2: shm.bugdet: unknown key"),
    "budget over the mount": ('[shm]\nbudget = "1000TiB"\n', 3, "is more than the file system of /dev/shm holds"),
    "long socket": (f'[daemon]\nstate_dir = "s"\nsocket = "/tmp/{"x" * 200}"\n', 3, "the socket's path has"),
    "file as state": ('[daemon]\nstate_dir = "c.toml"\n', 6, "c.toml cannot be made: File exists"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_cannot_start_says_why(tmp_path: Path, case: str) -> None:
    text, code, expected = FAULTS[case]
    (tmp_path / "c.toml").write_text('[daemon]\nstate_dir = "s"\nsocket = "s.sock"\n' if "[daemon]" not in text else "")
    with (tmp_path / "c.toml").open("a") as file:
        file.write(text)
    if "[daemon]" not in text:
        expected = expected.replace("line 2", "line 5")
    with Served(tmp_path, "--config", "c.toml", defaults=True, env={"HOME": str(tmp_path)}) as served:
        assert served.process.wait(30) == code
        assert expected in served.text()
        assert "Traceback" not in served.text()
        assert not (tmp_path / "s.sock").exists()


@pytest.fixture
def home() -> Iterator[Path]:
    """Of an ordinary user."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is not installed")
    path = Path(tempfile.mkdtemp(prefix="weightd-home-"))
    os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


def _as_nobody() -> tuple[str, ...]:
    """The right to read is kept, and only that: this Python may lie in a directory that is closed to others."""
    ids = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    return *ids, "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"


def test_an_ordinary_user_needs_no_configuration(home: Path) -> None:
    env = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run")}
    with Served(home, command=(*_as_nobody(), *SERVE), env=env, defaults=True) as served:
        served.ready()
        state, socket = home / ".local/state/weightd", home / "run/weightd/weightd.sock"
        assert state.stat().st_uid == socket.stat().st_uid == NOBODY
        with Origin({"f.bin": DATA}) as origin, Client(socket) as client:
            assert client.fetch(origin.url("f.bin")).size == len(DATA)
        assert [Path("/dev/shm", n).stat().st_uid for n in served.segments(state)] == [NOBODY]
        assert served.stop(signal.SIGINT) == 0
        assert served.segments(state) == []
        assert not socket.exists()


def test_an_ordinary_user_may_not_use_the_directories_of_another(home: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for options in (
        ("--state-dir", str(tmp_path / "state"), "--socket", str(home / "s")),
        ("--state-dir", str(home / "state"), "--socket", str(tmp_path / "s.sock")),
    ):
        with Served(home, *options, command=(*_as_nobody(), *SERVE), defaults=True) as served:
            assert served.process.wait(30) == 5
            assert "weightd: error: " in served.text()
            assert "Traceback" not in served.text()


def test_a_user_outside_the_group_is_told_so(home: Path, tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        served.ready()
        socket = home / "w.sock"
        socket.hardlink_to(served.socket)
        ls = [*_as_nobody(), sys.executable, "-m", "weightd", "--socket", str(socket), "ls"]
        result = subprocess.run(ls, capture_output=True, text=True, check=False, cwd=home, timeout=60)
        assert result.returncode == 5
        assert "this user may not open the daemon's socket" in result.stderr


def test_errors_keep_their_class_through_the_daemon(tmp_path: Path) -> None:
    with Served(tmp_path) as served, Origin({}) as origin, Client(served.ready().socket) as client:
        with pytest.raises(WeightdError) as e:
            client.fetch(origin.url("none.bin"))
        assert type(e.value).__name__ == "SourceNotFound"
