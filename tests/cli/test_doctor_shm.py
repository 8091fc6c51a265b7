"""`weightd doctor` on what takes segments away, or left some behind: real mounts, locks and segments."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.tmpfs import mounted
from weightd.cli import checks_shm
from weightd.core.errors import AccessDenied
from weightd.daemon.lock import StateLock, holder
from weightd.storage.owners import segment_owner
from weightd.storage.segment_files import DirectorySegmentStore

SWAPS = "Filename Type Size Used Priority\n/dev/vdb partition 1048572 0 -2\n/swap file 100 0 -3\n"
MOUNTS = "tmpfs /dev/shm tmpfs rw 0 0\ntmpfs /run/weightd/shm tmpfs rw,noswap 0 0\n"
OWN = Path("/run/weightd/shm")


@pytest.fixture
def swaps(tmp_path: Path) -> Path:
    path = tmp_path / "swaps"
    path.write_text(SWAPS)
    return path


def test_swap_and_a_mount_that_may_be_swapped(swaps: Path) -> None:
    check = checks_shm.noswap(mounts=MOUNTS, swaps=swaps, release="6.18.44-fc")
    assert (check.status, check.found.split(":")[0]) == ("warning", "/dev/vdb, /swap")
    assert "noswap,mode=0750,uid=weightd,gid=weightd tmpfs /run/weightd/shm" in check.fix
    assert "run-weightd-shm.mount" in check.fix
    old = checks_shm.noswap(mounts=MOUNTS, swaps=swaps, release="6.3.0-1-amd64")
    assert (old.status, "6.4 or later" in old.fix) == ("warning", True)


def test_swap_and_a_mount_without(swaps: Path) -> None:
    check = checks_shm.noswap(OWN, MOUNTS, swaps)
    assert (check.status, check.fix) == ("ok", "")
    assert "mounted noswap" in check.found


def test_no_swap(tmp_path: Path, swaps: Path) -> None:
    swaps.write_text(SWAPS.splitlines()[0] + "\n")
    for path in (swaps, tmp_path / "none"):
        assert checks_shm.noswap(mounts=MOUNTS, swaps=path) == checks_shm.Check("swap", "ok", "none")


@pytest.mark.skipif(checks_shm._version(platform.release()) < (6, 4), reason="noswap is of Linux 6.4")
def test_what_is_said_of_noswap_is_so(tmp_path: Path, swaps: Path) -> None:
    """A mount can have it, and the kernel says so; a remount does not set it."""
    with mounted(tmp_path / "with", "size=1m,noswap") as directory:
        assert checks_shm.noswap(directory, swaps=swaps).status == "ok"
    with mounted(tmp_path / "without", "size=1m") as directory:
        run = subprocess.run(["mount", "-o", "remount,noswap", directory], capture_output=True)
        assert run.returncode
        assert checks_shm.noswap(directory, swaps=swaps).status == "warning"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with logind."""
    for name in ("run/systemd/seats", "etc/systemd/logind.conf.d", "usr/lib/systemd/logind.conf.d"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_a_user_who_logs_in_is_cleaned_up_after(root: Path) -> None:
    check = checks_shm.remove_ipc(4_000_000, root=root)
    assert check.status == "warning"
    assert "when user 4000000 logs out" in check.found
    assert "RemoveIPC=no" in check.fix
    assert "loginctl enable-linger 4000000" in check.fix


def test_who_is_not_cleaned_up_after(root: Path, tmp_path: Path) -> None:
    for uid in (0, 999):
        assert checks_shm.remove_ipc(uid, root=root).status == "ok"
    assert checks_shm.remove_ipc(1000, OWN, root=root).status == "ok"
    assert checks_shm.remove_ipc(1000, root=tmp_path / "no logind").found == "no logind runs here"
    linger = root / "var/lib/systemd/linger"
    linger.mkdir(parents=True)
    (linger / "4000000").touch()
    assert checks_shm.remove_ipc(4_000_000, root=root).found == "yes, but user 4000000 lingers"


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ({"etc/systemd/logind.conf": "[Login]\nRemoveIPC=no\n"}, "ok"),
        ({"etc/systemd/logind.conf": "[Login]\n#RemoveIPC=no\n"}, "warning"),
        ({"etc/systemd/logind.conf": "[Login]\nRemoveIPC=Yes\n"}, "warning"),
        ({"usr/lib/systemd/logind.conf": "[Login]\nRemoveIPC=0\n"}, "ok"),
        ({"usr/lib/systemd/logind.conf": "[Login]\nRemoveIPC=no\n", "etc/systemd/logind.conf": "[Login]\n"}, "warning"),
        (
            {
                "etc/systemd/logind.conf": "[Login]\nRemoveIPC=no\n",
                "usr/lib/systemd/logind.conf.d/9.conf": "[Login]\nRemoveIPC=yes\n",
            },
            "warning",
        ),
        (
            {
                "usr/lib/systemd/logind.conf.d/5.conf": "[Login]\nRemoveIPC=yes\n",
                "etc/systemd/logind.conf.d/5.conf": "[Login]\nRemoveIPC=no\n",
                "etc/systemd/logind.conf.d/1.conf": "[Login]\nRemoveIPC=yes\n",
            },
            "ok",
        ),
        ({"etc/systemd/logind.conf": "RemoveIPC=no without a section"}, "warning"),
        ({"etc/systemd/logind.conf": "[Login]\nRemoveIPC\n"}, "warning"),
    ],
)
def test_the_last_word_of_logind(root: Path, files: dict[str, str], status: str) -> None:
    for name, text in files.items():
        (root / name).write_text(text)
    assert checks_shm.remove_ipc(4_000_000, root=root).status == status


def test_the_user_of_the_daemon(tmp_path: Path) -> None:
    assert checks_shm.daemon_user(tmp_path) == tmp_path.stat().st_uid
    assert checks_shm.daemon_user(tmp_path / "none") == os.geteuid()


def test_nodes() -> None:
    check = checks_shm.numa()
    assert (check.status, check.fix) == ("ok", "")


@pytest.fixture
def shm(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "shm", "size=1m,mode=0700") as directory:
        yield directory


def segment(shm: Path, state_dir: Path) -> None:
    store = DirectorySegmentStore(shm, segment_owner(state_dir))
    made = store.create("a", 8192)
    made.prepare(0, 8192)
    made.seal()
    store.close()


def test_segments_of_a_daemon_that_is_gone(shm: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert checks_shm.leftovers(state, shm).found == "none"
    segment(shm, state)
    segment(shm, state)
    (shm / "another's").write_bytes(b"x")
    check = checks_shm.leftovers(state, shm)
    assert (check.status, check.found) == ("warning", "2 segments, 16.0 KiB of a daemon that is not seen to run")
    assert f"rm {shm}/weightd-{segment_owner(state)}-*" in check.fix
    for path in shm.glob(f"weightd-{segment_owner(state)}-*"):
        path.unlink()
    assert checks_shm.leftovers(state, shm).found == "none"


def test_segments_of_others(shm: Path, tmp_path: Path) -> None:
    segment(shm, tmp_path / "a")
    check = checks_shm.leftovers(tmp_path / "state", shm)
    assert (check.status, check.found) == ("ok", "1 segment, 8.0 KiB of another state directory")
    segment(shm, tmp_path / "b")
    check = checks_shm.leftovers(tmp_path / "a", shm)
    assert check.status == "warning"
    assert check.found.endswith("; 1 segment, 8.0 KiB of another state directory")
    assert checks_shm.leftovers(tmp_path, shm).found == "2 segments, 16.0 KiB of 2 other state directories"


HOLDS = """
import sys
from pathlib import Path
from weightd.daemon.lock import StateLock
lock = StateLock(Path(sys.argv[1]))
lock.acquire(Path("/socket"))
print("held", flush=True)
sys.stdin.read()
"""


def test_segments_of_a_daemon_that_runs(shm: Path, tmp_path: Path) -> None:
    segment(shm, tmp_path)
    assert holder(tmp_path) is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        check = checks_shm.leftovers(tmp_path, shm)
        assert (check.status, check.found) == ("ok", f"1 segment, 8.0 KiB of process {process.pid}")
        assert holder(tmp_path) == process.pid
        process.kill()
    assert holder(tmp_path) is None
    assert checks_shm.leftovers(tmp_path, shm).status == "warning"


def test_asking_for_the_holder_takes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that starts in that moment is not told that another one runs."""
    lock = StateLock(tmp_path)
    lock.acquire(Path("/socket"))
    lock.release()
    starting = StateLock(tmp_path)
    inside = checks_shm.Path.read_text

    def start(path: Path, *args: object) -> str:
        if path == Path("/proc/locks"):
            starting.acquire(Path("/socket"))
        return inside(path)

    monkeypatch.setattr(Path, "read_text", start)
    assert holder(tmp_path) == os.getpid()
    starting.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_lock_that_may_not_be_read(shm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment(shm, tmp_path / "state")
    (tmp_path / "state").mkdir(mode=0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(AccessDenied, match="lock may not be read"):
            holder(tmp_path / "state")
        whose, idle = checks_shm._whose(tmp_path / "state")
    finally:
        os.seteuid(0)
    assert ("may not read" in whose, idle) == (True, False)


def test_the_directory_of_the_configuration_is_looked_at(cli: Cli, shm: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    segment(shm, state)
    (tmp_path / "c.toml").write_text(f'[daemon]\nstate_dir = "{state}"\n[shm]\ndirectory = "{shm}"\n')
    (answer,) = cli("--socket", tmp_path / "none", "doctor", "--json", "--config", tmp_path / "c.toml").objects
    found = {c["name"]: c["found"] for c in answer["checks"]}  # type: ignore[attr-defined]
    assert found["shm"].startswith(f"{shm}: 1.0 MiB, ")
    assert found["segments"].startswith("1 segment, 8.0 KiB of a daemon that is not seen to run")
    assert found["RemoveIPC"] == f"{shm} is not cleaned by logind"


def test_the_owner_of_segments_is_the_same_in_every_version() -> None:
    """The next daemon adopts by it."""
    assert segment_owner(Path("/var/lib/weightd")) == hashlib.sha256(b"/var/lib/weightd").hexdigest()[:10]
