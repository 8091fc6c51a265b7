"""Where a process can be killed: named points in ingest, ledger and commit, and in what is resident where, set by
wrapping what runs there."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from weightd.storage import blobs, ingests, ledger, snapshots, tmpfs
from weightd.storage.blobs import BlobIngest, DirectoryBlobStore
from weightd.storage.ingests import FileIngest, IngestDirectory
from weightd.storage.ledger import Ledger
from weightd.storage.places import Place
from weightd.storage.segments import PosixSegment
from weightd.storage.snapshots import ModelDirectories
from weightd.storage.state import State
from weightd.storage.tmpfs_store import TmpfsStore

POINTS: dict[str, tuple[object, str]] = {
    "ingest.allocate": (FileIngest, "allocate"),
    "ingest.write": (FileIngest, "write"),
    "ingest.record": (FileIngest, "record"),
    "ingest.resume": (FileIngest, "resume"),
    "ledger.create": (Ledger, "create"),
    "ledger.append": (Ledger, "append"),
    "ledger.durable": (ledger.os, "fdatasync"),
    "ledger.named": (ingests, "fsync_directory"),
    "commit": (BlobIngest, "commit"),
    "commit.finish": (FileIngest, "finish"),
    "commit.promise": (FileIngest, "promise"),
    "commit.rename": (FileIngest, "rename"),
    "commit.durable": (blobs, "fsync_directory"),
    "commit.discard": (FileIngest, "abort"),
    "segment.seal": (PosixSegment, "seal"),
    "state.blob": (State, "put_blobs"),
    "state.model": (State, "put_model"),
    "model.links": (ModelDirectories, "publish"),
}
"""Of a fetch. By name: who has the function that is wrapped, and what it is called."""
RESIDENCY: dict[str, tuple[object, str]] = {
    "segment.create": (PosixSegment, "create"),
    "segment.prepare": (PosixSegment, "prepare"),
    "segment.unmap": (PosixSegment, "_unmap"),
    "segment.mode": (tmpfs.os, "fchmod"),
    "segment.retire": (PosixSegment, "retire"),
    "segment.unlink": (Place, "unlink"),
    "segment.adopt": (TmpfsStore, "adopt"),
    "segment.leftovers": (TmpfsStore, "drop_leftovers"),
    "state.open": (State, "open"),
    "state.segments": (State, "put_segments"),
    "state.no_segments": (State, "drop_segments"),
    "state.pin": (State, "set_pin"),
    "state.no_model": (State, "drop_model"),
    "state.no_blob": (State, "drop_blob"),
    "state.verified": (State, "set_verified"),
    "state.uses": (State, "put_uses"),
    "model.link": (snapshots, "_point"),
    "model.current": (ModelDirectories, "switch"),
    "model.remove": (ModelDirectories, "remove"),
    "model.others": (ModelDirectories, "drop_others"),
    "model.leftovers": (ModelDirectories, "drop_leftovers"),
    "blob.delete": (DirectoryBlobStore, "delete"),
    "blob.salvage": (DirectoryBlobStore, "salvage"),
    "ingest.leftovers": (IngestDirectory, "drop_leftovers"),
}
"""Of everything else that changes what is held, and where."""
ALL = POINTS | RESIDENCY
WHEN = ("before", "after")


def die() -> None:
    """As a kernel does it to a process: no cleanup, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def arm(point: str, number: int, when: str, action: Callable[[], None] = die) -> None:
    """`action` at the `number`-th time, from 1, that the process is before or after what `point` names."""
    owner, name = ALL[point]
    original: Any = getattr(owner, name)
    lock, calls = threading.Lock(), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with lock:
            calls[0] += 1
            now = calls[0] == number
        if now and when == "before":
            action()
        result = original(*args, **kwargs)
        if now and when == "after":
            action()
        return result

    # A bound classmethod takes no class again.
    setattr(owner, name, staticmethod(wrapped) if hasattr(original, "__self__") else wrapped)


def count() -> Counter[str]:
    """How often the process was at each point, from now on."""
    found: Counter[str] = Counter()
    for point, (owner, name) in ALL.items():
        original: Any = getattr(owner, name)

        def counted(*args: Any, point: str = point, original: Any = original, **kwargs: Any) -> Any:
            found[point] += 1
            return original(*args, **kwargs)

        setattr(owner, name, staticmethod(counted) if hasattr(original, "__self__") else counted)
    return found


def tear(number: int) -> None:
    """The `number`-th append to a ledger reaches the disk by half, and the process dies."""
    original, calls = ledger._append, [0]

    def half(path: Any, data: bytes, flags: int = 0) -> None:
        calls[0] += 1
        if calls[0] == number:
            original(path, data[: len(data) // 2 + 3], flags)
            die()
        original(path, data, flags)

    ledger._append = half
