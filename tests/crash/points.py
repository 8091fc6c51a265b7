"""Where a process can be killed: named points in ingest, ledger and commit, set by wrapping what runs there."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from weightd.storage import blobs, ingests, ledger
from weightd.storage.blobs import BlobIngest
from weightd.storage.ingests import FileIngest
from weightd.storage.ledger import Ledger
from weightd.storage.segments import PosixSegment
from weightd.storage.snapshots import ModelDirectories
from weightd.storage.state import State

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
"""By name: who has the function that is wrapped, and what it is called."""
WHEN = ("before", "after")


def die() -> None:
    """As a kernel does it to a process: no cleanup, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def arm(point: str, number: int, when: str, action: Callable[[], None] = die) -> None:
    """`action` at the `number`-th time, from 1, that the process is before or after what `point` names."""
    owner, name = POINTS[point]
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
