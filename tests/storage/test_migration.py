"""A database that an earlier version made is brought up to date, whole or not at all; a later one is left alone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from tests.storage.test_state import D1, D2, blob, manifest
from weightd.core.errors import ConfigError
from weightd.storage import state as module
from weightd.storage.state import SCHEMA_VERSION, ModelRecord, SegmentRecord, State

SCHEMA_1 = """
CREATE TABLE IF NOT EXISTS blobs (
  digest TEXT PRIMARY KEY, size INTEGER NOT NULL, verification INTEGER NOT NULL,
  part_size INTEGER NOT NULL, checksums BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (source_key TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS models (
  ref TEXT NOT NULL, revision TEXT NOT NULL, model BLOB NOT NULL, last_used REAL NOT NULL, current INTEGER NOT NULL,
  PRIMARY KEY (ref, revision)
) WITHOUT ROWID;
"""
"""As released with schema 1; not to be changed."""
TABLES = ("blobs", "seen", "models", "segments", "pins", "uses", "delivered")
MODEL = ModelRecord("http://h/m", manifest(), {"f": D1}, 12.5)


def made_by_version_1(path: Path, *, stamped: bool = True) -> None:
    """With two blobs and a model. Not `stamped`: its process died between the tables and their number."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(SCHEMA_1)
    if stamped:
        db.execute("PRAGMA user_version = 1")
    for record in (blob(), blob(D2)):
        values = (record.digest, record.size, record.verification.value, record.part_size, record.checksums)
        db.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?)", values)
    db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", ("source:x", D1))
    db.execute(
        "INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, 1)",
        (MODEL.ref, MODEL.manifest.revision, msgspec.json.encode(MODEL), MODEL.last_used),
    )
    db.close()


def version_of(path: Path) -> int:
    db = sqlite3.connect(path)
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()
    return version


@pytest.mark.parametrize("stamped", [True, False])
def test_schema_1_becomes_the_current_one(tmp_path: Path, stamped: bool) -> None:
    path = tmp_path / "state.db"
    made_by_version_1(path, stamped=stamped)
    state = State(path)
    for _ in range(2):
        state.open()
        assert {b.digest: b for b in state.blobs()} == {D1: blob(), D2: blob(D2)}
        assert state.seen() == {"source:x": D1}
        assert state.models() == [MODEL]
        state.close()
    assert version_of(path) == SCHEMA_VERSION == 5
    state.open()
    assert (state.segments(), state.pins(), state.uses()) == ([], {}, {})
    assert state.delivered() == [(D1, MODEL.ref)]
    state.put_segments([SegmentRecord(D1, "/weightd-a", 1, 2, "boot")])
    state.set_pin(MODEL.ref, 1.5)
    state.set_verified(D1, 7.5)
    state.close()
    state.open()
    assert {b.digest: b.last_verified for b in state.blobs()} == {D1: 7.5, D2: 0.0}
    state.close()


SCHEMA_3 = """
CREATE TABLE blobs (
  digest TEXT PRIMARY KEY, size INTEGER NOT NULL, verification INTEGER NOT NULL,
  part_size INTEGER NOT NULL, checksums BLOB NOT NULL, last_verified REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE seen (source_key TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE models (
  ref TEXT NOT NULL, revision TEXT NOT NULL, model BLOB NOT NULL, last_used REAL NOT NULL, current INTEGER NOT NULL,
  turn INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (ref, revision)
) WITHOUT ROWID;
PRAGMA user_version = 3;
"""
"""As released with schema 3; not to be changed."""


def test_schema_3_becomes_the_current_one(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(SCHEMA_3)
    for turn, ref in enumerate(("http://h/m", "http://other/m")):
        model = msgspec.structs.replace(MODEL, ref=ref)
        values = (ref, MODEL.manifest.revision, msgspec.json.encode(model), MODEL.last_used, 1 - turn)
        db.execute("INSERT INTO models VALUES (?, ?, ?, ?, 1, ?)", values)
    db.execute("INSERT INTO blobs VALUES (?, 5000, ?, 4096, ?, 7.5)", (D1, blob().verification.value, bytes(32)))
    db.close()
    state = State(path)
    for _ in range(2):
        state.open()
        assert [(b.digest, b.last_verified) for b in state.blobs()] == [(D1, 7.5)]
        assert [m.ref for m in state.models()] == ["http://other/m", "http://h/m"]
        state.put_segments([SegmentRecord(D1, "/weightd-a", 1, 2, "boot")])
        state.put_uses({"http://h/m": (1.0, 2.0)})
        state.close()
    assert version_of(path) == SCHEMA_VERSION
    state.open()
    assert (len(state.segments()), state.uses()) == (1, {"http://h/m": (1.0, 2.0)})
    state.close()


def test_each_snapshot_of_schema_4_counts_as_delivered_by_its_ref(tmp_path: Path) -> None:
    """Also an old one, and one of which a row is damaged is left to who reads it."""
    path = tmp_path / "state.db"
    made_by_version_1(path)
    state = State(path)
    state.open()
    state.put_model(msgspec.structs.replace(MODEL, ref="http://other/m", digests={"f": D1, "g": D2, "h": D2}))
    state._open.execute("DROP TABLE delivered")
    state._open.execute("INSERT INTO models SELECT 'http://bad/m', revision, X'7B', 0, 1, 9 FROM models LIMIT 1")
    state._open.execute("PRAGMA user_version = 4")
    state.close()
    state.open()
    assert sorted(state.delivered()) == sorted([(D1, MODEL.ref), (D1, "http://other/m"), (D2, "http://other/m")])
    with pytest.raises(ConfigError, match="damaged"):
        state.models()
    state.close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.db"
    made_by_version_1(path)
    with monkeypatch.context() as m:
        m.setattr(module, "_STEPS", (*module._STEPS, "INSERT INTO nowhere VALUES (1)"))
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            State(path).open()
    assert version_of(path) == 1
    db = sqlite3.connect(path)
    assert "last_verified" not in {row[1] for row in db.execute("PRAGMA table_info(blobs)")}
    db.close()
    state = State(path)
    state.open()
    assert len(state.blobs()) == 2
    state.close()


def test_a_new_database_is_as_a_migrated_one(tmp_path: Path) -> None:
    made_by_version_1(tmp_path / "old.db")
    tables = []
    for name in ("old.db", "new.db"):
        state = State(tmp_path / name)
        state.open()
        tables.append([list(state._open.execute(f"PRAGMA table_info({t})")) for t in TABLES])
        state.close()
    assert tables[0] == tables[1]
    assert all(tables[0])


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 99, -1])
def test_what_a_later_version_made_is_refused_and_left_alone(tmp_path: Path, version: int) -> None:
    path = tmp_path / "state.db"
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    with pytest.raises(ConfigError, match=f"has schema {version}, and .* up to {SCHEMA_VERSION}") as e:
        State(path).open()
    assert "or a later one" in e.value.remedy
    assert version_of(path) == version
