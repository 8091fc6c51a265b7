"""`weightd doctor`: each check on real and on broken hosts."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.daemon.process import Served
from weightd.cli import checks, checks_daemon

NAMES = {
    "configuration", "shm", "shm huge pages", "transparent huge pages", "state directory", "state file system",
    "direct I/O", "open files", "locked memory", "cores", "SHA-256", "kernel", "python", "uvloop", "xxhash", "socket",
    "swap", "RemoveIPC", "NUMA nodes", "segments",
}  # fmt: skip


def test_on_this_host(host: Cli, served: Served, tmp_path: Path) -> None:
    (answer,) = host("doctor", "--json", "--state-dir", tmp_path).objects
    found = {c["name"]: c for c in answer["checks"]}  # type: ignore[attr-defined]
    assert set(found) > NAMES
    assert found["daemon"]["status"] == "ok"
    assert f"process {served.process.pid}" in found["daemon"]["found"]
    assert os.listdir(tmp_path) == []
    for check in found.values():
        assert (check["status"] == "ok") == (check["fix"] == ""), check


def test_as_text(host: Cli, tmp_path: Path) -> None:
    result = host("doctor", "--state-dir", tmp_path)
    assert result.code in (0, 6)
    assert "\x1b" not in result.out
    assert result.out.splitlines()[0].startswith("ok       configuration")
    assert " checks, " in result.out.splitlines()[-1]


def test_a_failed_check_ends_with_6(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[shm]\nbugdet = 1\n")
    result = cli("--socket", tmp_path / "none", "doctor", "--config", tmp_path / "c.toml", "--state-dir", tmp_path)
    assert result.code == 6
    assert "c.toml, line 2: shm.bugdet: unknown key" in result.out


MOUNTS = "tmpfs / tmpfs rw 0 0\nshm /dev/shm tmpfs rw,nosuid,huge={} 0 0\n"


@pytest.mark.parametrize(
    ("mode", "status"), [("within_size", "ok"), ("always", "warning"), ("advise", "ok"), ("never", "warning")]
)
def test_huge_pages(mode: str, status: str) -> None:
    check = checks.shm_huge(mounts=MOUNTS.format(mode))
    assert check.status == status
    assert ("mount -o remount,huge=within_size /dev/shm" in check.fix) == (status != "ok")
    assert ("ExecStartPre=+/bin/mount" in check.fix) == (status != "ok")


def test_huge_pages_of_a_directory() -> None:
    check = checks.shm_huge(Path("/run/weightd/shm"), mounts="tmpfs /run/weightd/shm tmpfs rw 0 0\n")
    assert check.status == "warning"
    assert "remount,huge=within_size /run/weightd/shm" in check.fix
    assert "/dev/shm" not in check.fix


def test_huge_pages_without_the_option_or_without_tmpfs() -> None:
    assert checks.shm_huge(mounts="shm /dev/shm tmpfs rw 0 0\n").status == "warning"
    assert "is ext4, not tmpfs" in checks.shm_huge(mounts="/dev/vda / ext4 rw 0 0\n").found


def test_transparent_huge_pages(tmp_path: Path) -> None:
    assert checks.thp(tmp_path).found == "the kernel has none"
    (tmp_path / "shmem_enabled").write_text("always within_size advise never [deny] force\n")
    assert checks.thp(tmp_path).status == "warning"
    (tmp_path / "shmem_enabled").write_text("always within_size advise [never] deny force\n")
    assert checks.thp(tmp_path).status == "ok"


def test_shared_memory_that_is_missing(tmp_path: Path) -> None:
    assert checks.shm_size(tmp_path / "none").status == "failed"


@pytest.mark.parametrize(
    ("kind", "status"),
    [("ext4", "ok"), ("xfs", "ok"), ("nfs4", "warning"), ("fuse.s3fs", "warning"), ("tmpfs", "warning")],
)
def test_file_systems(kind: str, status: str) -> None:
    assert checks.file_system(Path("/data/x"), f"x /data {kind} rw 0 0\n").status == status


def test_a_state_directory_to_be_made(tmp_path: Path) -> None:
    first, *_ = checks.state_checks(tmp_path / "a" / "b")
    assert f"to be made in {tmp_path}" in first.found
    (tmp_path / "f").write_text("")
    (only,) = checks.state_checks(tmp_path / "f" / "state")
    assert only.status == "failed"


def test_direct_io_is_really_tried(tmp_path: Path) -> None:
    check = checks.direct_io(tmp_path)
    assert check.status in ("ok", "warning")
    assert os.listdir(tmp_path) == []
    assert checks.direct_io(tmp_path / "none").status == "failed"


@pytest.mark.parametrize(("release", "status"), [("5.13.0-x", "warning"), ("5.14", "ok"), ("6.18.44-fc", "ok")])
def test_kernels(release: str, status: str) -> None:
    assert checks.kernel(release).status == status


def test_a_library_that_is_missing() -> None:
    check = checks.library("weightd-no-such-library")
    assert check.status == "warning"
    assert "weightd[daemon]" in check.fix


def test_sockets(tmp_path: Path) -> None:
    assert checks_daemon.socket_rights(tmp_path / "none").status == "warning"
    (tmp_path / "file").write_text("")
    assert "is not a socket" in checks_daemon.socket_rights(tmp_path / "file").found
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        assert checks_daemon.socket_rights(tmp_path / "s").status == "ok"
        # Bound, but nobody listens.
        found = list(checks_daemon.daemon_checks(str(tmp_path / "s")))
    assert [c.status for c in found] == ["ok", "failed"]
    assert "nobody listens" in found[1].found


def test_a_socket_path_that_is_too_long() -> None:
    (check,) = checks_daemon.daemon_checks("/tmp/" + "x" * 200)
    assert check.status == "failed"
