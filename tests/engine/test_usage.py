"""How often refs are used is known for as long as it is of use, and not lost by a disk that is full for a moment."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

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
