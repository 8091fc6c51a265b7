"""Bytes are for those whose own source delivered them: a digest, which anybody can write down, gives no right."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.engine.rig import PART, SECONDS, Origin, Served, pattern, running, sha256
from tests.engine.tenants import MAIN, SHARED, A, B, Origins, sharing, tenants
from weightd.core.crc import Crc, CrcAlgorithm
from weightd.core.digest import Digest
from weightd.core.errors import (
    Corruption,
    DigestMismatch,
    ModelNotFound,
    RefNotAllowed,
    SizeMismatch,
    SourceUnavailable,
    WeightdError,
)
from weightd.core.tenants import Tenants
from weightd.engine.api import Tier

SECRET, OTHER = pattern(6 * PART + 5, "secret"), pattern(6 * PART + 5, "other")
D = sha256(SECRET)


def honest(*refs: str, data: bytes = SECRET) -> Origins:
    """Each of them serves the same bytes."""
    return Origins({ref: {"w": Served(data, sha256(data))} for ref in refs})


def lying(**claim: object) -> Origins:
    """B's origin claims that it has A's bytes, and has others."""
    return Origins({A: {"w": Served(SECRET, D)}, B: {"w": Served(OTHER, **claim)}})  # type: ignore[arg-type]


@pytest.mark.parametrize("tier", list(Tier))
async def test_a_source_that_claims_a_digest_has_to_deliver_it(tmp_path: Path, tier: Tier) -> None:
    origin = lying(digest=D)
    async with sharing(tmp_path, origin) as s:
        await s.a.fetch(A, tier=tier)
        for call in (s.b.acquire(B), s.b.fetch(B, tier=Tier.NVME), s.b.fetch(B, tier=Tier.SHM), s.host.fetch(B)):
            with pytest.raises(DigestMismatch):
                await call
        assert s.asked(B) > 0
        with pytest.raises(ModelNotFound):
            s.b.api.model(B)
        await s.rig.check_idle(blobs=1, segments=tier is Tier.SHM)


async def test_who_says_the_digest_itself_has_no_more_right(tmp_path: Path) -> None:
    async with sharing(tmp_path, lying()) as s:
        await s.a.fetch(A)
        with pytest.raises(DigestMismatch):
            await s.b.fetch(B, sha256=D)
        assert s.b.api.models() == []


@pytest.mark.parametrize("size", [len(SECRET) - PART, len(SECRET) + 1, 0])
async def test_a_claim_of_another_size_tells_nothing(tmp_path: Path, size: int) -> None:
    """What it ends with is the same whether the digest is here or not."""
    told: list[list[tuple[type[WeightdError], str]]] = []
    for first in (True, False):
        async with sharing(tmp_path / str(first), lying(digest=D, size=size), attempts=1) as s:
            if first:
                await s.a.fetch(A)
            errors = []
            for _ in range(2):
                with pytest.raises(WeightdError) as e:
                    await s.b.fetch(B)
                errors.append((e.type, str(e.value)))
            told.append(errors)
    assert told[0] == told[1]


async def test_the_host_still_learns_at_once_that_a_size_is_wrong(tmp_path: Path) -> None:
    """As before there were tenants: nobody else sees either ref."""
    origin = Origin({A: {"w": Served(SECRET, D)}, B: {"w": Served(OTHER, D, size=5)}})
    async with running(tmp_path, origin) as rig:
        await rig.fetch(A)
        with pytest.raises(SizeMismatch):
            await rig.fetch(B)


async def test_a_source_that_delivers_shares_the_one_copy(tmp_path: Path) -> None:
    origin = honest(A, B)
    async with sharing(tmp_path, origin) as s:
        first, second = await s.a.acquire(A), await s.b.acquire(B)
        assert s.asked(B) > 0
        assert first.model.files[0].segment == second.model.files[0].segment
        await s.rig.check_idle(blobs=1, segments=1)
        before = dict(origin.asked)
        (await s.b.acquire(B)).release()
        assert origin.asked == before


async def test_a_ref_that_both_may_see_is_fetched_once(tmp_path: Path) -> None:
    origin = honest(SHARED, A)
    async with sharing(tmp_path, origin) as s:
        await s.a.fetch(SHARED)
        (await s.b.acquire(SHARED)).release()
        # Whoever may see A's own ref may see the shared one.
        await s.a.fetch(A)
        assert s.asked(A) == 0
        await s.rig.check_idle(blobs=1, segments=1)


async def test_bytes_of_one_tenant_are_no_hit_for_a_ref_that_both_see(tmp_path: Path) -> None:
    async with sharing(tmp_path, honest(SHARED, A, B)) as s:
        await s.a.fetch(A)
        await s.a.fetch(SHARED)
        assert s.asked(SHARED) > 0
        await s.b.fetch(B)
        assert s.asked(B) == 0


async def test_two_sources_together_are_enough(tmp_path: Path) -> None:
    """Each who sees the shared ref sees one of these."""
    async with sharing(tmp_path, honest(SHARED, A, B)) as s:
        await s.a.fetch(A)
        await s.b.fetch(B)
        await s.a.fetch(SHARED)
        assert s.asked(SHARED) == 0


async def test_what_nobody_else_sees_is_a_hit_as_before(tmp_path: Path) -> None:
    async with sharing(tmp_path, honest(A, MAIN)) as s:
        await s.a.fetch(A)
        await s.host.fetch(MAIN)
        assert s.asked(MAIN) == 0


async def test_what_the_host_brought_is_no_hit_for_a_tenant(tmp_path: Path) -> None:
    async with sharing(tmp_path, honest(A, MAIN)) as s:
        await s.host.fetch(MAIN)
        await s.a.fetch(A)
        assert s.asked(A) > 0


async def test_it_is_remembered_who_delivered(tmp_path: Path) -> None:
    origin = honest(A, B)
    async with sharing(tmp_path, origin) as s:
        await s.a.fetch(A)
        await s.b.fetch(B)
    asked = dict(origin.asked)
    async with sharing(tmp_path, origin) as s:
        (await s.b.acquire(B)).release()
        await s.b.fetch(B)
    assert origin.asked == asked


async def test_what_a_ref_named_is_no_right_once_it_is_removed(tmp_path: Path) -> None:
    """It was A's, is removed, and becomes B's; A still holds the bytes by another, which needed no delivery."""
    origin = Origins({A: {"w": Served(SECRET, D)}, MAIN: {"w": Served(SECRET, D)}, B: {"w": Served(OTHER, D)}})
    before = {"a": ["http://a/", "http://main/"], "b": ["http://b/"]}
    async with sharing(tmp_path, origin, tenants(before)) as s:
        await s.a.fetch(MAIN)
        await s.a.fetch(A)
        await s.host.api.remove(MAIN)
        (await s.a.acquire(A)).release()
        assert s.asked(A) == 0
    after = {"a": ["http://a/"], "b": ["http://b/", "http://main/"]}
    async with sharing(tmp_path, origin, tenants(after)) as s:
        with pytest.raises(DigestMismatch):
            await s.b.acquire(B)
        assert s.readers(s.blob(D)) == {61_101}
        (await s.a.acquire(A)).release()
        await s.a.fetch(A)
        assert s.asked(A) == 0


@pytest.mark.parametrize("honestly", [True, False])
async def test_at_the_same_time_neither_waits_for_the_other(tmp_path: Path, honestly: bool) -> None:
    """To wait for what another brings is a hit as well."""
    origin = honest(A, B) if honestly else lying(digest=D)
    origin.hold()
    async with sharing(tmp_path, origin) as s:
        calls = [asyncio.create_task(s.a.acquire(A)), asyncio.create_task(s.b.acquire(B))]
        async with asyncio.timeout(SECONDS):
            while not (s.asked(A) and s.asked(B)):  # noqa: ASYNC110 - nothing to await
                await asyncio.sleep(0.005)
        origin.release()
        first, second = await asyncio.gather(*calls, return_exceptions=True)
        assert not isinstance(first, BaseException)
        assert first.model.files[0].digest == D
        if honestly:
            assert not isinstance(second, BaseException)
            assert second.model.files[0].segment == first.model.files[0].segment
        else:
            assert isinstance(second, DigestMismatch)
        await s.rig.check_idle(blobs=1, segments=1)


async def test_at_the_same_time_who_may_wait_does(tmp_path: Path) -> None:
    origin = honest(SHARED, A)
    origin.hold()
    async with sharing(tmp_path, origin) as s:
        first = asyncio.create_task(s.b.acquire(SHARED))
        await asyncio.to_thread(origin.reached.wait, SECONDS)
        second = asyncio.create_task(s.a.acquire(A))
        async with asyncio.timeout(SECONDS):
            while origin.resolved < 2:  # noqa: ASYNC110 - nothing to await
                await asyncio.sleep(0.005)
        origin.release()
        await asyncio.gather(first, second)
        assert s.asked(A) == 0
        await s.rig.check_idle(blobs=1, segments=1)


async def interrupted(s: object, tenant: object, ref: str, origin: Origins, data: bytes = SECRET) -> None:
    """After some parts were recorded."""
    last = (len(data) // PART) * PART

    def down(path: str, offset: int, length: int) -> None:
        if offset >= last:
            raise SourceUnavailable("down")

    origin.on_start = down
    with pytest.raises(SourceUnavailable):
        await tenant.fetch(ref)  # type: ignore[attr-defined]
    origin.on_start = lambda path, offset, length: None
    origin.starts.clear()


async def test_what_an_interrupted_fetch_left_is_no_hit_either(tmp_path: Path) -> None:
    """All but the last part of A's bytes are here, under the digest that B's source claims."""
    origin = lying(digest=D)
    async with sharing(tmp_path, origin, attempts=1) as s:
        await interrupted(s, s.a, A, origin)
        assert len(s.rig.blobs.kept()) == 1
        with pytest.raises(DigestMismatch):
            await s.b.fetch(B)
        assert {offset for _, offset, _ in origin.starts} >= set(range(0, len(SECRET), PART))
        # Who left it goes on with it.
        origin.starts.clear()
        await s.a.fetch(A)
        assert len(origin.starts) < len(SECRET) // PART
        await s.rig.check_idle(blobs=1, segments=1)


@pytest.mark.parametrize("named", [{}, {"crc": Crc(CrcAlgorithm.CRC32C, 1)}, {"git_id": "0" * 40}])
async def test_names_of_versions_give_no_more_than_digests(tmp_path: Path, named: dict[str, object]) -> None:
    """B's source says of another file what A's says: an ETag, which here is the SHA-256, a CRC, a git id."""
    origin = Origins({A: {"w": Served(SECRET, etag=D)}, B: {"w": Served(OTHER, etag=D, **named)}})  # type: ignore[arg-type]
    async with sharing(tmp_path, origin) as s:
        await s.a.fetch(A)
        if named:
            with pytest.raises(Corruption):
                await s.b.fetch(B)
        else:
            assert (await s.b.fetch(B)).files[0].digest == sha256(OTHER)


async def test_two_files_of_one_liar(tmp_path: Path) -> None:
    """One that it does deliver, beside one that it does not."""
    origin = Origins({A: {"w": Served(SECRET, D)}, B: {"o": Served(OTHER, sha256(OTHER)), "w": Served(OTHER, D)}})
    async with sharing(tmp_path, origin) as s:
        await s.a.fetch(A)
        with pytest.raises(DigestMismatch):
            await s.b.acquire(B)
        assert s.b.api.models() == []


async def moved(root: Path, before: dict[str, list[str]], after: dict[str, list[str]], origin: Origins) -> Digest:
    """MAIN was a hit of what A's source delivered while no tenant saw it; then B may see it."""
    async with sharing(root, origin, tenants(before)) as s:
        await s.host.fetch(A)
        model = await s.host.fetch(MAIN)
        assert s.asked(MAIN) == 0
        return model.files[0].digest


AFTER = {"a": ["http://a/"], "b": ["http://main/"]}


@pytest.mark.parametrize("before", [{"a": ["http://a/"]}, {}])
async def test_after_a_change_of_lists_what_is_held_has_to_be_delivered(
    tmp_path: Path, before: dict[str, list[str]]
) -> None:
    origin = honest(A, MAIN)
    digest = await moved(tmp_path, before, AFTER, origin)
    async with sharing(tmp_path, origin, tenants(AFTER)) as s:
        # The host needs nobody's right, and no origin.
        (await s.host.acquire(MAIN)).release()
        assert s.asked(MAIN) == 0
        assert s.readers(s.blob(digest)) == {61_101}
        origin.models[MAIN]["w"].data = OTHER
        with pytest.raises(WeightdError):
            await s.b.acquire(MAIN)
        assert s.asked(MAIN) > 0
        assert s.readers(s.blob(digest)) == {61_101}
        assert not list(s.tree("b").glob("models/*/*/*"))
        origin.models[MAIN]["w"].data = SECRET
        lease = await s.b.acquire(MAIN)
        assert (Path(lease.model.directory) / "w").read_bytes() == SECRET
        assert (Path(lease.model.directory).parent / "current/w").read_bytes() == SECRET
        assert s.readers(s.blob(digest)) == {61_101, 61_102}
        await s.rig.check_idle(blobs=1, segments=1)


async def test_a_load_by_a_tenant_is_no_way_around(tmp_path: Path) -> None:
    origin = honest(A, MAIN)
    await moved(tmp_path, {}, AFTER, origin)
    async with sharing(tmp_path, origin, tenants(AFTER)) as s:
        await s.b.load(MAIN)
        assert s.asked(MAIN) > 0


async def test_a_regained_lease_is_no_way_around(tmp_path: Path) -> None:
    origin = honest(A, MAIN)
    await moved(tmp_path, {}, AFTER, origin)
    async with sharing(tmp_path, origin, tenants(AFTER)) as s:
        revision = s.b.api.model(MAIN).revision
        lease = await s.b.acquire(MAIN, revision)
        assert lease.model.revision == revision
        assert s.asked(MAIN) > 0


async def test_a_tenant_that_may_see_no_more_sees_no_more(tmp_path: Path) -> None:
    origin = honest(A)
    async with sharing(tmp_path, origin) as s:
        digest = (await s.a.fetch(A)).files[0].digest
        assert s.readers(s.blob(digest)) == {61_101}
        assert [p.name for p in (s.tree("a") / "models").iterdir()]
    async with sharing(tmp_path, origin, tenants({"a": ["http://shared/"], "b": ["http://b/"]})) as s:
        with pytest.raises(RefNotAllowed):
            await s.a.acquire(A)
        assert s.a.api.models() == []
        assert s.readers(s.blob(digest)) == set()
        assert not list((s.tree("a") / "models").iterdir())
        assert not list((s.tree("a") / "blobs").iterdir())


async def test_damaged_bytes_are_repaired_for_who_had_a_right_to_them(tmp_path: Path) -> None:
    origin = honest(A, B)
    async with sharing(tmp_path, origin, tenants(operate="a")) as s:
        await s.a.fetch(A, tier=Tier.NVME)
        await s.b.fetch(B, tier=Tier.NVME)
        damage(s.blob(D))
        origin.starts.clear()
        checks = await s.a.verify(A)
        assert [c.detail for c in checks] == ["was damaged"]
        assert len(origin.starts) == 1
        assert s.readers(s.blob(D)) == {61_101, 61_102}
        asked = s.asked(B)
        (await s.b.acquire(B)).release()
        assert s.asked(B) == asked
        assert [p.read_bytes() for p in (s.tree("b") / "blobs").iterdir()] == [SECRET]


async def test_what_is_put_aside_is_found_by_no_other_name(tmp_path: Path) -> None:
    """Else its room would be kept, and what is about to be mended shown."""
    origin = honest(A)
    async with sharing(tmp_path, origin, tenants(operate="a")) as s:
        await s.a.fetch(A, tier=Tier.NVME)
        (name,) = (s.tree("a") / "blobs").iterdir()
        damage(s.blob(D))
        origin.models[A]["w"].data = OTHER
        assert [c.detail for c in await s.a.verify(A)] == ["could not be repaired"]
        assert not name.exists()
        origin.models[A]["w"].data = SECRET
        (await s.a.acquire(A)).release()
        assert name.samefile(s.blob(D))
        await s.a.api.remove(A)
        assert not name.exists()
        await s.rig.check_idle(blobs=0, segments=0)


async def test_a_blob_that_is_written_anew_from_memory_is_read_as_before(tmp_path: Path) -> None:
    origin = honest(A)
    async with sharing(tmp_path, origin, tenants(operate="a")) as s:
        await s.a.fetch(A, tier=Tier.SHM)
        damage(s.blob(D))
        asked = s.asked(A)
        assert [c.detail for c in await s.a.verify(A)] == ["was damaged"]
        assert s.asked(A) == asked
        assert s.readers(s.blob(D)) == {61_101}
        (name,) = (s.tree("a") / "blobs").iterdir()
        assert name.samefile(s.blob(D))


def damage(path: Path) -> None:
    """Its first part."""
    path.chmod(0o640)
    with path.open("r+b") as file:
        file.write(bytes(PART))
    path.chmod(0o440)


async def test_who_went_on_with_what_another_sent_did_not_deliver_it(tmp_path: Path) -> None:
    """Nor who mended some parts of it: else another list would make it a right to the rest."""
    origin = honest(A, MAIN)
    async with sharing(tmp_path, origin) as s:
        await s.a.fetch(A, tier=Tier.NVME)
        await s.host.fetch(MAIN, tier=Tier.NVME)
        damage(s.blob(D))
        origin.starts.clear()
        await s.host.load(MAIN)
        assert s.asked(MAIN) > 0
        assert len(origin.starts) == 1
    asked = s.asked(MAIN)
    async with sharing(tmp_path, origin, tenants(AFTER)) as s:
        assert s.readers(s.blob(D)) == {61_101}
        (await s.b.acquire(MAIN)).release()
        assert s.asked(MAIN) > asked
        assert s.readers(s.blob(D)) == {61_101, 61_102}


async def test_a_file_that_comes_back_mended_is_read_by_who_may_now(tmp_path: Path) -> None:
    origin = honest(A, MAIN)
    async with sharing(tmp_path, origin) as s:
        await s.a.fetch(A, tier=Tier.NVME)
        damage(s.blob(D))
        origin.on_start = lambda path, offset, length: down()
        with pytest.raises(SourceUnavailable):
            await s.a.acquire(A)
        origin.on_start = lambda path, offset, length: None
    async with sharing(tmp_path, origin, Tenants()) as s:
        origin.starts.clear()
        await s.host.fetch(MAIN)
        assert len(origin.starts) == 1
        assert s.readers(s.blob(D)) == set()


def down() -> None:
    raise SourceUnavailable("down")
