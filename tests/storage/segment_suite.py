"""What every segment store has to keep; run on each implementation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from tests.storage.suites import IMPOSSIBLE, PART, SIZES, pattern
from weightd.core.errors import ShmFull, Unavailable
from weightd.core.lifecycle import IllegalTransition, SegmentState
from weightd.core.parts import plan_parts
from weightd.storage.protocols import Segment, SegmentIdentity, SegmentStore


class SegmentHooks:
    """Subclasses say how to look at a store from outside."""

    @pytest.fixture
    def store(self) -> SegmentStore:
        raise NotImplementedError

    def successor(self, store: SegmentStore) -> SegmentStore:
        """A store of the same owner in a later process."""
        raise NotImplementedError

    def names(self, store: SegmentStore) -> set[str]:
        """Of the objects that exist, of this store's owner."""
        raise NotImplementedError

    def content(self, store: SegmentStore, segment: Segment) -> bytes:
        raise NotImplementedError

    def mode(self, store: SegmentStore, segment: Segment) -> int:
        raise NotImplementedError

    def replace(self, store: SegmentStore, segment: Segment) -> None:
        """Somebody else unlinks the object and makes another one of its name."""
        raise NotImplementedError

    def mapper(self, store: SegmentStore, segment: Segment) -> AbstractContextManager[None]:
        """Somebody else maps a sealed segment."""
        raise NotImplementedError

    def sealed(self, store: SegmentStore, data: bytes = b"w" * 5000) -> Segment:
        segment = store.create("a", len(data))
        self.fill(segment, data)
        segment.seal()
        return segment

    @staticmethod
    def fill(segment: Segment, data: bytes) -> None:
        segment.prepare(0, len(data))
        segment.view[:] = data


class SegmentStoreSuite(SegmentHooks):
    """From create to unlink."""

    @pytest.mark.parametrize("size", SIZES)
    def test_holds_its_bytes_from_create_to_unlink(self, store: SegmentStore, size: int) -> None:
        segment = store.create("model-safetensors", size)
        assert segment.state is SegmentState.CREATED
        assert len(segment.view) == segment.size == size
        assert self.mode(store, segment) == 0o600
        self.fill(segment, pattern(size))
        segment.seal()
        assert segment.state is SegmentState.SEALED
        assert self.content(store, segment) == pattern(size)
        assert self.mode(store, segment) == 0o440
        segment.unlink()
        assert segment.state is SegmentState.UNLINKED
        assert self.names(store) == set()

    def test_a_fresh_segment_reads_as_zeros(self, store: SegmentStore) -> None:
        segment = store.create("a", 5000)
        segment.prepare(0, 5000)
        assert bytes(segment.view) == bytes(5000)
        segment.unlink()

    def test_names_are_unique_and_carry_the_label(self, store: SegmentStore) -> None:
        segments = [store.create("label-1", 1) for _ in range(20)]
        names = {s.name for s in segments}
        assert len(names) == 20
        assert all(n.startswith("/") and "label-1" in n and n.count("/") == 1 for n in names)
        assert self.names(store) == names
        for segment in segments:
            segment.unlink()

    def test_zero_bytes_have_no_object(self, store: SegmentStore) -> None:
        segment = store.create("empty", 0)
        assert (segment.name, segment.size, len(segment.view)) == ("", 0, 0)
        assert self.names(store) == set()
        segment.seal()
        segment.unlink()
        segment.unlink()

    def test_not_writable_once_sealed(self, store: SegmentStore) -> None:
        segment = store.create("a", 10)
        before = segment.view
        segment.seal()
        with pytest.raises(AssertionError):
            _ = segment.view
        with pytest.raises(ValueError, match="released"):
            before[0] = 1
        with pytest.raises(IllegalTransition):
            segment.seal()
        segment.unlink()

    def test_cannot_be_sealed_while_somebody_holds_its_bytes(self, store: SegmentStore) -> None:
        segment = store.create("a", 8192)
        with segment.view[:10], pytest.raises(BufferError):
            segment.seal()
        assert self.mode(store, segment) == 0o600
        segment.unlink()
        assert self.names(store) == set()

    def test_unlink_removes_the_name_even_while_somebody_holds_its_bytes(self, store: SegmentStore) -> None:
        segment = store.create("a", 8192)
        segment.prepare(0, 8192)
        held = segment.view[:10]
        segment.unlink()
        assert self.names(store) == set()
        held[0] = 7
        held.release()

    def test_unlink_is_idempotent(self, store: SegmentStore) -> None:
        segment = store.create("a", 10)
        segment.unlink()
        segment.unlink()
        assert segment.state is SegmentState.UNLINKED

    @pytest.mark.parametrize("sealed", [True, False])
    def test_a_newer_object_of_the_same_name_survives(self, store: SegmentStore, sealed: bool) -> None:
        segment = store.create("a", 10)
        if sealed:
            segment.seal()
        self.replace(store, segment)
        segment.unlink()
        assert self.names(store) == {segment.name}

    def test_sealing_leaves_a_newer_object_of_the_same_name_alone(self, store: SegmentStore) -> None:
        segment = store.create("a", 10)
        self.replace(store, segment)
        with pytest.raises(Unavailable, match="removed"):
            segment.seal()
        assert self.mode(store, segment) == 0o600
        segment.unlink()

    def test_full_says_so_and_leaves_nothing(self, store: SegmentStore) -> None:
        with pytest.raises(ShmFull):
            store.create("a", store.total() + 4096)
        with pytest.raises(ShmFull):
            store.create("a", IMPOSSIBLE)
        assert self.names(store) == set()

    def test_says_whether_there_is_room(self, store: SegmentStore) -> None:
        store.check_room(4096)
        with pytest.raises(ShmFull):
            store.check_room(store.total() + 4096)
        assert self.names(store) == set()

    def test_tells_what_it_will_still_take(self, store: SegmentStore) -> None:
        segment = store.create("a", 5 * 4096 + 1)
        assert 0 <= segment.unbacked <= 6 * 4096
        segment.prepare(4096, 3 * 4096)
        assert 0 <= segment.unbacked <= 3 * 4096
        segment.prepare(0, segment.size)
        assert segment.unbacked == 0
        segment.unlink()
        assert segment.unbacked == 0
        given_up = store.create("a", 4096)
        given_up.unlink()
        assert given_up.unbacked == 0
        sealed = store.create("a", 4096)
        sealed.prepare(0, 4096)
        sealed.seal()
        assert sealed.unbacked == 0
        sealed.unlink()
        assert store.create("a", 0).unbacked == 0

    def test_leftovers_of_the_same_owner_go(self, store: SegmentStore) -> None:
        store.create("open", 10)
        store.create("sealed", 10).seal()
        later = self.successor(store)
        assert later.drop_leftovers() == 2
        assert later.drop_leftovers() == 0
        assert self.names(store) == set()

    def test_written_by_many_threads(self, store: SegmentStore) -> None:
        data = pattern(40 * PART + 17)
        segment = store.create("a", len(data))

        def write(offset: int, length: int) -> None:
            segment.prepare(offset, length)
            with segment.view[offset : offset + length] as view:
                view[:] = data[offset : offset + length]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda p: write(p.offset, p.length), plan_parts(len(data), PART)))
        segment.seal()
        assert self.content(store, segment) == data
        segment.unlink()

    def test_counts_its_file_system(self, store: SegmentStore) -> None:
        assert 0 < store.free() <= store.total()
        assert store.huge_bytes() >= 0


class ResidencySuite(SegmentHooks):
    """Adopted by the next process; retired while somebody maps it."""

    def test_identities_are_distinct(self, store: SegmentStore) -> None:
        segments = [store.create("a", 10) for _ in range(5)]
        assert len({s.identity for s in segments}) == 5
        before = segments[0].identity
        segments[0].seal()
        assert segments[0].identity == before
        for segment in segments:
            segment.unlink()
        assert store.create("a", 0).identity == (0, 0)

    @pytest.mark.parametrize("size", SIZES)
    def test_a_sealed_segment_is_adopted_by_the_next_process(self, store: SegmentStore, size: int) -> None:
        old = self.sealed(store, pattern(size))
        later = self.successor(store)
        segment = later.adopt(old.name, size, old.identity)
        assert segment is not None
        assert (segment.state, segment.name, segment.path) == (SegmentState.SEALED, old.name, old.path)
        assert (segment.size, segment.identity, segment.unbacked) == (size, old.identity, 0)
        assert later.drop_leftovers([segment.name]) == 0
        with segment.opened() as view:
            assert bytes(view) == pattern(size)
            assert view.readonly
        with pytest.raises(AssertionError):
            segment.view  # noqa: B018
        segment.unlink()
        assert segment.state is SegmentState.UNLINKED
        assert self.names(store) == set()

    def test_nothing_else_is_adopted(self, store: SegmentStore) -> None:
        old, filling = self.sealed(store), store.create("b", 5000)
        self.fill(filling, bytes(5000))
        later = self.successor(store)
        name, size, identity = old.name, old.size, old.identity
        device, inode = identity
        for wrong in (
            (name, size + 1, identity),
            (name, size - 1, identity),
            (name, 0, identity),
            (name, -1, identity),
            (name, size, SegmentIdentity(device, inode + 1)),
            (name, size, SegmentIdentity(device + 1, inode)),
            (name, size, SegmentIdentity(0, 0)),
            (name, size, SegmentIdentity(1 << 64, -1)),
            (filling.name, filling.size, filling.identity),
            (name + "x", size, identity),
            (name[1:], size, identity),
            ("/" + name, size, identity),
            (f"{name}/../{name[1:]}", size, identity),
            ("", size, identity),
            ("/", size, identity),
            (name + "\0", size, identity),
            (name + "\udc80", size, identity),
            (name + "x" * 5000, size, identity),
        ):
            assert later.adopt(*wrong) is None, wrong
        assert self.names(store) == {old.name, filling.name}
        assert later.drop_leftovers([old.name]) == 1
        assert self.names(store) == {old.name}
        old.unlink()
        assert later.adopt(name, size, identity) is None

    def test_another_object_of_its_name_is_not_adopted(self, store: SegmentStore) -> None:
        old = self.sealed(store)
        self.replace(store, old)
        assert self.successor(store).adopt(old.name, old.size, old.identity) is None

    def test_leftovers_go_but_for_the_adopted(self, store: SegmentStore) -> None:
        old, _ = self.sealed(store), self.sealed(store)
        store.create("open", 10)
        later = self.successor(store)
        adopted = later.adopt(old.name, old.size, old.identity)
        assert adopted is not None
        assert later.drop_leftovers({adopted.name}) == 2
        assert self.names(store) == {old.name}
        assert later.drop_leftovers() == 1

    def test_tells_whether_somebody_maps_it(self, store: SegmentStore) -> None:
        segment = store.create("a", 5000)
        assert segment.mapped() is None
        self.fill(segment, b"w" * 5000)
        segment.seal()
        assert segment.mapped() is False
        with self.mapper(store, segment):
            assert segment.mapped() is True
            with self.mapper(store, segment):
                assert segment.mapped() is True
            assert segment.mapped() is True
        assert segment.mapped() is False
        with segment.opened():
            assert segment.mapped() is True
        assert segment.mapped() is False
        self.replace(store, segment)
        assert segment.mapped() is None
        segment.unlink()
        assert segment.mapped() is None
        empty = store.create("a", 0)
        empty.seal()
        assert empty.mapped() is False

    def test_what_nobody_maps_is_free_when_it_is_retired(self, store: SegmentStore) -> None:
        segment = self.sealed(store)
        assert segment.retire() is None
        assert segment.state is SegmentState.UNLINKED
        assert self.names(store) == set()
        assert segment.retire() is None

    def test_what_somebody_maps_drains(self, store: SegmentStore) -> None:
        segment = self.sealed(store)
        with self.mapper(store, segment):
            with self.mapper(store, segment):
                residue = segment.retire()
                assert residue is not None
                assert (residue.size, residue.known) == (8192, True)
                assert self.names(store) == set()
                assert segment.state is SegmentState.UNLINKED
                assert not residue.gone()
            assert not residue.gone()
        assert residue.gone()
        assert residue.gone()
        residue.close()
        assert residue.gone()
        assert residue.known

    def test_a_residue_that_nobody_asks_any_more(self, store: SegmentStore) -> None:
        segment = self.sealed(store)
        with self.mapper(store, segment):
            residue = segment.retire()
            assert residue is not None
            residue.close()
            residue.close()
            assert residue.gone()

    def test_an_adopted_segment_drains_as_well(self, store: SegmentStore) -> None:
        old = self.sealed(store)
        adopted = self.successor(store).adopt(old.name, old.size, old.identity)
        assert adopted is not None
        assert adopted.mapped() is False
        with self.mapper(store, adopted):
            assert adopted.mapped() is True
            residue = adopted.retire()
            assert residue is not None
            assert not residue.gone()
        assert residue.gone()

    def test_retiring_leaves_a_newer_object_of_the_same_name_alone(self, store: SegmentStore) -> None:
        segment = self.sealed(store)
        self.replace(store, segment)
        assert segment.retire() is None
        assert self.names(store) == {segment.name}

    def test_what_has_no_object_and_what_is_not_sealed_is_retired(self, store: SegmentStore) -> None:
        for size in (0, 10):
            segment = store.create("a", size)
            assert segment.retire() is None
            assert segment.state is SegmentState.UNLINKED
        assert self.names(store) == set()

    def test_asked_by_many_threads_nobody_is_seen(self, store: SegmentStore) -> None:
        segment = self.sealed(store)
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: segment.mapped(), range(400))) == {False}
        segment.unlink()

    def test_opened_while_it_is_asked(self, store: SegmentStore) -> None:
        """The question holds openers up for a moment; it fails none."""
        segment = self.sealed(store)

        def opened(_: int) -> bytes:
            with segment.opened() as view:
                return bytes(view[:1])

        with ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(segment.mapped) for _ in range(300)]
            assert set(pool.map(opened, range(300))) == {b"w"}
            assert {a.result() for a in asking} <= {True, False}
        segment.unlink()
