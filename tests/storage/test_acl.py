"""Access control lists as the kernel keeps them, on a disk and on a tmpfs, and what it then lets whom do."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tmpfs import why_not
from weightd.storage import acl

ONE, TWO = 61_101, 61_102


@pytest.fixture(params=["/tmp", "/dev/shm"])
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    path = Path(request.param, f"weightd-acl-{os.getpid()}")
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def sealed(place: Path) -> Path:
    path = place / "file"
    path.write_bytes(b"x")
    path.chmod(0o440)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_groups_come_and_go_and_the_mode_stays(place: Path) -> None:
    path = sealed(place)
    assert acl.groups(path) == {}
    acl.let(path, {ONE: acl.READ})
    acl.let(path, {TWO: acl.READ})
    assert acl.groups(path) == {ONE: acl.READ, TWO: acl.READ}
    assert mode(path) == 0o440
    acl.let(path, {}, gone={ONE})
    assert acl.groups(path) == {TWO: acl.READ}
    acl.let(path, {}, gone={TWO})
    assert os.listxattr(path) == []
    assert mode(path) == 0o440


def test_what_somebody_else_put_there_stays(place: Path) -> None:
    """Of a directory whose own group may do nothing, the bits of its mode are then those of the list."""
    if not (setfacl := shutil.which("setfacl")):
        other = {**acl._of_mode(0o700), (0x02, 12345): 5, (acl._GROUP, 777): 4}
        os.setxattr(place, acl.ACCESS, acl._packed(other))
    else:
        subprocess.run([setfacl, "-m", "u:12345:r-x,g:777:r--", place], check=True)
    before = acl._parsed(place, acl._raw(place))
    acl.let(place, {ONE: acl.PASS})
    assert acl._parsed(place, acl._raw(place)) == before | {(acl._GROUP, ONE): acl.PASS}
    acl.let(place, {}, gone={ONE})
    assert acl._parsed(place, acl._raw(place)) == before


def test_what_a_chmod_took_is_given_again(place: Path) -> None:
    """As systemd does to a StateDirectory= at every start."""
    acl.let(place, {ONE: acl.PASS})
    place.chmod(0o700)
    acl.let(place, {ONE: acl.PASS})
    assert mode(place) == 0o710
    assert acl.groups(place) == {ONE: acl.PASS}


def test_a_directory_without_a_list_has_its_own_mode_again(place: Path) -> None:
    place.chmod(0o700)
    acl.let(place, {ONE: acl.PASS})
    assert mode(place) == 0o710
    acl.let(place, {}, gone={ONE, TWO})
    assert mode(place) == 0o700


def tried(path: Path, gid: int) -> bool:
    """Whether another user of this group can read a file, or list a directory."""
    program = "ls" if path.is_dir() else "cat"
    command = ["setpriv", "--reuid=61100", f"--regid={gid}", "--clear-groups", program, path]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(bool(why_not()) or not shutil.which("setpriv"), reason="becomes other users, which needs root")
def test_the_kernel_lets_those_and_no_others(place: Path) -> None:
    path = sealed(place)
    acl.let(place, {ONE: acl.PASS, TWO: acl.LIST})
    acl.let(path, {ONE: acl.READ})
    assert [tried(path, gid) for gid in (ONE, TWO, 61_103)] == [True, False, False]
    assert [tried(place, gid) for gid in (ONE, TWO, 61_103)] == [False, True, False]


@pytest.mark.skipif(bool(why_not()) or not shutil.which("setpriv"), reason="becomes other users, which needs root")
def test_what_is_made_there_is_open_to_them_whatever_the_umask(place: Path) -> None:
    acl.make_default(place, {ONE: acl.LIST})
    acl.let(place, {ONE: acl.LIST})
    before = os.umask(0o077)
    try:
        (place / "a/b").mkdir(parents=True, mode=0o755)
    finally:
        os.umask(before)
    assert [tried(place / "a/b", gid) for gid in (ONE, TWO)] == [True, False]


def test_a_file_system_that_has_them(place: Path) -> None:
    acl.check(place)
    assert list(place.iterdir()) == []


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "mounts")
def test_a_file_system_that_has_none(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from weightd.storage.acl import check; from weightd.core.errors import ConfigError\n"
        f"try: check(Path({str(tmp_path)!r}))\n"
        "except ConfigError as e: print(e)"
    )
    command = f'mount -t ramfs none {tmp_path} && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, "sh", sys.executable, "-c", script], capture_output=True, text=True
    )
    assert f"[[sockets]] needs access control lists, and the file system of {tmp_path} has none" in done.stdout
    assert "noacl" in done.stdout, done.stderr


def test_a_missing_directory_is_no_matter_of_lists(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        acl.check(tmp_path / "none")
