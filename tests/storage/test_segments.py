"""Segments in /dev/shm and their in-memory twin."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.suites import SegmentStoreSuite
from weightd.core.errors import Unavailable
from weightd.storage import pages
from weightd.storage.memory import MemoryObject, MemorySegment, MemorySegmentStore
from weightd.storage.segments import ROOT, PosixSegment, PosixSegmentStore


class TestPosixSegmentStore(SegmentStoreSuite):
    @pytest.fixture
    def store(self) -> Iterator[PosixSegmentStore]:
        self.owner = "t" + secrets.token_hex(6)
        yield PosixSegmentStore(self.owner)
        for name in self._mine():
            (ROOT / name).unlink()

    def _mine(self) -> set[str]:
        return {p.name for p in ROOT.iterdir() if p.name.startswith(f"weightd-{self.owner}-")}

    def successor(self, store: PosixSegmentStore) -> PosixSegmentStore:
        return PosixSegmentStore(self.owner)

    def names(self, store: PosixSegmentStore) -> set[str]:
        return {"/" + n for n in self._mine()}

    def content(self, store: PosixSegmentStore, segment: PosixSegment) -> bytes:
        return segment.path.read_bytes()

    def mode(self, store: PosixSegmentStore, segment: PosixSegment) -> int:
        return segment.path.stat().st_mode & 0o7777

    def replace(self, store: PosixSegmentStore, segment: PosixSegment) -> None:
        segment.path.unlink()
        segment.path.touch(mode=0o600)

    def test_a_reader_keeps_its_map_when_the_segment_is_unlinked(self, store: PosixSegmentStore) -> None:
        segment = store.create("a", 5000)
        self.fill(segment, b"w" * 5000)
        segment.seal()
        with segment.path.open("rb") as file, mmap.mmap(file.fileno(), 5000, prot=mmap.PROT_READ) as held:
            segment.unlink()
            assert held[:] == b"w" * 5000

    def test_sealing_a_segment_that_somebody_deleted_is_an_error(self, store: PosixSegmentStore) -> None:
        segment = store.create("a", 10)
        segment.path.unlink()
        with pytest.raises(Unavailable, match="removed"):
            segment.seal()
        segment.unlink()

    def test_segments_of_another_owner_survive(self, store: PosixSegmentStore) -> None:
        other = PosixSegmentStore(self.owner + "x")
        theirs = other.create("a", 10)
        mine = store.create("a", 10)
        assert self.successor(store).drop_leftovers() == 1
        assert theirs.path.exists()
        assert not mine.path.exists()
        theirs.unlink()

    def test_no_descriptor_stays(self, store: PosixSegmentStore) -> None:
        before = len(os.listdir("/proc/self/fd"))
        sealed = store.create("a", 10)
        sealed.seal()
        store.create("b", 10).unlink()
        assert len(os.listdir("/proc/self/fd")) == before
        sealed.unlink()

    def test_the_group_may_read_and_others_may_not(self) -> None:
        self.owner = "t" + secrets.token_hex(6)
        segment = PosixSegmentStore(self.owner, group=os.getegid()).create("a", 10)
        segment.seal()
        status = segment.path.stat()
        segment.unlink()
        assert (status.st_mode & 0o777, status.st_gid) == (0o440, os.getegid())

    @pytest.mark.parametrize("owner", ["", "a-b", "a/b", "x" * 33])
    def test_an_owner_that_could_be_mistaken_is_refused(self, owner: str) -> None:
        with pytest.raises(ValueError):
            PosixSegmentStore(owner)


class TestMemorySegmentStore(SegmentStoreSuite):
    @pytest.fixture
    def store(self) -> MemorySegmentStore:
        return MemorySegmentStore("t", 16 << 20)

    def successor(self, store: MemorySegmentStore) -> MemorySegmentStore:
        return MemorySegmentStore("t", store.total(), store.objects)

    def names(self, store: MemorySegmentStore) -> set[str]:
        return set(store.objects)

    def content(self, store: MemorySegmentStore, segment: MemorySegment) -> bytes:
        return bytes(store.objects[segment.name].data)

    def mode(self, store: MemorySegmentStore, segment: MemorySegment) -> int:
        return store.objects[segment.name].mode

    def replace(self, store: MemorySegmentStore, segment: MemorySegment) -> None:
        store.objects[segment.name] = MemoryObject(bytearray())


MOUNTS = (
    "/dev/root / ext4 rw 0 0\n"
    "tmpfs /dev tmpfs rw,huge=always 0 0\n"
    "tmpfs /dev/shm tmpfs rw,huge=advise,size=8m 0 0\n"
    "tmpfs /mnt/with\\040space tmpfs rw,huge=within_size 0 0\n"
)


class TestPages:
    @pytest.mark.parametrize(
        ("path", "mode"),
        [
            ("/dev/shm", "advise"),
            ("/dev/shmem", "always"),
            ("/dev/shm/x/y", "advise"),
            ("/mnt/with space", "within_size"),
            ("/home", "never"),
        ],
    )
    def test_the_innermost_mount_decides(self, path: str, mode: str) -> None:
        assert pages.huge_mode(Path(path), MOUNTS) == mode

    @pytest.mark.parametrize(("size", "pages_"), [(0, 0), (1, 1), (4096, 1), (4097, 2)])
    def test_footprint_counts_whole_pages(self, size: int, pages_: int) -> None:
        assert pages.footprint(size) == pages_ * 4096
