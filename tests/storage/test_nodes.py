"""Segments on NUMA nodes: the kernel's own word for where it puts their pages, whoever touches them."""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tmpfs import mounted
from weightd.core.errors import ConfigError, ShmFull
from weightd.core.numa import NumaMode, Placement, parse_placement
from weightd.kernel import MPOL_BIND, address_of, set_memory_policy
from weightd.storage import nodes
from weightd.storage.nodes import memory_nodes, room_on
from weightd.storage.segment_files import DirectorySegmentStore
from weightd.storage.segments import PosixSegmentStore
from weightd.storage.tmpfs import TmpfsSegment
from weightd.storage.tmpfs_store import TmpfsStore

SIZE = 64 * 4096
pytestmark = pytest.mark.skipif(
    not memory_nodes() or not Path("/proc/self/numa_maps").exists(), reason="this kernel knows no NUMA nodes"
)
FIRST = str(memory_nodes()[0]) if memory_nodes() else ""


@pytest.fixture(params=["POSIX", "directory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[object]:
    """Makes a store with a placement."""
    owner = "t" + secrets.token_hex(6)
    if request.param == "POSIX":
        yield lambda placement: PosixSegmentStore(owner, placement=placement)
        return
    with mounted(tmp_path / "shm", "size=8m,mode=0700"):
        yield lambda placement: DirectorySegmentStore(tmp_path / "shm", owner, placement=placement)


def policy(segment: TmpfsSegment, pid: int | str = "self") -> str:
    """What /proc/<pid>/numa_maps says of its map (numa(7))."""
    lines = Path(f"/proc/{pid}/numa_maps").read_text().splitlines()
    (line,) = [line for line in lines if f"file={segment.path}" in line]
    return line.split()[1]


@pytest.mark.parametrize("text", [f"interleave:{FIRST}", f"bind:{FIRST}"])
def test_pages_are_where_it_says_whoever_touches_them(make, text: str) -> None:  # type: ignore[no-untyped-def]
    store: TmpfsStore = make(parse_placement(text, memory_nodes()))
    segment = store.create("a", SIZE)
    assert policy(segment) == text
    segment.prepare(0, SIZE // 2)
    assert policy(segment) == text
    shared = segment.shared
    assert shared is not None
    with subprocess.Popen(
        [sys.executable, "-c", RECEIVER, str(shared.fd), str(SIZE)],
        pass_fds=[shared.fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "touched\n"
        assert policy(segment, receiver.pid) == text
        receiver.communicate()
    segment.seal()
    with segment.opened() as view:
        assert bytes(view[-4096:]) == b"r" * 4096
        assert policy(segment) == text
    adopted = make(None).adopt(segment.name, SIZE, segment.identity)
    assert adopted is not None
    with adopted.opened():
        assert policy(adopted) == text
    segment.unlink()


RECEIVER = """
import mmap, sys
fd, size = map(int, sys.argv[1:])
held = mmap.mmap(fd, size)
held[size // 2:] = b"r" * (size // 2)
print("touched", flush=True)
sys.stdin.read()
"""


def test_without_a_placement_the_kernel_chooses(make) -> None:  # type: ignore[no-untyped-def]
    segment = make(None).create("a", SIZE)
    assert policy(segment) == "default"
    segment.unlink()


def test_a_node_that_is_not_there_is_refused_at_the_start(make) -> None:  # type: ignore[no-untyped-def]
    before = os.listdir("/proc/self/fd")
    missing = max(memory_nodes()) + 1
    with pytest.raises(ConfigError, match=f"shm.numa bind:{missing}"):
        make(Placement(NumaMode.BIND, (missing,)))
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EINVAL])
def test_a_kernel_that_may_not_be_asked(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """As under a container's default seccomp profile."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(nodes, "set_memory_policy", refuse)
    with pytest.raises(ConfigError, match="does not place memory") as e:
        PosixSegmentStore("t", placement=parse_placement("interleave", memory_nodes()))
    assert "CAP_SYS_NICE" in e.value.remedy


def test_a_segment_that_cannot_be_placed_leaves_nothing(make, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    store: TmpfsStore = make(parse_placement("interleave", memory_nodes()))

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "")

    with monkeypatch.context() as m:
        m.setattr(nodes, "set_memory_policy", refuse)
        with pytest.raises(ConfigError):
            store.create("a", SIZE)
    assert store.drop_leftovers() == 0


def test_full_nodes_are_an_error_and_no_killed_process(make, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    store: TmpfsStore = make(parse_placement(f"bind:{FIRST}", memory_nodes()))
    mount = store._place.room()
    segment = store.create("a", SIZE)
    monkeypatch.setattr(nodes, "room_on", lambda only: (4096, 8192))
    assert (store.free(), store.total()) == (4096, 8192)
    for full in (
        lambda: store.create("b", SIZE),
        lambda: store.check_room(4097),
        lambda: segment.prepare(0, SIZE),
    ):
        with pytest.raises(ShmFull, match=f"no room on the nodes of shm.numa bind:{FIRST}"):
            full()
    store.check_room(4096)
    segment.prepare(0, 4096)
    segment.unlink()
    assert store.drop_leftovers() == 0
    other: TmpfsStore = make(parse_placement("interleave", memory_nodes()))
    assert other.total() == mount[1]


def test_the_nodes_of_this_host() -> None:
    there = memory_nodes()
    free, total = room_on(there)
    assert 0 < free < total
    assert room_on([]) == (0, 0)


NODE = """Node 0 MemTotal:       1048576 kB
Node 0 MemFree:         524288 kB
Node 0 Active(file):      1024 kB
Node 0 Inactive(file):    2048 kB
"""


def test_room_counts_what_the_kernel_can_drop(tmp_path: Path) -> None:
    for node in (0, 3):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "meminfo").write_text(NODE.replace("Node 0", f"Node {node}"))
    one = (524288 + 3072 << 10) - (1 << 24)
    assert room_on([0], tmp_path) == (one, 1 << 30)
    assert room_on([0, 3], tmp_path) == (2 * one, 2 << 30)
    (tmp_path / "has_memory").write_text("0,3\n")
    # Of those, what this process may use.
    assert set(memory_nodes(tmp_path)) == {0, 3} & set(memory_nodes())
    assert memory_nodes(tmp_path / "none") == []


def test_nodes_beyond_the_mask_are_an_error() -> None:
    with mmap.mmap(-1, 4096) as memory:
        with pytest.raises(OSError, match="Invalid argument"):
            set_memory_policy(address_of(memory), 4096, MPOL_BIND, [1023])
