"""state.db: what is recorded comes back; what is damaged is refused with a remedy; nothing is half done."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from weightd.core.digest import Digest
from weightd.core.errors import AccessDenied, AlreadyRunning, ConfigError, DiskFull, PathInTheWay
from weightd.core.manifest import FileSpec, Manifest, make_manifest
from weightd.core.verification import Verification
from weightd.storage.state import BlobRecord, ModelRecord, State

D1, D2 = Digest("sha256:" + "1" * 64), Digest("sha256:" + "2" * 64)


def blob(digest: Digest = D1, size: int = 5000, parts: int = 2) -> BlobRecord:
    return BlobRecord(digest, size, Verification.SIZE, 4096, bytes(16 * parts))


def put(state: State, record: BlobRecord, source_key: str = "") -> None:
    state.put_blobs([(record, source_key)])


def manifest(revision_seed: str = "a") -> Manifest:
    return make_manifest("http://h/m", "raw", [FileSpec(f"f{revision_seed}", 5000, f"http://h/{revision_seed}", D1)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def state(path: Path) -> Iterator[State]:
    state = State(path)
    state.open()
    yield state
    state.close()


def reopened(state: State, path: Path) -> State:
    state.close()
    state.open()
    return state


def test_what_is_recorded_comes_back(state: State, path: Path) -> None:
    put(state, blob(), "source:x")
    put(state, blob(D2))
    state.put_model(ModelRecord("http://h/m", manifest(), {"f": D1}, 12.5))
    reopened(state, path)
    assert {b.digest: b for b in state.blobs()} == {D1: blob(), D2: blob(D2)}
    assert state.seen() == {"source:x": D1}
    assert state.models() == [ModelRecord("http://h/m", manifest(), {"f": D1}, 12.5)]
    state.set_verified(D2, 99.25)
    assert {b.digest: b.last_verified for b in reopened(state, path).blobs()} == {D1: 0.0, D2: 99.25}
    state.drop_blob(D1)
    state.set_verified(D1, 1.0)
    assert [b.digest for b in reopened(state, path).blobs()] == [D2]


def test_the_last_snapshot_of_a_ref_is_the_current_one(state: State) -> None:
    state.put_model(ModelRecord("http://h/m", manifest("a"), {"f": D1}))
    state.put_model(ModelRecord("http://h/m", manifest("b"), {"f": D1}))
    assert shown(state) == [(manifest("a").revision, False), (manifest("b").revision, True)]
    state.put_model(ModelRecord("http://h/m", manifest("a"), {"f": D1}))
    state.put_model(ModelRecord("http://other/m", manifest("b"), {"f": D1}))
    assert shown(state) == [
        (manifest("b").revision, False),
        (manifest("a").revision, True),
        (manifest("b").revision, True),
    ]


def shown(state: State) -> list[tuple[str, bool]]:
    return [(m.manifest.revision, m.current) for m in state.models()]


def test_a_snapshot_goes_with_its_blobs_or_not_at_all(state: State) -> None:
    state.put_blobs([(blob(), "source:x"), (blob(D2), "source:y")])
    state.put_model(ModelRecord("http://h/m", manifest("a"), {"f": D1}))
    state.put_model(ModelRecord("http://h/m", manifest("b"), {"f": D2}))
    state.put_model(ModelRecord("http://other/m", manifest("a"), {"f": D2}))
    state._open.execute("PRAGMA query_only = ON")
    with pytest.raises(AccessDenied):
        state.drop_model("http://h/m", manifest("a").revision, [D1])
    state._open.execute("PRAGMA query_only = OFF")
    assert (len(state.models()), len(state.blobs())) == (3, 2)
    state.drop_model("http://h/m", manifest("a").revision, [D1])
    assert shown(state) == [(manifest("b").revision, True), (manifest("a").revision, True)]
    assert ([b.digest for b in state.blobs()], state.seen()) == ([D2], {"source:y": D2})


def test_refs_that_look_alike_to_people_are_two(state: State) -> None:
    """They differ in credentials or query values, which a manifest's ref does not show."""
    state.put_model(ModelRecord("http://h/m?id=1", manifest(), {"f": D1}))
    state.put_model(ModelRecord("http://h/m?id=2", manifest(), {"f": D1}))
    assert {m.ref for m in state.models()} == {"http://h/m?id=1", "http://h/m?id=2"}


def test_nobody_else_may_read_it(state: State, path: Path) -> None:
    put(state, blob())
    assert {p.stat().st_mode & 0o777 for p in path.parent.glob("state.db*")} == {0o600}


@pytest.mark.parametrize("damage", [b"not a database" * 100, b"\0" * 8192, b"SQLite format 3\0" + b"\xff" * 9000])
def test_no_database(path: Path, damage: bytes) -> None:
    path.write_bytes(damage)
    with pytest.raises(ConfigError, match="Move it away"):
        State(path).open()
    assert path.read_bytes() == damage


def test_pages_overwritten_in_the_middle(state: State, path: Path) -> None:
    for i in range(500):
        put(state, blob(Digest(f"sha256:{i:064x}")))
    state.close()
    raw = bytearray(path.read_bytes())
    raw[4096 * 3 : 4096 * 8] = b"\xa5" * (4096 * 5)
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="damaged"):
        state.open()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE models SET model = x'7b'",
        "UPDATE models SET model = '{\"ref\": 1}'",
        "UPDATE blobs SET verification = 77",
        "UPDATE blobs SET size = 'many'",
        "UPDATE blobs SET checksums = 5",
        "UPDATE blobs SET last_verified = 'yesterday'",
    ],
)
def test_rows_that_nobody_recorded(state: State, path: Path, statement: str) -> None:
    put(state, blob())
    state.put_model(ModelRecord("http://h/m", manifest(), {"f": D1}))
    state.close()
    db = sqlite3.connect(path)
    db.execute(statement)
    db.commit()
    db.close()
    state.open()
    with pytest.raises(ConfigError, match="damaged"):
        (state.blobs(), state.models())


@pytest.mark.parametrize(
    ("record", "sound"),
    [
        (blob(), True),
        (blob(parts=1), False),
        (blob(parts=3), False),
        (blob(size=0, parts=0), True),
        (blob(size=-1, parts=0), False),
        (BlobRecord(D1, 5000, Verification.SIZE, 0, b""), False),
        (BlobRecord(D1, 5000, Verification.SIZE, 1000, bytes(80)), False),
    ],
)
def test_soundness(record: BlobRecord, sound: bool) -> None:
    assert record.sound is sound


def test_a_later_schema_is_left_alone(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConfigError, match="schema 99"):
        State(path).open()


@pytest.mark.parametrize("kind", ["directory", "symlink"])
def test_something_else_in_its_place(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(PathInTheWay):
        State(path).open()
    assert not path.with_name("elsewhere").exists()


def test_locked_by_another_process(state: State, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    state._open.execute("PRAGMA busy_timeout = 1")
    with pytest.raises(AlreadyRunning):
        put(state, blob())
    other.execute("ROLLBACK")
    other.close()
    put(state, blob())
    assert state.blobs() == [blob()]


def test_a_full_database_refuses_whole_transactions_and_works_on(state: State) -> None:
    put(state, blob(), "source:x")
    state._open.execute("PRAGMA max_page_count = 1")
    with pytest.raises(DiskFull, match="cannot be written"):
        for i in range(10_000):
            put(state, blob(Digest(f"sha256:{i:064x}"), size=409_600, parts=100), f"source:{i}")
    assert len(state.seen()) == len(state.blobs())
    state.drop_blob(D1)
    state._open.execute("PRAGMA max_page_count = 100000")
    put(state, blob(D2))
    assert D2 in {b.digest for b in state.blobs()}


def test_several_blobs_are_recorded_together_or_not_at_all(state: State) -> None:
    state.put_blobs([(blob(), "source:x"), (blob(D2), "")])
    assert {b.digest for b in state.blobs()} == {D1, D2}
    assert state.seen() == {"source:x": D1}
    state._open.execute("PRAGMA max_page_count = 1")
    more = [(blob(Digest(f"sha256:{i:064x}"), size=40_960_000, parts=10_000), f"source:{i}") for i in range(9)]
    with pytest.raises(DiskFull):
        state.put_blobs(more)
    assert {b.digest for b in state.blobs()} == {D1, D2}
    assert state.seen() == {"source:x": D1}


def test_an_error_of_the_caller_rolls_back(state: State) -> None:
    with pytest.raises(KeyboardInterrupt):
        with state._transaction() as db:
            db.execute("INSERT INTO seen VALUES ('x', 'y')")
            raise KeyboardInterrupt
    assert state.seen() == {}
    put(state, blob())


def test_a_database_that_may_not_be_written(tmp_path: Path) -> None:
    state = State(tmp_path / "state.db")
    state.open()
    assert state._db is not None
    # SQLite then says what it says of a file on a read-only file system.
    state._db.execute("PRAGMA query_only = ON")
    with pytest.raises(AccessDenied, match="may not be written"):
        state.drop_blob(Digest("sha256:" + "ab" * 32))
    state.close()


def test_deliveries_go_with_their_blobs(state: State) -> None:
    """One that is recorded again is the same; of a blob without a record nothing is kept beyond the next start."""
    state.put_blobs([(blob(), ""), (blob(D2), "")], [(D1, "http://a/"), (D1, "http://b/"), (D2, "http://a/")])
    state.put_blobs([(blob(), "")], [(D1, "http://a/")])
    assert sorted(state.delivered()) == [(D1, "http://a/"), (D1, "http://b/"), (D2, "http://a/")]
    state.drop_blob(D2)
    assert sorted(state.delivered()) == [(D1, "http://a/"), (D1, "http://b/")]
    put(state, blob(D2))
    assert (D2, "http://a/") not in state.delivered()
    state.drop_model("http://a/", "none", [D1])
    assert state.delivered() == []


def test_a_delivery_is_recorded_with_its_blob_or_not_at_all(state: State) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        state.put_blobs([(msgspec.structs.replace(blob(), size=None), "")], [(D1, "http://a/")])  # type: ignore[arg-type]
    put(state, blob())
    assert state.delivered() == []
