"""What survives a restart beside the blobs: SQLite in WAL mode, used from one thread.

Data is on disk before this says so: the engine records a blob after its commit.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from weightd.core.digest import Digest
from weightd.core.errors import ConfigError, DiskFull
from weightd.core.manifest import Manifest
from weightd.core.verification import Verification

SCHEMA_VERSION = 1
_SCHEMA = """
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


class BlobRecord(msgspec.Struct, frozen=True):
    """A committed blob. `checksums` are the xxh3-128 of its parts of `part_size` bytes, 16 bytes each, in order."""

    digest: Digest
    size: int
    verification: Verification
    part_size: int
    checksums: bytes


class ModelRecord(msgspec.Struct, frozen=True):
    """A snapshot whose blobs were all committed. `digests` by file path."""

    manifest: Manifest
    digests: dict[str, Digest]
    last_used: float = 0.0


class State:
    """Call every method from one and the same thread, `open` first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None

    def open(self) -> None:
        """Raises ConfigError for a file that is no state of this version."""
        # Made private first: SQLite gives its WAL the mode of the database. Refs may hold credentials.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        try:
            db = sqlite3.connect(self._path, isolation_level=None)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA_VERSION):
                raise ConfigError(
                    f"{self._path} has schema {version}", remedy="Use the version of weightd that made it."
                )
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except sqlite3.DatabaseError as e:
            raise ConfigError(
                f"{self._path} cannot be read: {e}",
                remedy="Move it away and start again: blobs whose records are lost are fetched again.",
            ) from None
        self._db = db

    def close(self) -> None:
        """Idempotent."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @property
    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            raise AssertionError("state is not open")
        return self._db

    def blobs(self) -> list[BlobRecord]:
        rows = self._open.execute("SELECT digest, size, verification, part_size, checksums FROM blobs")
        return [BlobRecord(Digest(d), s, Verification(v), p, c) for d, s, v, p, c in rows]

    def put_blob(self, blob: BlobRecord, source_key: str = "") -> None:
        """Record a blob and, where its source names a version, that this version has these bytes."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?)",
                (blob.digest, blob.size, int(blob.verification), blob.part_size, blob.checksums),
            )
            if source_key:
                db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", (source_key, blob.digest))

    def drop_blob(self, digest: Digest) -> None:
        self._open.execute("DELETE FROM blobs WHERE digest = ?", (digest,))

    def seen(self) -> dict[str, Digest]:
        return {k: Digest(d) for k, d in self._open.execute("SELECT source_key, digest FROM seen")}

    def models(self) -> list[ModelRecord]:
        """The current snapshot of each ref."""
        rows = self._open.execute("SELECT model, last_used FROM models WHERE current = 1")
        return [msgspec.structs.replace(msgspec.json.decode(m, type=ModelRecord), last_used=used) for m, used in rows]

    def put_model(self, model: ModelRecord) -> None:
        """Make this the current snapshot of its ref."""
        key = (model.manifest.ref, model.manifest.revision)
        with self._transaction() as db:
            db.execute("UPDATE models SET current = 0 WHERE ref = ?", key[:1])
            db.execute(
                "INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, 1)",
                (*key, msgspec.json.encode(model), model.last_used),
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing. Raises DiskFull when the database cannot grow."""
        db = self._open
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except sqlite3.Error as e:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if e.sqlite_errorcode not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                raise
            raise DiskFull(
                f"{self._path} cannot be written: {e}", remedy="Free space below the state directory."
            ) from None
