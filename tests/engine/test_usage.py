"""How often refs are used is known for as long as it is of use, and not lost by a disk that is full for a moment."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.engine.rig import PART, one, pattern, running
from tests.support.serving import until
from weightd.core.errors import DiskFull
from weightd.core.refs import parse_ref
from weightd.engine.usage import FORGOTTEN_S, Usage
from weightd.engine.workers import Workers
from weightd.storage.state import State

USED = [parse_ref(f"http://origin/{'x' * 200}/{i}/") for i in range(200)]


async def test_what_could_not_be_recorded_is_recorded_later(tmp_path: Path) -> None:
    state, workers = State(tmp_path / "state.db"), Workers()
    await workers.write(state.open)
    try:
        (pages,) = await workers.write(lambda: state._open.execute("PRAGMA page_count").fetchone())
        await workers.write(lambda: state._open.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        usage = Usage(state, workers.write)
        for ref in USED:
            usage.touch(ref)
        with pytest.raises(DiskFull):
            await usage.save()
        usage.touch(USED[0])
        await workers.write(lambda: state._open.execute("PRAGMA max_page_count = 100000").fetchone())
        await usage.save()
        later = Usage(state, workers.write)
        await later.start()
        assert [later.of(ref) for ref in USED] == [usage.of(ref) for ref in USED]
    finally:
        await workers.close(state.close)


async def test_what_is_not_held_and_was_used_long_ago_is_forgotten(tmp_path: Path) -> None:
    state, workers = State(tmp_path / "state.db"), Workers()
    await workers.write(state.open)
    try:
        now, (old, held, new) = time.time(), USED[:3]
        long_ago = now - FORGOTTEN_S - 60
        uses = {old.text: (2.0, long_ago), held.text: (2.0, long_ago), new.text: (2.0, now)}
        await workers.write(state.put_uses, uses)
        usage = Usage(state, workers.write)
        await usage.start()
        await usage.forget({held.text})
        later = Usage(state, workers.write)
        await later.start()
        for one in (usage, later):
            assert [one.of(ref).weight for ref in (old, held, new)] == [0.0, 2.0, 2.0]
    finally:
        await workers.close(state.close)


async def test_what_cannot_be_recorded_is_told_once_and_recorded_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("weightd.engine.engine.SAVE_S", 0.01)
    tries = 0

    def full(state: State, uses: object) -> None:
        nonlocal tries
        tries += 1
        raise DiskFull("no space left")

    def recorded() -> int:
        with closing(sqlite3.connect(tmp_path / "state.db")) as db:
            return int(db.execute("SELECT COUNT(*) FROM uses").fetchone()[0])

    async with running(tmp_path, one(pattern(PART))) as rig:
        (await rig.acquire()).release()
        tending = asyncio.create_task(rig.engine.tend())
        with monkeypatch.context() as patched:
            patched.setattr(State, "put_uses", full)
            await until(lambda: tries > 3)
        assert caplog.text.count("how often models are used cannot be recorded: no space left") == 1
        await until(recorded)
        tending.cancel()
        await asyncio.wait([tending])
