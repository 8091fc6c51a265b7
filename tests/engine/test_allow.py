"""A ref that is not allowed is refused before its origin is asked, and where it is held already."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.rig import PART, Origin, Served, pattern, running, sha256
from weightd.core.allow import AllowList
from weightd.core.errors import RefNotAllowed
from weightd.engine.api import CopyState, FileCheck, Tier

GOOD, BAD = "http://origin/good/", "http://origin/bad/"
ONLY_GOOD = AllowList([GOOD], ["tiny"])


def origin() -> Origin:
    return Origin({ref: {"a": Served(pattern(PART, ref))} for ref in (GOOD, BAD, "tiny")})


async def test_what_is_not_allowed_is_not_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path, origin(), allow=ONLY_GOOD) as rig:
        for call in (rig.engine.resolve, rig.fetch, rig.acquire):
            with pytest.raises(RefNotAllowed) as e:
                await call(BAD)
            assert e.value.ref == BAD
        assert (rig.origin.resolved, rig.origin.starts, rig.engine.models()) == (0, {}, [])
        await rig.fetch(GOOD)
        await rig.fetch("tiny")
        (await rig.acquire(GOOD)).release()


async def test_what_is_held_may_cease_to_be_allowed(tmp_path: Path) -> None:
    async with running(tmp_path, origin()) as rig:
        await rig.fetch(BAD)
    async with running(tmp_path, origin(), allow=ONLY_GOOD) as rig:
        for call in (rig.fetch, rig.acquire):
            with pytest.raises(RefNotAllowed):
                await call(BAD)
        # Whoever runs the host still sees it, and may have it verified.
        assert [m.ref for m in rig.engine.models()] == [BAD]
        assert rig.engine.model(BAD).leases == 0
        path = rig.blobs.path(sha256(pattern(PART, BAD)))
        path.chmod(0o640)
        path.write_bytes(bytes(PART))
        checks = [c async for c in rig.engine.verify(BAD) if isinstance(c, FileCheck)]
        assert [c.nvme for c in checks] == [CopyState.LOST]
        assert "not allowed" in checks[0].detail
        assert (rig.origin.resolved, rig.origin.starts) == (0, {})


async def test_a_resident_one_is_no_exception(tmp_path: Path) -> None:
    async with running(tmp_path, origin()) as rig:
        await rig.fetch(BAD, Tier.SHM)
        rig.engine._options = type(rig.engine._options)(rig.root, 0, 0, allow=ONLY_GOOD)
        with pytest.raises(RefNotAllowed):
            await rig.acquire(BAD)
