"""Segments of an earlier process: what is exactly as it was sealed is adopted, and nothing else."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weightd.core.lifecycle import SegmentState
from weightd.storage.protocols import SegmentIdentity
from weightd.storage.segments import ROOT, PosixSegment, PosixSegmentStore

SIZE = 3 * 4096 + 5


@pytest.fixture
def owner() -> Iterator[str]:
    owner = "t" + secrets.token_hex(6)
    yield owner
    for path in ROOT.iterdir():
        if path.name.startswith(f"weightd-{owner}-"):
            path.unlink()


@pytest.fixture
def old(owner: str) -> PosixSegment:
    segment = PosixSegmentStore(owner).create("old", SIZE)
    segment.prepare(0, SIZE)
    segment.view[:] = b"w" * SIZE
    segment.seal()
    return segment


def adopt(owner: str, old: PosixSegment, group: int | None = None) -> PosixSegment | None:
    return PosixSegmentStore(owner, group=group).adopt(old.name, old.size, old.identity)


def test_it_is_adopted_as_it_is(owner: str, old: PosixSegment) -> None:
    assert adopt(owner, old) is not None


def hole(path: Path) -> None:
    """Its size, and not its pages: as a crash of whoever makes a copy of it could leave it, or FALLOC_FL_PUNCH_HOLE."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.truncate(4096)
        file.truncate(SIZE)
    path.chmod(0o440)


def longer(path: Path) -> None:
    path.chmod(0o600)
    with path.open("ab") as file:
        file.write(b"x")
    path.chmod(0o440)


def linked(path: Path) -> None:
    os.link(path, path.with_name(path.name + "-link"))


def elsewhere(path: Path, make: Callable[[Path], object]) -> None:
    """The object is there, under another name, and something else has its own."""
    path.rename(path.with_name(path.name + "-real"))
    make(path)


ALTERATIONS: dict[str, Callable[[Path], object]] = {
    "hole": hole,
    "longer": longer,
    "linked": linked,
    "writable": lambda p: p.chmod(0o640),
    "for everybody": lambda p: p.chmod(0o444),
    "setuid": lambda p: p.chmod(0o4440),
    "not sealed": lambda p: p.chmod(0o600),
    "symlink": lambda p: elsewhere(p, lambda path: path.symlink_to(path.name + "-real")),
    "FIFO": lambda p: elsewhere(p, os.mkfifo),
    "directory": lambda p: elsewhere(p, Path.mkdir),
    "gone": lambda p: p.unlink(),
}


@pytest.mark.parametrize("alteration", list(ALTERATIONS))
def test_what_was_altered_is_not(owner: str, old: PosixSegment, alteration: str) -> None:
    ALTERATIONS[alteration](old.path)
    try:
        assert adopt(owner, old) is None
    finally:
        if old.path.is_dir():
            old.path.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
@pytest.mark.parametrize(("uid", "gid"), [(65534, -1), (-1, 65534)])
def test_what_belongs_to_somebody_else_is_not(owner: str, old: PosixSegment, uid: int, gid: int) -> None:
    os.chown(old.path, uid, gid)
    assert adopt(owner, old) is None
    os.chown(old.path, 0, 0)
    assert adopt(owner, old) is not None


def test_what_was_published_to_another_group_is_not(owner: str, old: PosixSegment) -> None:
    assert adopt(owner, old, group=os.getegid() + 1) is None
    assert adopt(owner, old, group=os.getegid()) is not None


def test_what_somebody_may_still_write_is_not(owner: str, old: PosixSegment) -> None:
    """A process that opened it before it was sealed, a receiver that outlived its daemon."""
    old.path.chmod(0o600)
    writer = os.open(old.path, os.O_RDWR)
    old.path.chmod(0o440)
    assert adopt(owner, old) is None
    os.close(writer)
    assert adopt(owner, old) is not None


DAEMON = """
import os, signal, sys
from weightd.storage.segments import PosixSegmentStore

store = PosixSegmentStore(sys.argv[1])
sealed, filling = (store.create("a", 12345) for _ in range(2))
for segment in (sealed, filling):
    segment.prepare(0, 12345)
    segment.view[:] = b"s" * 12345
sealed.seal()
print(sealed.name, *sealed.identity, filling.name, *filling.identity, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_what_it_sealed(owner: str) -> None:
    run = subprocess.run([sys.executable, "-c", DAEMON, owner], capture_output=True, text=True, timeout=60)
    assert run.returncode == -signal.SIGKILL, run
    name, device, inode, filling, *other = run.stdout.split()
    store = PosixSegmentStore(owner)
    assert store.adopt(filling, 12345, SegmentIdentity(*map(int, other))) is None
    segment = store.adopt(name, 12345, SegmentIdentity(int(device), int(inode)))
    assert segment is not None
    assert segment.state is SegmentState.SEALED
    with segment.opened() as view:
        assert bytes(view) == b"s" * 12345
    assert store.drop_leftovers([name]) == 1
    assert segment.path.exists()


def test_the_old_object_of_a_name_is_not_unlinked_for_the_new_one(owner: str, old: PosixSegment) -> None:
    """A late process of before, which still believes in its segment, takes nothing from its successor."""
    later = adopt(owner, old)
    assert later is not None
    old.unlink()
    again = PosixSegmentStore(owner).create("old", SIZE)
    again.path.rename(old.path)
    later.unlink()
    assert old.path.exists()
