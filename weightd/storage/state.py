"""What survives a restart beside the blobs: SQLite in WAL mode, used from one thread.

Data is on disk before this says so: the engine records a blob after its commit.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from weightd.core.digest import Digest
from weightd.core.errors import AccessDenied, AlreadyRunning, ConfigError, DiskFull, PathInTheWay
from weightd.storage.direct import disk_errors
from weightd.storage.state_records import BlobRecord, ModelRecord, SegmentRecord

__all__ = ["BlobRecord", "ModelRecord", "SegmentRecord", "State"]

_STEPS = (
    """
CREATE TABLE IF NOT EXISTS blobs (
  digest TEXT PRIMARY KEY, size INTEGER NOT NULL, verification INTEGER NOT NULL,
  part_size INTEGER NOT NULL, checksums BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (source_key TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS models (
  ref TEXT NOT NULL, revision TEXT NOT NULL, model BLOB NOT NULL, last_used REAL NOT NULL, current INTEGER NOT NULL,
  PRIMARY KEY (ref, revision)
) WITHOUT ROWID
""",
    "ALTER TABLE blobs ADD COLUMN last_verified REAL NOT NULL DEFAULT 0",
    "ALTER TABLE models ADD COLUMN turn INTEGER NOT NULL DEFAULT 0",
    """
CREATE TABLE segments (
  digest TEXT PRIMARY KEY, name TEXT NOT NULL, device INTEGER NOT NULL, inode INTEGER NOT NULL, boot TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE pins (ref TEXT PRIMARY KEY, since REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE uses (ref TEXT PRIMARY KEY, weight REAL NOT NULL, at REAL NOT NULL) WITHOUT ROWID
""",
    # Before there were tenants, each snapshot that was held counts as delivered by the source of its ref.
    """
CREATE TABLE delivered (digest TEXT NOT NULL, ref TEXT NOT NULL, PRIMARY KEY (digest, ref)) WITHOUT ROWID;
INSERT OR IGNORE INTO delivered
  SELECT file.value, models.ref FROM models, json_each(CAST(models.model AS TEXT), '$.digests') AS file
  WHERE json_valid(CAST(models.model AS TEXT))
""",
)
"""Each makes the next schema out of the one before. What was released is not changed any more: add a step."""
SCHEMA_VERSION = len(_STEPS)


class State:
    """Call every method from one and the same thread, `open` first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None

    def open(self) -> None:
        """Brings an older schema up to this one, all or nothing. Raises ConfigError for a file that is no state, or
        that of a later version, DiskFull, PathInTheWay, AlreadyRunning."""
        self._make_private()
        with self._errors():
            self._db = sqlite3.connect(self._path, isolation_level=None)
        try:
            with self._errors():
                self._prepare(self._db)
        except BaseException:
            self.close()
            raise

    def _make_private(self) -> None:
        """SQLite gives its WAL the mode of the database. Refs may hold credentials."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with disk_errors(self._path.parent):
                os.close(os.open(self._path, flags, 0o600))
        except OSError as e:
            if e.errno not in (errno.ELOOP, errno.EISDIR):
                raise
            raise PathInTheWay(f"{self._path} is not a regular file", remedy="Move it away and start again.") from None

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode = WAL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if not 0 <= version <= SCHEMA_VERSION:
            raise ConfigError(
                f"{self._path} has schema {version}, and this version of weightd knows those up to {SCHEMA_VERSION}",
                remedy="Use the version of weightd that made it, or a later one.",
            )
        if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise self._damaged(found)
        if version < SCHEMA_VERSION:
            self._migrate(version)

    def _migrate(self, version: int) -> None:
        """Not by executescript, which commits first: after a crash the old schema is there, whole."""
        with self._transaction() as db:
            for step in _STEPS[version:]:
                for statement in step.split(";"):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _damaged(self, reason: object) -> ConfigError:
        return ConfigError(
            f"{self._path} is damaged: {reason}",
            remedy="Move it away and start again: blobs whose records are lost are fetched again.",
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translates what SQLite says, by its primary result code (sqlite.org/rescode.html)."""
        try:
            yield
        except msgspec.DecodeError as e:
            raise self._damaged(e) from None
        except sqlite3.Error as e:
            code = getattr(e, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                raise DiskFull(
                    f"{self._path} cannot be written: {e}", remedy="Free space below the state directory."
                ) from None
            if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
                raise AccessDenied(
                    f"{self._path} may not be written: {e}", remedy="Make it writable for weightd's user."
                ) from None
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._damaged(e) from None
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise AlreadyRunning(
                    f"another process uses {self._path}", remedy="Stop it, or use another state directory."
                ) from None
            raise

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
        """In no order. What stands in a row that nobody could have recorded raises ConfigError."""
        names = BlobRecord.__struct_fields__
        with self._errors():
            rows = self._open.execute(f"SELECT {', '.join(names)} FROM blobs")
            return [msgspec.convert(dict(zip(names, row, strict=True)), BlobRecord) for row in rows]

    def put_blobs(self, blobs: Iterable[tuple[BlobRecord, str]], delivered: Iterable[tuple[Digest, str]] = ()) -> None:
        """Record several blobs, each with its source key, as that version of a source has these bytes, or "": all of
        them or none, for the price of one on the disk.
        `delivered`: which digests came from the sources of which refs."""
        with self._transaction() as db:
            db.executemany("INSERT OR IGNORE INTO delivered VALUES (?, ?)", list(delivered))
            for blob, source_key in blobs:
                db.execute(
                    "INSERT OR REPLACE INTO blobs (digest, size, verification, part_size, checksums, last_verified)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        *(blob.digest, blob.size, blob.verification.value, blob.part_size, blob.checksums),
                        blob.last_verified,
                    ),
                )
                if source_key:
                    db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", (source_key, blob.digest))

    def set_verified(self, digest: Digest, when: float) -> None:
        """All of a recorded blob was compared with its digest at `when`, in Unix seconds."""
        with self._transaction() as db:
            db.execute("UPDATE blobs SET last_verified = ? WHERE digest = ?", (when, digest))

    def drop_blob(self, digest: Digest) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM blobs WHERE digest = ?", (digest,))

    def delivered(self) -> list[tuple[Digest, str]]:
        """For the text of which refs the bytes of which digests came from their sources, of blobs that are recorded;
        what is known of others is forgotten."""
        with self._transaction() as db:
            db.execute("DELETE FROM delivered WHERE digest NOT IN (SELECT digest FROM blobs)")
            return [(Digest(d), ref) for d, ref in db.execute("SELECT digest, ref FROM delivered")]

    def seen(self) -> dict[str, Digest]:
        with self._errors():
            return {k: Digest(d) for k, d in self._open.execute("SELECT source_key, digest FROM seen")}

    def models(self) -> list[ModelRecord]:
        """Every snapshot, in the order in which they last became the current one of their ref."""
        with self._errors():
            rows = self._open.execute(
                "SELECT model, last_used, current FROM models ORDER BY turn, last_used, ref, revision"
            ).fetchall()
            decoded = [(msgspec.json.decode(row[0], type=ModelRecord), *row[1:]) for row in rows]
        return [msgspec.structs.replace(m, last_used=used, current=bool(now)) for m, used, now in decoded]

    def put_model(self, model: ModelRecord) -> None:
        """Make this the current snapshot of its ref."""
        key = (model.ref, model.manifest.revision)
        with self._transaction() as db:
            db.execute("UPDATE models SET current = 0 WHERE ref = ?", key[:1])
            db.execute(
                "INSERT OR REPLACE INTO models (ref, revision, model, last_used, current, turn)"
                " VALUES (?, ?, ?, ?, 1, (SELECT COALESCE(MAX(turn), 0) + 1 FROM models))",
                (*key, msgspec.json.encode(model), model.last_used),
            )

    def drop_model(
        self,
        ref: str,
        revision: str,
        digests: Iterable[Digest],
        left: Iterable[Digest] = (),
        heirs: Iterable[tuple[Digest, str]] = (),
    ) -> None:
        """A snapshot that is not kept, and blobs with it: all of them or nothing. Of those of `left` it is forgotten
        that the source of `ref` sent them; `heirs` count as who did, as in `put_blobs`."""
        with self._transaction() as db:
            db.execute("DELETE FROM models WHERE ref = ? AND revision = ?", (ref, revision))
            db.executemany("DELETE FROM delivered WHERE digest = ? AND ref = ?", [(d, ref) for d in left])
            db.executemany("INSERT OR IGNORE INTO delivered VALUES (?, ?)", list(heirs))
            for digest in digests:
                db.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
                db.execute("DELETE FROM seen WHERE digest = ?", (digest,))
                db.execute("DELETE FROM delivered WHERE digest = ?", (digest,))

    def segments(self) -> list[SegmentRecord]:
        """What of this or an earlier boot may still be there; whether it is, the segment store tells."""
        names = SegmentRecord.__struct_fields__
        with self._errors():
            rows = self._open.execute(f"SELECT {', '.join(names)} FROM segments")
            found = [msgspec.convert(dict(zip(names, row, strict=True)), SegmentRecord) for row in rows]
        return [msgspec.structs.replace(s, device=_unsigned(s.device), inode=_unsigned(s.inode)) for s in found]

    def put_segments(self, segments: Iterable[SegmentRecord]) -> None:
        """One of each digest. A power failure may take the record, as it takes the segment: nothing else does."""
        with self._transaction(outlives_power=False) as db:
            for s in segments:
                row = (s.digest, s.name, _signed(s.device), _signed(s.inode), s.boot)
                db.execute("INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?)", row)

    def drop_segments(self, digests: Iterable[Digest]) -> None:
        with self._transaction(outlives_power=False) as db:
            db.executemany("DELETE FROM segments WHERE digest = ?", [(digest,) for digest in digests])

    def pins(self) -> dict[str, float]:
        """Since when each ref is pinned, in Unix seconds. They stay when its snapshots go."""
        with self._errors():
            return msgspec.convert(dict(self._open.execute("SELECT ref, since FROM pins")), dict[str, float])

    def set_pin(self, ref: str, since: float | None) -> None:
        """None: no longer pinned."""
        with self._transaction() as db:
            if since is None:
                db.execute("DELETE FROM pins WHERE ref = ?", (ref,))
            else:
                db.execute("INSERT OR REPLACE INTO pins VALUES (?, ?)", (ref, since))

    def uses(self) -> dict[str, tuple[float, float]]:
        """How much each ref is used: a weight, and the Unix time at which it was that."""
        with self._errors():
            rows = self._open.execute("SELECT ref, weight, at FROM uses")
            return msgspec.convert({ref: use for ref, *use in rows}, dict[str, tuple[float, float]])

    def put_uses(self, uses: Mapping[str, tuple[float, float]]) -> None:
        """A power failure may take the last of them."""
        with self._transaction(outlives_power=False) as db:
            rows = [(ref, weight, at) for ref, (weight, at) in uses.items()]
            db.executemany("INSERT OR REPLACE INTO uses VALUES (?, ?, ?)", rows)

    def drop_uses(self, refs: Iterable[str]) -> None:
        with self._transaction(outlives_power=False) as db:
            db.executemany("DELETE FROM uses WHERE ref = ?", [(ref,) for ref in refs])

    @contextmanager
    def _transaction(self, *, outlives_power: bool = True) -> Iterator[sqlite3.Connection]:
        """All or nothing. Raises DiskFull when the database cannot grow. One that need not outlive a power failure is
        not synced; the next that must syncs it as well."""
        db = self._open
        with self._errors():
            try:
                db.execute(f"PRAGMA synchronous = {'FULL' if outlives_power else 'NORMAL'}")
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            finally:
                # After an error, SQLite's or the caller's. SQLite itself rolls back after some.
                if db.in_transaction:
                    db.execute("ROLLBACK")


def _signed(number: int) -> int:
    """What SQLite can hold of an unsigned number of 64 bits, as the kernel's are."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _unsigned(number: int) -> int:
    return number % (1 << 64)
