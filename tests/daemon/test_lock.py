"""One daemon per state directory, shown with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from weightd.core.errors import AlreadyRunning, PathInTheWay
from weightd.daemon.lock import NAME, StateLock, make_state_dir

HOLD = """
import sys
from pathlib import Path
from weightd.daemon.lock import StateLock
lock = StateLock(Path(sys.argv[1]))
lock.acquire(Path("/run/other.sock"))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def refused(path: Path) -> str:
    with pytest.raises(AlreadyRunning) as e:
        StateLock(path).acquire(Path("/run/mine.sock"))
    assert "--state-dir" in e.value.remedy
    return e.value.message


def test_a_second_start_names_the_first(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    message = refused(tmp_path)
    assert f"process {holder.pid} ({sys.executable} -c" in message
    assert "listening on /run/other.sock" in message
    assert str(tmp_path) in message


@pytest.mark.parametrize("garbage", [b"", b"not json", b"\xff\x00" * 3000, b"[1]", b'{"pid": "x", "socket": 5}'])
def test_garbage_in_the_lock_still_names_the_holder(
    tmp_path: Path, holder: subprocess.Popen[str], garbage: bytes
) -> None:
    (tmp_path / NAME).write_bytes(garbage)
    assert f"process {holder.pid} (" in refused(tmp_path)


def test_garbage_does_not_stop_a_start(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"\xff\x00garbage" * 1000)
    lock = StateLock(tmp_path)
    lock.acquire(Path("/run/mine.sock"))
    assert f'"pid": {os.getpid()}' in (tmp_path / NAME).read_text()
    lock.release()
    lock.release()
    assert (tmp_path / NAME).read_bytes() == b""


def test_a_killed_holder_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    lock = StateLock(tmp_path)
    lock.acquire(Path("/run/mine.sock"))
    lock.release()


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    (tmp_path / NAME).symlink_to(victim)
    with pytest.raises(PathInTheWay, match="not a plain file"):
        StateLock(tmp_path).acquire(Path("/s"))
    assert victim.read_text() == "keep"


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "directory":
        (tmp_path / NAME).mkdir()
    else:
        os.mkfifo(tmp_path / NAME)
    with pytest.raises(PathInTheWay, match="not a plain file"):
        StateLock(tmp_path).acquire(Path("/s"))


def test_the_state_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    before = os.umask(0o022)
    try:
        make_state_dir(path, os.getgid())
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o750
    make_state_dir(path)


def test_a_file_in_the_way_of_the_state_directory(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    for path in (tmp_path / "f", tmp_path / "f" / "state"):
        with pytest.raises(PathInTheWay):
            make_state_dir(path)


def test_where_no_directory_can_be_made() -> None:
    # procfs refuses even root.
    with pytest.raises(PathInTheWay, match="cannot be made: No such file"):
        make_state_dir(Path("/proc/self/weightd"))
