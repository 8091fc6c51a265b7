"""Blobs on disk and their in-memory twin."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.storage.suites import PART, BlobStoreSuite, aligned, pattern, sha256
from weightd.core.digest import Digest
from weightd.core.errors import Corruption, PathInTheWay, Unavailable
from weightd.storage import ingests
from weightd.storage.blobs import DirectoryBlobStore
from weightd.storage.memory import MemoryBlobStore


class TestDirectoryBlobStore(BlobStoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> DirectoryBlobStore:
        return DirectoryBlobStore(tmp_path / "state")

    def open_ingests(self, store: DirectoryBlobStore) -> int:
        return len(os.listdir(store.ingests))

    def truncate(self, store: DirectoryBlobStore, digest: Digest, size: int) -> None:
        os.truncate(store.path(digest), size)

    def later(self, store: DirectoryBlobStore) -> DirectoryBlobStore:
        return DirectoryBlobStore(store.root)

    def test_blobs_are_read_only_files_of_their_size(self, store: DirectoryBlobStore) -> None:
        path = store.path(self.put(store, pattern(5000)))
        assert path.stat().st_mode & 0o7777 == 0o440
        assert path.read_bytes() == pattern(5000)
        assert path.relative_to(store.root).parts[:2] == ("blobs", "sha256")

    def test_no_descriptor_stays(self, store: DirectoryBlobStore) -> None:
        before = len(os.listdir("/proc/self/fd"))
        digest = self.put(store, pattern(5000))
        store.ingest(10).abort()
        self.read(store, digest, 0, 5000)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_open_ingests_hold_no_descriptor(self, store: DirectoryBlobStore) -> None:
        """A model of 1,000 files opens 1,000 ingests; the usual limit is 1,024 descriptors."""
        before = len(os.listdir("/proc/self/fd"))
        ingests = [store.ingest(4097) for _ in range(50)]
        for ingest in ingests:
            ingest.write(0, aligned(pattern(4097)))
        assert len(os.listdir("/proc/self/fd")) == before
        for ingest in ingests:
            ingest.abort()

    def test_files_that_are_no_blobs_are_not_listed(self, store: DirectoryBlobStore) -> None:
        digest = self.put(store, b"abc")
        store.path(digest).with_name("README").touch()
        store.path(digest).with_name(store.path(digest).name.upper()).touch()
        (store.blobs / "lost+found").mkdir()
        (store.blobs / "ff").mkdir(exist_ok=True)
        (store.blobs / "ff" / store.path(digest).name).touch()
        assert list(store.digests()) == [digest]

    def test_a_directory_among_the_ingests_is_nobodys_leftover(self, store: DirectoryBlobStore) -> None:
        (store.ingests / "lost+found").mkdir()
        store.ingest(10)
        assert self.later(store).drop_leftovers() == 1

    @pytest.mark.parametrize("damage", ["no ledger", "torn header", "no data", "data is a directory", "old"])
    def test_what_cannot_be_resumed_is_a_leftover(self, store: DirectoryBlobStore, damage: str) -> None:
        self.kept(store, pattern(2 * PART), 0)
        (place,) = store.ingests.iterdir()
        if damage == "no ledger":
            (place / "ledger").unlink()
        elif damage == "torn header":
            os.truncate(place / "ledger", 20)
        elif damage == "old":
            os.utime(place / "ledger", (0, 0))
        else:
            (place / "data").unlink()
            if damage == "data is a directory":
                (place / "data").mkdir()
        if damage != "old":
            assert self.later(store).ingest(2 * PART, ["source:1"], PART).held == {}
        assert self.later(store).drop_leftovers() == 1
        assert self.open_ingests(store) == 0

    def test_one_that_is_resumed_while_all_are_counted(
        self, store: DirectoryBlobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.kept(store, pattern(2 * PART), 0)
        used = ingests.used

        def resumed_meanwhile(path: Path) -> float:
            when = used(path)
            if path.exists():
                path.rename(path.with_suffix(".elsewhere"))
            return when

        monkeypatch.setattr(ingests, "used", resumed_meanwhile)
        assert sum(k.size for k in store.kept()) == 0

    def test_an_ingest_that_another_process_took_is_not_written(self, store: DirectoryBlobStore) -> None:
        """Two daemons on one state directory, where flock(2) does nothing."""
        first = store.ingest(2 * PART, ["source:1"], PART)
        first.record({0: b"0" * 16})
        second = self.later(store).ingest(2 * PART, ["source:1"], PART)
        assert set(second.held) == {0}
        with pytest.raises(Unavailable, match="another process"):
            first.write(0, aligned(pattern(PART)))
        with pytest.raises(Unavailable, match="another process"):
            first.record({1: b"1" * 16})
        first.abort()
        second.write(0, aligned(pattern(PART)))
        second.abort()
        assert self.open_ingests(store) == 0

    def test_a_shortened_data_file_is_allocated_again(self, store: DirectoryBlobStore) -> None:
        self.kept(store, pattern(2 * PART), 0, 1)
        (place,) = store.ingests.iterdir()
        os.truncate(place / "data", 100)
        ingest = self.later(store).ingest(2 * PART, ["source:1"], PART)
        assert os.stat(next(store.ingests.iterdir()) / "data").st_size == 2 * PART
        ingest.abort()

    def test_a_symlink_in_the_place_of_a_blob_is_not_followed(self, store: DirectoryBlobStore) -> None:
        digest = self.put(store, b"abc")
        path = store.path(digest)
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
        assert store.size(digest) is None
        with pytest.raises(Corruption, match="symlink"):
            self.read(store, digest, 0, 3)

    @pytest.mark.parametrize("where", ["ingest", "blobs/sha256"])
    @pytest.mark.parametrize("kind", ["file", "symlink", "dangling"])
    def test_a_place_that_is_no_directory_is_refused(self, tmp_path: Path, where: str, kind: str) -> None:
        place = tmp_path / "state" / where
        place.parent.mkdir(parents=True)
        if kind == "file":
            place.touch()
        else:
            place.symlink_to(tmp_path if kind == "symlink" else tmp_path / "nowhere")
        with pytest.raises(PathInTheWay):
            DirectoryBlobStore(tmp_path / "state")

    def test_a_grown_blob_shows_its_size(self, store: DirectoryBlobStore) -> None:
        digest = self.put(store, b"abc")
        with store.path(digest).open("ab") as file:
            file.write(b"more")
        assert store.size(digest) == 7

    def test_a_commit_that_fails_leaves_nothing(self, store: DirectoryBlobStore) -> None:
        target = store.path(sha256(b"abc"))
        target.mkdir(parents=True)
        ingest = store.ingest(3)
        ingest.write(0, aligned(b"abc"))
        with pytest.raises(PathInTheWay):
            ingest.commit(sha256(b"abc"))
        with pytest.raises(PathInTheWay):
            store.delete(sha256(b"abc"))
        assert self.open_ingests(store) == 0


class TestMemoryBlobStore(BlobStoreSuite):
    @pytest.fixture
    def store(self) -> MemoryBlobStore:
        return MemoryBlobStore(16 << 20)

    def open_ingests(self, store: MemoryBlobStore) -> int:
        return len(store.ingests) + len(store.keeping)

    def later(self, store: MemoryBlobStore) -> MemoryBlobStore:
        return store

    def truncate(self, store: MemoryBlobStore, digest: Digest, size: int) -> None:
        store.blobs[digest] = store.blobs[digest][:size]
