"""One thread of a transfer crashes, by a bug or for want of memory: all end, nothing stays claimed, nothing proven is
lost."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.crash.test_kill import ALL, DATA, provable
from tests.engine.rig import PART, Origin, one, running, sha256
from weightd.core.parts import plan_parts
from weightd.engine import jobs, receiver
from weightd.engine.api import Tier
from weightd.engine.export import fetch_to
from weightd.engine.transfer import TransferOptions
from weightd.storage.ingests import FileIngest
from weightd.storage.ledger import Ledger

CRASHES = (RuntimeError("a bug"), MemoryError("no memory"))
CRASH = pytest.mark.parametrize("crash", CRASHES, ids=lambda e: type(e).__name__)
OPTIONS = TransferOptions(PART, receivers=2)


class Once:
    """Calls through, but for the `number`-th call, from 1, which raises."""

    def __init__(self, original: Callable[..., Any], number: int, crash: BaseException) -> None:
        self.original, self.number, self.crash = original, number, crash
        self.thread = ""
        self._calls = 0
        self._lock = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            self._calls += 1
            now = self._calls == self.number
        if now:
            self.thread = threading.current_thread().name
            raise self.crash
        return self.original(*args, **kwargs)


class Sha:
    """hashlib's, with an `update` that may crash."""

    def __init__(self, number: int, crash: BaseException) -> None:
        self._sha = hashlib.sha256()
        self.update = Once(self._sha.update, number, crash)
        self.digest = self._sha.digest


def arm(monkeypatch: pytest.MonkeyPatch, where: str, number: int, crash: BaseException) -> Once:
    """Crash in the thread of that name."""
    if where == "hash":
        sha = Sha(number, crash)
        made = iter([sha])  # of the first file; what else hashes uses hashlib itself
        monkeypatch.setattr(jobs, "hashlib", SimpleNamespace(sha256=lambda: next(made, None) or hashlib.sha256()))
        return sha.update
    owner, name = {
        "receive": (receiver.xxhash, "xxh3_128_digest"),
        "write": (FileIngest, "write"),
        "record": (FileIngest, "record"),
        "ledger": (Ledger, "append"),
    }[where]
    once = Once(getattr(owner, name), number, crash)
    method = owner is FileIngest or owner is Ledger
    monkeypatch.setattr(owner, name, (lambda *a, **k: once(*a, **k)) if method else once)
    return once


def paced(monkeypatch: pytest.MonkeyPatch, origin: Origin, once: Once) -> None:
    """At most four parts are asked for that no record was begun for: so that there are several records. The last part
    comes after the crash, so that nothing is complete before."""
    changed, asked, noted = threading.Condition(), [0], [0]
    last = (len(DATA) - 1) // PART * PART
    record = FileIngest.record

    def counted(ingest: FileIngest, parts: Mapping[int, bytes]) -> None:
        with changed:
            noted[0] += len(parts)
            changed.notify_all()
        record(ingest, parts)

    def wait(path: str, offset: int, length: int) -> None:
        with changed:
            asked[0] += 1
            assert changed.wait_for(lambda: noted[0] >= asked[0] - 4, 30), "nothing is recorded"
            while offset == last and not once.thread:
                changed.wait(0.05)

    monkeypatch.setattr(FileIngest, "record", counted)
    monkeypatch.setattr(origin, "on_start", wait)


PLACES = [
    ("receive", 1),
    ("receive", 6),
    ("hash", 1),
    ("hash", 4),
    ("write", 1),
    ("write", 5),
    ("record", 1),
    ("record", 2),
    ("ledger", 2),
]
THREADS = {
    "receive": "weightd-receive",
    "hash": "weightd-hash",
    "write": "weightd-write",
    "record": "weightd-record",
    "ledger": "weightd-record",
}


@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize(("where", "number"), PLACES)
@CRASH
async def test_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: Exception, where: str, number: int, tier: Tier
) -> None:
    origin = one(DATA)
    async with running(tmp_path, origin, receivers=2) as rig:
        with monkeypatch.context() as patched:
            once = arm(patched, where, number, crash)
            paced(patched, origin, once)
            with pytest.raises(type(crash), match=str(crash)):
                await rig.fetch(tier=tier)
        assert once.thread.startswith(THREADS[where])
        await rig.check_idle(blobs=0, segments=0, kept=1)
        proven = provable(tmp_path)
        origin.starts.clear()
        assert rig.content(await rig.fetch(tier=tier)) == {"model.bin": DATA}
        assert rig.blobs.path(sha256(DATA)).read_bytes() == DATA
        assert {offset // PART for _, offset, _ in origin.starts} == ALL - proven
        await rig.check_idle(blobs=1, segments=int(tier is Tier.SHM))


@pytest.mark.parametrize(("where", "number"), PLACES)
@CRASH
async def test_of_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: Exception, where: str, number: int
) -> None:
    origin = one(DATA)
    with monkeypatch.context() as patched:
        once = arm(patched, where, number, crash)
        paced(patched, origin, once)
        with pytest.raises(type(crash), match=str(crash)):
            await fetch_to("http://origin/model/", tmp_path / "out", sources=origin, options=OPTIONS)
    assert once.thread.startswith(THREADS[where])
    assert origin.readers == set()
    await fetch_to("http://origin/model/", tmp_path / "out", sources=origin, options=OPTIONS)
    assert (tmp_path / "out/model.bin").read_bytes() == DATA
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.bin"]


async def test_of_a_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From NVMe: the blob is none the worse for it, and the origin is not asked."""
    origin = one(DATA)
    async with running(tmp_path, origin, receivers=2) as rig:
        await rig.fetch(tier=Tier.NVME)
        origin.starts.clear()
        for number in range(1, len(plan_parts(len(DATA), PART)) + 1):
            with monkeypatch.context() as patched:
                arm(patched, "receive", number, RuntimeError("a bug"))
                with pytest.raises(RuntimeError, match="a bug"):
                    await rig.acquire()
            await rig.check_idle(blobs=1, segments=0)
        assert rig.content((await rig.acquire()).model) == {"model.bin": DATA}
        assert not origin.starts
        await rig.check_idle(blobs=1, segments=1)
