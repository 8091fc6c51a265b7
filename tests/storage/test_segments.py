"""Segments in /dev/shm, in a directory of a tmpfs of their own, and their in-memory twin."""

from __future__ import annotations

import mmap
import os
import resource
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import posix_ipc
import pytest

from tests.storage.segment_suite import ResidencySuite, SegmentStoreSuite
from tests.support.mappers import mapping
from tests.support.tmpfs import mounted
from weightd.core.errors import ShmFull, Unavailable
from weightd.storage import pages
from weightd.storage.memory import MemoryObject, MemorySegment, MemorySegmentStore
from weightd.storage.segment_files import DirectorySegmentStore
from weightd.storage.segments import ROOT, PosixSegmentStore
from weightd.storage.tmpfs import TmpfsSegment
from weightd.storage.tmpfs_store import TmpfsStore


def mapped_here(segment: TmpfsSegment) -> int:
    """Bytes of it in this process's page tables."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0] in "0123456789abcdef":
            ours = line.endswith(str(segment.path))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


class TmpfsHooks:
    """How to look at files of a tmpfs from outside."""

    owner: str
    root: Path

    def make(self, owner: str = "", group: int | None = None) -> TmpfsStore:
        """A store, of `self.owner` unless it says another."""
        raise NotImplementedError

    def _mine(self) -> set[str]:
        return {p.name for p in self.root.iterdir() if p.name.startswith(f"weightd-{self.owner}-")}

    def successor(self, store: TmpfsStore) -> TmpfsStore:
        return self.make()

    def names(self, store: TmpfsStore) -> set[str]:
        return {"/" + n for n in self._mine()}

    def content(self, store: TmpfsStore, segment: TmpfsSegment) -> bytes:
        return segment.path.read_bytes()

    def mode(self, store: TmpfsStore, segment: TmpfsSegment) -> int:
        return segment.path.stat().st_mode & 0o7777

    def replace(self, store: TmpfsStore, segment: TmpfsSegment) -> None:
        segment.path.unlink()
        segment.path.touch(mode=0o600)

    @contextmanager
    def mapper(self, store: TmpfsStore, segment: TmpfsSegment) -> Iterator[None]:
        with mapping(segment.path):
            yield


class TmpfsSuite(TmpfsHooks, SegmentStoreSuite, ResidencySuite):
    """What only files can show."""

    def test_a_reader_keeps_its_map_when_the_segment_is_unlinked(self, store: TmpfsStore) -> None:
        segment = store.create("a", 5000)
        self.fill(segment, b"w" * 5000)
        segment.seal()
        with segment.path.open("rb") as file, mmap.mmap(file.fileno(), 5000, prot=mmap.PROT_READ) as held:
            segment.unlink()
            assert held[:] == b"w" * 5000

    def test_sealing_a_segment_that_somebody_deleted_is_an_error(self, store: TmpfsStore) -> None:
        segment = store.create("a", 10)
        segment.path.unlink()
        with pytest.raises(Unavailable, match="removed"):
            segment.seal()
        segment.unlink()

    def test_segments_of_another_owner_survive(self, store: TmpfsStore) -> None:
        other = self.make(self.owner + "x")
        theirs = other.create("a", 10)
        mine = store.create("a", 10)
        assert self.successor(store).drop_leftovers() == 1
        assert theirs.path.exists()
        assert not mine.path.exists()
        theirs.unlink()

    def test_no_descriptor_stays(self, store: TmpfsStore) -> None:
        before = len(os.listdir("/proc/self/fd"))
        sealed = store.create("a", 10)
        sealed.seal()
        store.create("b", 10).unlink()
        assert len(os.listdir("/proc/self/fd")) == before
        sealed.unlink()

    def test_the_group_may_read_and_others_may_not(self, store: TmpfsStore) -> None:
        segment = self.make(group=os.getegid()).create("a", 10)
        segment.seal()
        status = segment.path.stat()
        segment.unlink()
        assert (status.st_mode & 0o777, status.st_gid) == (0o440, os.getegid())

    def test_no_descriptor_stays_of_what_was_asked_adopted_and_retired(self, store: TmpfsStore) -> None:
        before = len(os.listdir("/proc/self/fd"))
        segment = store.adopt(old.name, 5000, old.identity) if (old := self.sealed(store)) else None
        assert segment is not None
        segment.mapped()
        with segment.opened():
            pass
        with mapping(segment.path):
            residue = segment.retire()
            assert residue is not None
            assert not residue.gone()
        assert residue.gone()
        assert self.sealed(store).retire() is None
        assert store.adopt(old.name, 5000, old.identity) is None
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_directory_of_its_name_is_left_alone(self, store: TmpfsStore) -> None:
        strange = self.root / f"weightd-{self.owner}-strange"
        strange.mkdir()
        try:
            assert self.make().drop_leftovers() == 0
        finally:
            strange.rmdir()

    @pytest.mark.parametrize("owner", ["a-b", "a/b", "x" * 33])
    def test_an_owner_that_could_be_mistaken_is_refused(self, store: TmpfsStore, owner: str) -> None:
        with pytest.raises(ValueError):
            self.make(owner)


class TestPosixSegmentStore(TmpfsSuite):
    root = ROOT

    @pytest.fixture
    def store(self) -> Iterator[TmpfsStore]:
        self.owner = "t" + secrets.token_hex(6)
        yield self.make()
        for name in self._mine():
            (ROOT / name).unlink()

    def make(self, owner: str = "", group: int | None = None) -> TmpfsStore:
        return PosixSegmentStore(owner or self.owner, group=group)

    def test_its_names_are_those_of_shm_open(self, store: TmpfsStore) -> None:
        assert store.directory == ""
        segment = self.sealed(store, b"abc")
        found = posix_ipc.SharedMemory(segment.name, flags=0, read_only=True)
        assert os.pread(found.fd, 4, 0) == b"abc"
        found.close_fd()


class TestDirectorySegmentStore(TmpfsSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[TmpfsStore]:
        self.owner, self.root = "t" + secrets.token_hex(6), tmp_path / "shm"
        self.made: list[DirectorySegmentStore] = []
        with mounted(self.root, "size=64m,mode=0750"):
            yield self.make()
            for store in self.made:
                store.close()

    def make(self, owner: str = "", group: int | None = None) -> TmpfsStore:
        self.made.append(store := DirectorySegmentStore(self.root, owner or self.owner, group=group))
        return store

    def test_says_where_it_is(self, store: TmpfsStore) -> None:
        segment = self.sealed(store, b"abc")
        assert store.directory == str(self.root)
        assert Path(store.directory + segment.name) == segment.path
        assert segment.path.read_bytes() == b"abc"

    def test_a_process_without_descriptors_says_nothing_of_a_segment(self, store: TmpfsStore) -> None:
        segment = store.create("a", 5)
        self.fill(segment, b"hello")
        segment.seal()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(Unavailable, match="cannot be opened now"), segment.opened():
                pass
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with segment.opened() as view:
            assert bytes(view) == b"hello"

    def test_pieces_that_were_let_go_leave_this_process_and_stay_in_the_file(self, store: TmpfsStore) -> None:
        content = os.urandom((1 << 20) + 5)
        segment = store.create("a", len(content))
        self.fill(segment, content)
        before = mapped_here(segment)
        for begin, end in ((4096, 1 << 19), (1 << 20, len(content))):
            with segment.view[begin:end] as piece:
                segment.let_go(piece)
        assert before == pages.footprint(len(content))
        assert mapped_here(segment) == before - ((1 << 19) - 4096) - 4096
        assert segment.path.read_bytes() == segment.view.tobytes() == content
        segment.seal()
        assert segment.path.read_bytes() == content

    def test_memory_is_free_when_the_residue_is_gone(self, store: TmpfsStore) -> None:
        """Nobody else uses this mount: its bytes can be told exactly."""
        before = store.free()
        assert store.total() == 64 << 20
        segment = self.sealed(store, bytes(8 << 20))
        assert before - store.free() == 8 << 20
        with mapping(segment.path):
            residue = segment.retire()
            assert residue is not None
            assert not residue.gone()
            assert before - store.free() == residue.size == 8 << 20
        assert before - store.free() == 8 << 20
        assert residue.gone()
        assert store.free() == before
        assert self.sealed(store, bytes(8 << 20)).retire() is None
        assert store.free() == before

    def test_a_full_mount_is_an_error_with_its_name(self, store: TmpfsStore) -> None:
        first, second = store.create("a", 40 << 20), store.create("b", 40 << 20)
        first.prepare(0, first.size)
        with pytest.raises(ShmFull, match=str(self.root)) as e:
            second.prepare(0, second.size)
        assert f"remount,size=… {self.root}" in e.value.remedy
        with pytest.raises(ShmFull, match=str(self.root)):
            store.create("c", 40 << 20)

    def test_its_directory_stays_the_one_that_was_checked(self, store: TmpfsStore) -> None:
        """What its path comes to mean later is nobody's segment."""
        segment = self.sealed(store)
        with mounted(self.root):
            assert list(self.root.iterdir()) == []
            assert segment.mapped() is False
            with segment.opened() as view:
                assert len(view) == 5000
            later = store.create("a", 10)
            assert list(self.root.iterdir()) == []
        assert later.path.exists()
        assert store.drop_leftovers([segment.name]) == 1


class TestMemorySegmentStore(SegmentStoreSuite, ResidencySuite):
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

    @contextmanager
    def mapper(self, store: MemorySegmentStore, segment: MemorySegment) -> Iterator[None]:
        found = store.objects.get(segment.name) or store.draining[-1]
        found.readers += 1
        yield
        found.readers -= 1

    def test_memory_is_free_when_the_residue_is_gone(self, store: MemorySegmentStore) -> None:
        before = store.free()
        segment = self.sealed(store, bytes(8192))
        with self.mapper(store, segment):
            residue = segment.retire()
            assert residue is not None
            assert before - store.free() == residue.size == 8192
        assert residue.gone()
        assert store.free() == before


MOUNTS = (
    "/dev/root / ext4 rw 0 0\n"
    "tmpfs /dev tmpfs rw,huge=always 0 0\n"
    "tmpfs /dev/shm tmpfs rw,huge=advise,size=8m 0 0\n"
    "tmpfs /mnt/with\\040space tmpfs rw,huge=within_size 0 0\n"
    "tmpfs /mnt/größer\\134 tmpfs rw,huge=always 0 0\n"
)


class TestPages:
    @pytest.mark.parametrize(
        ("path", "mode"),
        [
            ("/dev/shm", "advise"),
            ("/dev/shmem", "always"),
            ("/dev/shm/x/y", "advise"),
            ("/mnt/with space", "within_size"),
            ("/mnt/größer\\/x", "always"),
            ("/home", "never"),
        ],
    )
    def test_the_innermost_mount_decides(self, path: str, mode: str) -> None:
        assert pages.huge_mode(Path(path), MOUNTS) == mode

    @pytest.mark.parametrize(("size", "pages_"), [(0, 0), (1, 1), (4096, 1), (4097, 2)])
    def test_footprint_counts_whole_pages(self, size: int, pages_: int) -> None:
        assert pages.footprint(size) == pages_ * 4096
