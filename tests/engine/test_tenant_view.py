"""What a tenant is shown, and told: its own, and of anybody else nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.engine.rig import MIB, PART, SECONDS, Served, pattern, sha256
from tests.engine.tenants import MAIN, SHARED, A, B, Origins, Shared, sharing, tenants
from weightd.core import errors as e
from weightd.core.errors import (
    AccessDenied,
    BudgetExceeded,
    ModelBusy,
    ModelLeased,
    ModelNotFound,
    ModelPinned,
    RefNotAllowed,
    RefSyntax,
    SourceNotFound,
)
from weightd.engine.api import EventKind, Holder, ModelState, Tier
from weightd.engine.tenant_errors import told


def origin() -> Origins:
    """Each ref has a file of its own, and one that all have."""
    both = pattern(3 * PART, "both")
    own = {ref: pattern(4 * PART, ref) for ref in (A, B, SHARED, MAIN)}
    return Origins({r: {"own": Served(d, sha256(d)), "both": Served(both, sha256(both))} for r, d in own.items()})


@pytest.fixture
async def all_held(tmp_path: Path) -> AsyncIterator[Shared]:
    async with sharing(tmp_path, origin(), tenants(operate="b")) as s:
        for ref in (A, B, SHARED, MAIN):
            await s.host.fetch(ref)
        yield s


async def test_each_sees_its_own(all_held: Shared) -> None:
    s = all_held
    assert [m.ref for m in s.a.api.models()] == [A, SHARED]
    assert [m.ref for m in s.b.api.models()] == [B, SHARED]
    assert [m.ref for m in s.host.api.models()] == [A, B, MAIN, SHARED]
    for model in s.a.api.models():
        assert Path(model.directory).is_relative_to(s.tree("a"))
        assert (Path(model.directory) / "own").read_bytes() == pattern(4 * PART, model.ref)
        assert model == s.a.api.model(model.ref, model.revision)


async def calls_of(s: Shared, ref: str) -> list[object]:
    """Everything that A's socket can be asked of one ref."""
    api = s.a.api
    return [
        lambda: api.resolve(ref),
        lambda: s.a.fetch(ref),
        lambda: s.a.fetch(ref, sha256=sha256(b"x")),
        lambda: s.a.load(ref),
        lambda: s.a.acquire(ref),
        lambda: s.a.acquire(ref, "0123456789abcdef"),
        lambda: asyncio.to_thread(api.model, ref),
        lambda: asyncio.to_thread(api.model, ref, "0123456789abcdef"),
        lambda: asyncio.to_thread(api.leases, ref),
        lambda: api.pin(ref),
        lambda: api.unpin(ref),
        lambda: api.evict(ref),
        lambda: api.remove(ref),
        lambda: s.a.verify(ref),
    ]


async def test_what_it_may_not_see_is_refused_alike_whether_it_is_held(tmp_path: Path) -> None:
    told: dict[bool, list[tuple[type, str]]] = {}
    for held in (True, False):
        async with sharing(tmp_path / str(held), origin(), tenants(operate="a")) as s:
            if held:
                (await s.b.acquire(B)).release()
                await s.host.api.pin(B)
            found = []
            for call in await calls_of(s, B):
                with pytest.raises(RefNotAllowed) as error:
                    await call()  # type: ignore[operator]
                found.append((error.type, str(error.value)))
            told[held] = found
            assert s.rig.origin.resolved == held
    assert told[True] == told[False]
    assert len(set(told[True])) == 1


async def test_what_is_no_ref_is_none_for_a_tenant(all_held: Shared) -> None:
    with pytest.raises(RefSyntax):
        await all_held.a.fetch("ftp://x/y")
    for call in (all_held.a.api.model, all_held.a.api.leases):
        with pytest.raises(ModelNotFound) as error:
            call("http://a/model/other")
        assert error.value.ref == "http://a/model/other"
    with pytest.raises(SourceNotFound):
        await all_held.a.fetch("http://a/nothing/")


async def test_who_may_not_operate(all_held: Shared) -> None:
    """Whatever it asks for: its own, another's, or what there is not."""
    s, found = all_held, set()
    for ref in (A, B, "http://nowhere/"):
        api = s.a.api
        for call in (api.pin(ref), api.unpin(ref), api.evict(ref), api.remove(ref), s.a.verify(ref)):
            with pytest.raises(AccessDenied) as error:
                await call
            found.add((error.type, str(error.value)))
    assert len(found) == 1
    assert next(iter(found))[0] is AccessDenied


async def test_who_may_operate_does_so_on_its_own(all_held: Shared) -> None:
    s = all_held
    assert (await s.b.api.pin(B)).pinned
    with pytest.raises(ModelPinned):
        await s.b.api.evict(B)
    await s.b.api.unpin(B)
    assert (await s.b.api.evict(B)).shm > 0
    assert {c.ref for c in await s.b.verify()} == {B, SHARED}
    await s.b.api.remove(B)
    assert [m.ref for m in s.b.api.models()] == [SHARED]
    assert [m.ref for m in s.host.api.models()] == [A, MAIN, SHARED]
    assert not list((s.tree("b") / "models").glob("*b-model*"))
    # What only that had is gone from every place; what others have stays for them.
    (left,) = {p.name for p in (s.tree("b") / "blobs").iterdir()} - {_hex(pattern(3 * PART, "both"))}
    assert left == _hex(pattern(4 * PART, SHARED))


def _hex(data: bytes) -> str:
    return sha256(data).removeprefix("sha256:")


async def test_leases_of_others_are_not_its_own(all_held: Shared) -> None:
    """Also on a model that both may see."""
    s = all_held
    other = await s.b.acquire(SHARED)
    host = await s.host.acquire(SHARED)
    assert s.a.api.leases() == s.a.api.leases(SHARED) == []
    assert s.a.api.model(SHARED).leases == 0
    mine = await s.a.acquire(SHARED)
    assert [lease.holder.tenant for lease in s.a.api.leases(SHARED)] == ["a"]
    assert s.a.api.model(SHARED).leases == 1
    assert s.host.api.model(SHARED).leases == len(s.host.api.leases()) == 3
    with pytest.raises(ModelLeased) as error:
        await s.b.api.evict(SHARED)
    assert error.value.message == "workers hold leases on it"
    for lease in (other, host, mine):
        lease.release()
    assert s.host.api.leases() == []


async def test_no_one_says_itself_whose_lease_it_is(all_held: Shared) -> None:
    async with aclosing(all_held.a.api.acquire(A, holder=Holder(pid=7, tenant="b"))) as steps:
        (lease,) = [step async for step in steps]
    assert [(x.holder.pid, x.holder.tenant) for x in all_held.a.api.leases()] == [(7, "a")]
    assert all_held.b.api.leases() == []
    lease.release()  # type: ignore[union-attr]


async def test_events_of_others_are_not_told(tmp_path: Path) -> None:
    async with sharing(tmp_path, origin()) as s:
        heard: list[tuple[EventKind, str, str]] = []

        async def listen() -> None:
            async with aclosing(s.a.api.watch()) as events:
                async for event in events:
                    assert (event.tenants, event.holder) == (frozenset(), None)
                    heard.append((event.kind, event.ref, event.detail))
                    if event.kind is EventKind.EVICTED:
                        return

        task = asyncio.create_task(listen())
        await asyncio.sleep(0)
        (await s.b.acquire(B)).release()
        (await s.b.acquire(SHARED)).release()
        (await s.a.acquire(SHARED)).release()
        with pytest.raises(SourceNotFound):
            await s.b.fetch("http://b/nothing/")
        await s.host.api.evict(B)
        await s.host.api.evict(SHARED)
        await asyncio.wait_for(task, SECONDS)
    kinds = (EventKind.FETCH_STARTED, EventKind.FETCH_FINISHED, EventKind.ACQUIRED, EventKind.RELEASED)
    assert heard == [(kind, SHARED, "") for kind in (*kinds, EventKind.EVICTED)]


async def test_status_counts_its_own(all_held: Shared) -> None:
    s = all_held
    lease, other = await s.a.acquire(A), await s.b.acquire(B)
    host, mine = await s.host.api.status(), await s.a.api.status()
    size = 4 * PART + 4 * PART + 3 * PART
    assert (mine.models, mine.leases, host.models, host.leases) == (2, 1, 4, 2)
    assert (mine.shm.resident, mine.nvme.resident) == (size, size)
    assert mine.shm.leased == 7 * PART
    assert host.shm.resident == 4 * 4 * PART + 3 * PART
    assert (mine.shm.budget, mine.shm.total) == (host.shm.budget, host.shm.total)
    assert (mine.shm.reserved, mine.shm.draining, mine.nvme.kept, mine.quotas) == (0, 0, 0, ())
    assert mine.counters == type(mine.counters)()
    for it in (lease, other):
        it.release()


async def test_transfers_of_others_are_not_shown(tmp_path: Path) -> None:
    source = origin()
    source.hold()
    async with sharing(tmp_path, source) as s:
        task = asyncio.create_task(s.b.acquire(B))
        await asyncio.to_thread(source.reached.wait, SECONDS)
        mine, others = await s.a.api.status(), await s.b.api.status()
        assert (mine.transfers, mine.under_way) == (0, ())
        assert [t.ref for t in others.under_way] == [B]
        assert [lease.waiting for lease in s.b.api.leases()] == [True]
        assert s.a.api.leases() == []
        source.release()
        (await task).release()


async def test_who_fills_the_host_is_not_told(tmp_path: Path) -> None:
    """The error, and why a fetch failed, name no model and no process of another tenant."""
    data = {ref: pattern(5 * MIB, ref) for ref in (A, B)}
    source = Origins({ref: {"w": Served(d, sha256(d))} for ref, d in data.items()})
    async with sharing(tmp_path, source, shm=8 * MIB) as s:
        async with aclosing(s.b.api.acquire(B, holder=Holder(pid=4711, command="secret-job"))) as steps:
            (lease,) = [step async for step in steps if not hasattr(step, "phase")]
        with pytest.raises(BudgetExceeded) as error:
            await s.a.acquire(A)
        text = str(error.value)
        assert error.value.ref == A
        assert error.value.remedy
        assert not any(word in text for word in (B, "4711", "secret", "5.0 MiB"))
        with pytest.raises(BudgetExceeded, match="secret-job"):
            await s.host.acquire(A)
        lease.release()  # type: ignore[union-attr]
        (await s.a.acquire(A)).release()


@pytest.mark.parametrize("kind", sorted(e.all_errors().values(), key=lambda k: k.__name__))
def test_every_error_is_told_with_its_class_and_what_to_do(kind: type[e.WeightdError]) -> None:
    """What may name others has a text of its own."""
    error = kind("held by http://b/model/, process 4711", ref=A, file="/dev/shm/weightd-x-secret", remedy="Do this.")
    found = told(error).about(ref=A)
    assert type(found) is kind
    assert (found.ref, bool(found.remedy)) == (A, True)
    if kind is ModelNotFound:
        assert (found.file, found.remedy) == ("", told(ModelNotFound("", remedy="Did you mean 'b-secret'?")).remedy)
        return
    own = issubclass(kind, e.InvalidArgument | e.NotFound | e.SourceChanged | e.Unavailable | e.Corruption | e.TooSlow)
    own = own or (issubclass(kind, AccessDenied) and kind is not AccessDenied)
    assert ("4711" in str(found)) is own
    assert ("secret" in str(found)) is own


async def test_a_model_that_is_being_filled(tmp_path: Path) -> None:
    source = origin()
    async with sharing(tmp_path, source, tenants(operate="ab")) as s:
        await s.b.fetch(B)
        await s.a.fetch(A, tier=Tier.NVME)
        source.hold()
        async with aclosing(s.b.api.verify(B)) as steps:
            await anext(steps)
            with pytest.raises(ModelBusy) as error:
                await s.b.api.evict(B)
        assert error.value.ref == B
        source.release()


async def test_progress_and_models_come_as_they_are(tmp_path: Path) -> None:
    async with sharing(tmp_path, origin()) as s:
        model = await s.a.fetch(A)
        assert isinstance(model, ModelState)
        assert Path(model.directory).is_relative_to(s.tree("a"))
        assert (await s.a.load(A)).directory == model.directory
        assert {f.path for f in (await s.a.api.resolve(A)).files} == {"own", "both"}
