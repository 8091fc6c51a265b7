"""An origin of one tenant that sends nothing keeps nobody else waiting."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.engine.rig import PART, SECONDS, Served, pattern, sha256
from tests.engine.tenants import MAIN, A, B, Origins, sharing
from weightd.core.errors import WeightdError
from weightd.engine.api import Tier

SECRET, OTHER = pattern(6 * PART + 5, "secret"), pattern(6 * PART + 5, "other")
D = sha256(SECRET)
SLOW = [f"http://a/slow{i}/" for i in range(4)]


@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize("who", ["b", "host"])
async def test_sources_of_one_tenant_that_send_nothing_keep_no_other_waiting(
    tmp_path: Path, who: str, tier: Tier
) -> None:
    """A's workers take all places there are for transfers, and more; neither another's worker nor a prefetch waits."""
    ref = {"b": B, "host": MAIN}[who]
    origin = Origins({r: {f"f{i}": Served(pattern(PART, r))} for i, r in enumerate([*SLOW, ref])})
    origin.hold(lambda path, offset: path != f"f{len(SLOW)}")
    async with sharing(tmp_path, origin) as s:
        slow = [asyncio.create_task(s.a.acquire(r)) for r in SLOW]
        assert await asyncio.to_thread(origin.reached.wait, SECONDS)
        seen = {"b": s.b, "host": s.host}[who]
        if tier is Tier.SHM:
            (await seen.acquire(ref)).release()
        else:
            await seen.fetch(ref, tier=tier)
        assert not any(t.done() for t in slow)
        origin.release()
        await asyncio.gather(*slow)


async def test_a_claim_by_a_source_that_sends_nothing_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    """Of what the host fetches, and no tenant sees."""
    origin = Origins({A: {"slow": Served(OTHER, D, size=len(SECRET))}, MAIN: {"w": Served(SECRET, D)}})
    origin.hold(lambda path, offset: path == "slow")
    async with sharing(tmp_path, origin) as s:
        slow = asyncio.create_task(s.a.acquire(A))
        assert await asyncio.to_thread(origin.reached.wait, SECONDS)
        (await s.host.acquire(MAIN)).release()
        assert not slow.done()
        origin.release()
        with pytest.raises(WeightdError):
            await slow
