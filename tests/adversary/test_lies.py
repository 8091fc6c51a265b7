"""Every lie, told once and always, of a part and at the probe: the right bytes, or the typed error said here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adversary import lies
from tests.adversary.origin import Asked, Liar, Lie, Version, honest
from tests.adversary.world import HTTP, IMPATIENT, PART, World, always, export, nothing_left, once, recorded, world
from tests.engine.rig import pattern, sha256
from weightd.core.errors import (
    Corruption,
    DigestMismatch,
    SizeMismatch,
    SourceChanged,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    WeightdError,
)
from weightd.engine.api import Tier
from weightd.sources.connection import HttpOptions

PARTS = 6
DATA = pattern((PARTS - 1) * PART + 4097)
DIGEST = sha256(DATA)
FETCH = 1 + PARTS
"""Requests of one fetch: what there is, then its parts."""
MOST = FETCH + 3 * 3 * 12
"""Three receivers try three times each, and follow ten redirects."""


def each(*groups: list[Lie]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("lie", [lie for group in groups for lie in group], ids=repr)


def patience(lie: Lie) -> HttpOptions:
    return IMPATIENT if lie in lies.SILENT or lie in lies.ENDLESS else HTTP


def tier_of(lie: Lie) -> Tier:
    """Both tiers get their share."""
    return Tier.SHM if len(lie.name) % 2 else Tier.NVME


async def right_after_all(w: World, tier: Tier, kept: set[int]) -> None:
    """The origin becomes honest: the right bytes, and only what could not be proven is asked for."""
    w.liar.script = honest
    since = len(w.liar.log)
    assert await w.fetch(tier=tier) == DATA
    assert w.liar.parts(PART, since) == set(range(PARTS)) - kept
    assert await w.check(blobs=1, tier=tier) == set()


@each(lies.TRUE_IN_OTHER_WORDS)
async def test_what_is_odd_and_right(tmp_path: Path, lie: Lie) -> None:
    async with world(tmp_path, DATA) as w:
        w.liar.script = always(lie)
        assert await w.fetch() == DATA
        assert len(w.liar.log) == FETCH
        await w.check(blobs=1)


@each(lies.PASSING, lies.SILENT, lies.ENDLESS)
async def test_told_once_another_attempt_mends_it(tmp_path: Path, lie: Lie) -> None:
    tier = tier_of(lie)
    async with world(tmp_path, DATA, http=patience(lie)) as w:
        w.liar.script = once(lie, part=2)
        assert await w.fetch(tier=tier) == DATA
        assert [a.probe for a, _ in w.liar.log].count(True) == 1, "nothing was begun anew"
        assert len(w.liar.log) <= FETCH + 3
        await w.check(blobs=1, tier=tier)


@each(lies.CHANGED)
async def test_told_once_that_it_changed_it_is_asked_anew(tmp_path: Path, lie: Lie) -> None:
    tier = tier_of(lie)
    async with world(tmp_path, DATA) as w:
        w.liar.script = once(lie, part=2)
        assert await w.fetch(tier=tier) == DATA
        assert [a.probe for a, _ in w.liar.log].count(True) == 2
        assert len(w.liar.log) <= 2 * FETCH + 3
        await w.check(blobs=1, tier=tier)


FINAL = [
    *[(lie, SizeMismatch) for lie in lies.TOO_LONG],
    *[(lie, SourceDenied) for lie in lies.REFUSED],
    *[(lie, SourceNotFound) for lie in lies.GONE],
]


@pytest.mark.parametrize(("lie", "error"), FINAL, ids=repr)
async def test_told_once_it_is_final_and_costs_no_other_part(
    tmp_path: Path, lie: Lie, error: type[WeightdError]
) -> None:
    async with world(tmp_path, DATA, receivers=1) as w:
        w.liar.script = once(lie, part=4)
        assert type(await w.fetch(tier=tier_of(lie))) is error
        assert len(w.liar.log) == 1 + 4 + 1
        kept = await w.check()
        assert kept == {0, 1, 2, 3}
        await right_after_all(w, tier_of(lie), kept)


ALWAYS = [
    *[(lie, SourceUnavailable) for lie in (*lies.PASSING, *lies.SILENT, *lies.ENDLESS)],
    *[(lie, SourceChanged) for lie in lies.CHANGED],
    *FINAL,
]


@pytest.mark.parametrize(("lie", "error"), ALWAYS[::3], ids=repr)
async def test_told_of_every_part(tmp_path: Path, lie: Lie, error: type[WeightdError]) -> None:
    tier = tier_of(lie)
    async with world(tmp_path, DATA, http=patience(lie)) as w:
        w.liar.script = always(lie)
        assert type(await w.fetch(tier=tier)) is error, w.errors
        assert len(w.liar.log) <= MOST
        await right_after_all(w, tier, await w.check(tier=tier))


@pytest.mark.parametrize(("lie", "error"), ALWAYS, ids=repr)
async def test_told_from_the_middle_on(tmp_path: Path, lie: Lie, error: type[WeightdError]) -> None:
    """What came before stays, unless the source is said to be another."""

    def script(asked: Asked) -> Lie | None:
        return None if asked.probe or (asked.first or 0) < 3 * PART else lie

    async with world(tmp_path, DATA, http=patience(lie), receivers=1, attempts=2) as w:
        w.liar.script = script
        assert type(await w.fetch()) is error, w.errors
        kept = await w.check()
        assert kept == (set() if error is SourceChanged else {0, 1, 2})
        await right_after_all(w, Tier.SHM, kept)


@each(lies.TRUE_IN_OTHER_WORDS, lies.PASSING, lies.SILENT, lies.ENDLESS, lies.TOO_LONG, lies.CHANGED, lies.WRONG)
async def test_told_at_the_probe(tmp_path: Path, lie: Lie) -> None:
    """Where the answers that follow are honest, it may do no harm; else it is an error. Never other bytes, but those
    of where it was sent."""
    async with world(tmp_path, DATA, http=patience(lie)) as w:
        w.liar.script = always(lie, probes=True, parts=False)
        got = await w.fetch()
        sent = "another object" in lie.name and got == w.liar.other.data
        assert got == DATA or sent or isinstance(got, WeightdError)
        assert len(w.liar.log) <= 2 * FETCH + 12
        kept = await w.check(blobs=int(isinstance(got, bytes)))
        if isinstance(got, WeightdError):
            await right_after_all(w, Tier.SHM, kept)


@each(lies.WRONG)
async def test_wrong_bytes_told_once_are_found_and_replaced(tmp_path: Path, lie: Lie) -> None:
    tier = tier_of(lie)
    async with world(tmp_path, DATA) as w:
        w.liar.script = once(lie, part=2)
        assert await w.fetch(DIGEST, tier) == DATA
        assert len(w.liar.log) <= 2 * FETCH
        await w.check(blobs=1, tier=tier)


@each(lies.WRONG)
async def test_wrong_bytes_told_always_are_never_seen(tmp_path: Path, lie: Lie) -> None:
    async with world(tmp_path, DATA) as w:
        w.liar.script = always(lie)
        assert type(await w.fetch(DIGEST, tier_of(lie))) is DigestMismatch
        assert len(w.liar.log) <= 2 * FETCH
        assert await w.check() == set()
        await right_after_all(w, Tier.SHM, set())


@each(lies.WRONG)
async def test_wrong_bytes_every_other_time(tmp_path: Path, lie: Lie) -> None:
    """Of two that differ, nobody knows which is right until the whole is."""
    async with world(tmp_path, DATA) as w:
        w.liar.script = lambda asked: lie if asked.number % 2 else None
        got = await w.fetch(DIGEST)
        assert got == DATA or type(got) is DigestMismatch
        assert len(w.liar.log) <= 2 * FETCH
        await w.check(blobs=int(got == DATA))
        w.liar.script = honest
        assert await w.fetch(DIGEST) == DATA


WITHOUT_RANGES = [
    lie
    for lie in (*lies.PASSING, *lies.SILENT, *lies.ENDLESS)
    if "range" not in lie.name.lower() and "206" not in lie.name and "200" not in lie.name
]


@each(WITHOUT_RANGES)
async def test_a_stream(tmp_path: Path, lie: Lie) -> None:
    """Without ranges every attempt begins anew, and what is here is not taken from another version."""
    stream = Version(DATA, '"v1"', ranges=False)
    async with world(tmp_path, stream, http=patience(lie)) as w:
        w.liar.script = lambda asked: lie if asked.number in (1, 2) else None
        got = await w.fetch()
        assert got == DATA or isinstance(got, WeightdError)
        assert len(w.liar.log) <= 30
        await w.check(blobs=int(got == DATA))
        w.liar.script = honest
        assert await w.fetch() == DATA


@each(lies.PASSING[::5], lies.TOO_LONG[:1], lies.CHANGED[:2], lies.SILENT[2:3])
async def test_without_a_daemon(tmp_path: Path, lie: Lie) -> None:
    """Into a directory: told once, the file; told always, an error, and nothing but what can be resumed."""
    with nothing_left(), Liar(DATA) as liar:
        out = tmp_path / "out"
        liar.script = always(lie)
        error = await export(liar, out, http=patience(lie))
        assert isinstance(error, WeightdError)
        kept, since = recorded(tmp_path), len(liar.log)
        assert visible(tmp_path) == ([out] if kept else [])
        assert kept == set() or not isinstance(error, Corruption)
        liar.script = honest
        assert not isinstance(await export(liar, out), WeightdError)
        assert liar.parts(PART, since) == set(range(PARTS)) - kept
        assert visible(tmp_path) == [out, out / "model.bin"]
        assert (out / "model.bin").read_bytes() == DATA


def visible(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if ".weightd-" not in str(p))
