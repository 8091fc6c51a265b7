"""What every blob store has to keep; run on each implementation."""

from __future__ import annotations

import hashlib
import mmap
from concurrent.futures import ThreadPoolExecutor

import pytest
import xxhash

from weightd.core.digest import Digest, digest_of
from weightd.core.errors import Corruption, DiskFull, NotFound
from weightd.core.lifecycle import IllegalTransition
from weightd.core.parts import plan_parts
from weightd.storage.protocols import BlobStore, Ingest

PART = 64 << 10
SIZES = [1, 4095, 4096, 4097, PART - 1, PART, PART + 1, 3 * PART + 5]
IMPOSSIBLE = 1 << 50
"""More bytes than any file system here has; file systems refuse it at once, without allocating."""


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes without a period that a misplaced block could hide in."""
    return hashlib.shake_128(f"{seed}".encode()).digest(size)


def aligned(data: bytes) -> memoryview:
    """In a map, as parts are."""
    buffer = memoryview(mmap.mmap(-1, max(len(data), 1)))[: len(data)]
    buffer[:] = data
    return buffer


def sha256(data: bytes) -> Digest:
    return digest_of(hashlib.sha256(data).digest())


class BlobStoreSuite:
    """Subclasses say how to look at a store from outside, and how to damage it."""

    @pytest.fixture
    def store(self) -> BlobStore:
        raise NotImplementedError

    def open_ingests(self, store: BlobStore) -> int:
        raise NotImplementedError

    def truncate(self, store: BlobStore, digest: Digest, size: int) -> None:
        raise NotImplementedError

    def later(self, store: BlobStore) -> BlobStore:
        """The store of the next process on the same disk."""
        raise NotImplementedError

    @staticmethod
    def write(ingest: Ingest, data: bytes) -> None:
        for part in reversed(plan_parts(len(data), PART)):
            ingest.write(part.offset, aligned(data)[part.offset : part.offset + part.length])

    def put(self, store: BlobStore, data: bytes) -> Digest:
        ingest = store.ingest(len(data))
        self.write(ingest, data)
        ingest.commit(sha256(data))
        return sha256(data)

    @staticmethod
    def read(source: BlobStore, digest: Digest, offset: int, length: int) -> bytes:
        with mmap.mmap(-1, max(length, 1)) as buffer:
            with memoryview(buffer)[:length] as view:
                source.read(digest, offset, view)
                return bytes(view)

    @pytest.mark.parametrize("size", [0, *SIZES])
    def test_returns_what_was_committed(self, store: BlobStore, size: int) -> None:
        data = pattern(size)
        digest = self.put(store, data)
        assert store.size(digest) == size
        assert self.read(store, digest, 0, size) == data
        for part in plan_parts(size, 4096):
            assert self.read(store, digest, part.offset, part.length) == data[part.offset : part.offset + part.length]
        assert list(store.digests()) == [digest]
        assert self.open_ingests(store) == 0

    def test_nothing_is_visible_before_the_commit(self, store: BlobStore) -> None:
        data = pattern(PART + 1)
        ingest = store.ingest(len(data))
        self.write(ingest, data)
        assert store.size(sha256(data)) is None
        assert list(store.digests()) == []
        with pytest.raises(NotFound):
            self.read(store, sha256(data), 0, 10)
        ingest.commit(sha256(data))
        assert store.size(sha256(data)) == len(data)

    @pytest.mark.parametrize("size", [1, 4097, 3 * PART + 5])
    def test_an_ingest_can_be_read_before_the_commit(self, store: BlobStore, size: int) -> None:
        data = pattern(size)
        ingest = store.ingest(size)
        self.write(ingest, data)
        with mmap.mmap(-1, size) as buffer, memoryview(buffer) as view:
            ingest.read(0, view)
            assert bytes(view) == data
        ingest.abort()

    def test_abort_leaves_nothing(self, store: BlobStore) -> None:
        free = self.open_ingests(store)
        ingest = store.ingest(PART)
        self.write(ingest, pattern(PART))
        ingest.abort()
        ingest.abort()
        assert self.open_ingests(store) == free == 0
        assert list(store.digests()) == []

    def test_abort_after_the_commit_is_harmless(self, store: BlobStore) -> None:
        ingest = store.ingest(3)
        ingest.write(0, aligned(b"abc"))
        ingest.commit(sha256(b"abc"))
        ingest.abort()
        assert self.read(store, sha256(b"abc"), 0, 3) == b"abc"

    def test_commit_happens_once(self, store: BlobStore) -> None:
        ingest = store.ingest(3)
        ingest.write(0, aligned(b"abc"))
        ingest.commit(sha256(b"abc"))
        with pytest.raises(IllegalTransition):
            ingest.commit(sha256(b"abc"))
        aborted = store.ingest(3)
        aborted.abort()
        with pytest.raises(IllegalTransition):
            aborted.commit(sha256(b"xyz"))
        assert list(store.digests()) == [sha256(b"abc")]

    def test_the_same_blob_twice_is_one(self, store: BlobStore) -> None:
        first, second = store.ingest(3), store.ingest(3)
        for ingest in (first, second):
            ingest.write(0, aligned(b"abc"))
        first.commit(sha256(b"abc"))
        second.commit(sha256(b"abc"))
        assert list(store.digests()) == [sha256(b"abc")]
        assert self.read(store, sha256(b"abc"), 0, 3) == b"abc"
        assert self.open_ingests(store) == 0

    def test_full_says_so_and_leaves_nothing(self, store: BlobStore) -> None:
        with pytest.raises(DiskFull):
            store.ingest(IMPOSSIBLE)
        assert self.open_ingests(store) == 0

    def test_says_whether_there_is_room(self, store: BlobStore) -> None:
        store.check_room(4096)
        with pytest.raises(DiskFull):
            store.check_room(IMPOSSIBLE)

    @pytest.mark.parametrize("size", [0, 1, 4096, 5000])
    def test_a_shorter_blob_is_corruption(self, store: BlobStore, size: int) -> None:
        digest = self.put(store, pattern(3 * PART))
        self.truncate(store, digest, size)
        with pytest.raises(Corruption):
            self.read(store, digest, 0, 3 * PART)
        with pytest.raises(Corruption):
            self.read(store, digest, 2 * PART, PART)
        assert store.size(digest) == size

    def test_delete_is_idempotent(self, store: BlobStore) -> None:
        digest = self.put(store, b"abc")
        store.delete(digest)
        store.delete(digest)
        assert store.size(digest) is None
        assert list(store.digests()) == []
        with pytest.raises(NotFound):
            self.read(store, digest, 0, 3)

    def test_leftovers_go_and_blobs_stay(self, store: BlobStore) -> None:
        digest = self.put(store, b"abc")
        store.ingest(10)
        store.ingest(0)
        later = self.later(store)
        assert later.drop_leftovers() == 2
        assert later.drop_leftovers() == 0
        assert self.open_ingests(store) == 0
        assert list(store.digests()) == [digest]

    def kept(self, store: BlobStore, data: bytes, *parts: int, identity: str = "source:1") -> None:
        """An ingest of which these parts were recorded, closed to be resumed."""
        ingest = store.ingest(len(data), [identity], PART)
        for part in (plan_parts(len(data), PART)[i] for i in parts):
            ingest.write(part.offset, aligned(data)[part.offset : part.offset + part.length])
            ingest.record({part.index: xxhash.xxh3_128_digest(data[part.offset : part.offset + part.length])})
        assert ingest.keep()

    def test_a_kept_ingest_is_resumed(self, store: BlobStore) -> None:
        data = pattern(3 * PART + 5)
        self.kept(store, data, 2, 0)
        assert self.open_ingests(store) == len(store.kept()) == 1
        later = self.later(store)
        assert later.drop_leftovers() == 0
        ingest = later.ingest(len(data), ["other", "source:1"], 2 * PART)
        assert ingest.part_size == PART
        assert ingest.held == {i: xxhash.xxh3_128_digest(data[i * PART : (i + 1) * PART]) for i in (0, 2)}
        assert later.kept() == []
        with mmap.mmap(-1, PART) as buffer, memoryview(buffer) as view:
            ingest.read(2 * PART, view)
            assert bytes(view) == data[2 * PART : 3 * PART]
        for part in (1, 3):
            ingest.write(part * PART, aligned(data)[part * PART : (part + 1) * PART])
        ingest.record({1: b"1" * 16})
        ingest.commit(sha256(data))
        ingest.abort()
        assert self.read(later, sha256(data), 0, len(data)) == data
        assert self.open_ingests(later) == 0

    def test_only_one_resumes_it(self, store: BlobStore) -> None:
        data = pattern(2 * PART)
        self.kept(store, data, 0)
        first, second = (store.ingest(len(data), ["source:1"], PART) for _ in range(2))
        assert (len(first.held), len(second.held)) == (1, 0)
        for ingest in (first, second):
            ingest.abort()
        assert self.open_ingests(store) == 0

    def test_what_was_resumed_can_be_kept_again(self, store: BlobStore) -> None:
        data = pattern(3 * PART)
        self.kept(store, data, 0)
        ingest = store.ingest(len(data), ["source:1"], PART)
        ingest.record({1: b"1" * 16})
        assert ingest.keep()
        ingest.abort()
        assert set(store.ingest(len(data), ["source:1"], PART).held) == {0, 1}

    def test_another_size_is_not_resumed(self, store: BlobStore) -> None:
        self.kept(store, pattern(2 * PART), 0)
        assert store.ingest(2 * PART + 1, ["source:1"], PART).held == {}
        assert store.kept() == []

    @pytest.mark.parametrize(("identity", "size"), [("", 2 * PART), ("source:1", PART), ("source:1", 0)])
    def test_what_cannot_be_resumed_is_not_kept(self, store: BlobStore, identity: str, size: int) -> None:
        ingest = store.ingest(size, [identity], PART)
        ingest.record({0: b"0" * 16})
        assert not ingest.keep()
        assert self.open_ingests(store) == len(store.kept()) == 0

    def test_without_a_record_nothing_is_kept(self, store: BlobStore) -> None:
        ingest = store.ingest(2 * PART, ["source:1"], PART)
        assert not ingest.keep()
        assert self.open_ingests(store) == 0

    def test_a_kept_ingest_is_dropped(self, store: BlobStore) -> None:
        self.kept(store, pattern(2 * PART), 0)
        (kept,) = store.kept()
        assert 2 * PART <= kept.size <= 2 * PART + 4096
        store.drop_kept(kept)
        store.drop_kept(kept)
        assert self.open_ingests(store) == 0

    def test_a_damaged_blob_becomes_an_ingest(self, store: BlobStore) -> None:
        data = pattern(3 * PART + 1)
        digest = self.put(store, data)
        self.truncate(store, digest, 2 * PART)
        checksums = [xxhash.xxh3_128_digest(data[i : i + PART]) for i in range(0, len(data), PART)]
        assert store.salvage(digest, len(data), PART, checksums)
        assert list(store.digests()) == []
        ingest = store.ingest(len(data), [digest], PART)
        assert ingest.held == dict(enumerate(checksums))
        self.write(ingest, data)
        ingest.commit(digest)
        assert self.read(store, digest, 0, len(data)) == data

    def test_what_is_not_there_is_not_salvaged(self, store: BlobStore) -> None:
        assert not store.salvage(sha256(b"abc"), 3 * PART, PART, [b"0" * 16] * 3)
        assert self.open_ingests(store) == len(store.kept()) == 0

    def test_written_by_many_threads(self, store: BlobStore) -> None:
        data = pattern(40 * PART + 17)
        ingest = store.ingest(len(data))
        whole = aligned(data)

        def write(offset: int, length: int) -> None:
            ingest.write(offset, whole[offset : offset + length])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda p: write(p.offset, p.length), plan_parts(len(data), PART)))
        ingest.commit(sha256(data))
        assert self.read(store, sha256(data), 0, len(data)) == data

    def test_paths_are_distinct(self, store: BlobStore) -> None:
        assert store.path(sha256(b"a")) != store.path(sha256(b"b"))
        assert store.free() > 0
