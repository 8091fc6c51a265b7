"""Quotas, addresses that end, what only Xet brings, and what is asked how often."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.sources.hub.world import CHOSEN, FILES, WEIGHTS, World
from tests.support.hub import Hub
from tests.support.hub_repos import Repo
from tests.support.origin import Fault
from weightd.core.errors import SourceDenied, SourceUnavailable, SourceUnsupported, WeightdError
from weightd.core.manifest import FileSpec
from weightd.core.refs import parse_ref
from weightd.sources.asker import wait
from weightd.sources.hub import HubSource
from weightd.sources.quota import Limit, Quotas, parse_limit
from weightd.sources.urls import Origin


async def test_a_spent_quota_is_waited_for(world: World, repo: Repo, hub: Hub) -> None:
    """Before the request that would be refused, where the last answer said so; else after it."""
    world.ticks()
    hub.limit("api", 2, window=60)
    assert set(await world.contents()) == set(CHOSEN)
    assert world.waits == []
    assert set(await world.contents()) == set(CHOSEN)
    assert 60 <= sum(world.waits) <= 62
    assert [r.status for r in hub.requests].count(429) <= 1


async def test_of_resolvers(world: World, repo: Repo, hub: Hub) -> None:
    world.ticks()
    hub.limit("resolvers", 3, window=300)
    assert await world.contents() == {name: FILES[name] for name in CHOSEN}
    assert 300 <= sum(world.waits) <= 302
    spent = {s.bucket: s for s in world.sources[-1].quotas()}
    assert spent["resolvers"].requests == hub.resolves == len(CHOSEN) + spent["resolvers"].waits - 1
    assert spent["resolvers"].waits >= 1
    assert (spent["api"].requests, spent["api"].waits) == (2, 0)
    assert spent["resolvers"].origin == hub.endpoint.removeprefix("http://")


async def test_that_never_ends(world: World, repo: Repo, hub: Hub) -> None:
    """The Hub's clock stands still."""
    hub.limit("api", 1, window=300)
    hub.clock = lambda: 0.0
    with pytest.raises(SourceUnavailable, match="the quota of api is spent for 300 s") as e:
        await world.contents()
    assert e.value.retry_after == 300
    assert "With a token the quota is larger" in e.value.remedy
    assert len(world.waits) <= 4


async def test_too_many_without_a_quota(world: World, repo: Repo, hub: Hub) -> None:
    hub.fault("api/models/*", Fault(status=429, headers={"Retry-After": "1"}), times=1)
    assert set(await world.contents()) == set(CHOSEN)
    assert max(world.waits) >= 0.9


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"api";r=0;t=55', Limit("api", 0, 55)),
        ('"resolvers"; r=12; t=1', Limit("resolvers", 12, 1)),
        ("api;r=1;t=2", Limit("api", 1, 2)),
        ("r=0;t=5", None),
        ("", None),
        ('"api";r=-1;t=5', None),
        ('"api";r=0', None),
    ],
)
def test_limits(text: str, found: Limit | None) -> None:
    assert parse_limit({"ratelimit": text}) == found


def test_quotas_begin_anew() -> None:
    now, origin = 0.0, Origin("https", "h", 443)
    quotas = Quotas(lambda: now)
    assert quotas.wait(origin, "/api/x") == 0
    quotas.count(origin, "/api/x", {"ratelimit": '"api";r=0;t=10'})
    assert quotas.wait(origin, "/api/x") == 11
    assert quotas.wait(origin, "/o/n/resolve/main/x") == 0
    now = 12
    assert quotas.wait(origin, "/api/x") == 0
    quotas.count(origin, "/api/resolve-cache/x", {})
    assert [(s.bucket, s.requests, s.left, s.waits) for s in quotas.spent()] == [("api", 1, 0, 1)]


def read_some(source: HubSource, file: FileSpec, pieces: int, threads: int = 4) -> bytes:
    """In `pieces`, by several threads at a time."""
    size = -(-file.size // pieces)
    offsets = list(range(0, file.size, size))
    found: dict[int, bytes] = {}
    errors: list[WeightdError] = []

    def work(mine: list[int]) -> None:
        reader = source.reader(file)
        try:
            for offset in mine:
                data = bytearray(min(size, file.size - offset))
                reader.start(offset, len(data))
                done = 0
                while done < len(data):
                    done += reader.readinto(memoryview(data)[done:])
                reader.finish()
                found[offset] = bytes(data)
        except WeightdError as e:
            errors.append(e)
        finally:
            reader.close()

    running = [threading.Thread(target=work, args=(offsets[i::threads],)) for i in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]
    return b"".join(found[offset] for offset in offsets)


async def weights(world: World) -> FileSpec:
    (file,) = (await world.resolve("hf://org/name/model.safetensors")).files
    return file


async def test_one_resolve_for_all_parts(world: World, repo: Repo, hub: Hub) -> None:
    file = await weights(world)
    assert await asyncio.to_thread(read_some, world.sources[-1], file, 40) == WEIGHTS
    assert hub.resolves == 1
    assert len(hub.cdn.requests) == 40


@pytest.mark.parametrize("style", ["cloudfront", "amz"])
async def test_an_address_that_ends_is_renewed_once(world: World, repo: Repo, hub: Hub, style: str) -> None:
    hub.cdn.style = style
    file = await weights(world)
    source = world.sources[-1]
    assert await asyncio.to_thread(read_some, source, file, 8) == WEIGHTS
    hub.cdn.expire()
    assert await asyncio.to_thread(read_some, source, file, 40) == WEIGHTS
    assert hub.resolves == 2


async def test_addresses_that_are_good_for_few_requests(world: World, repo: Repo, hub: Hub) -> None:
    hub.cdn.uses = 10
    file = await weights(world)
    assert await asyncio.to_thread(read_some, world.sources[-1], file, 40, 1) == WEIGHTS
    assert 4 <= hub.resolves <= 6


async def test_what_is_refused_for_good(world: World, repo: Repo, hub: Hub) -> None:
    hub.cdn.largest = 1000
    with pytest.raises(SourceDenied):
        await world.read(await weights(world))
    assert hub.resolves == 2


@pytest.mark.parametrize("status", [400, 403])
async def test_what_only_xet_brings(
    world: World, repo: Repo, hub: Hub, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("weightd.sources.hub.LARGEST_PLAIN", 100_000)
    repo.commit({"model.safetensors": WEIGHTS}, xet={"model.safetensors": "e" * 64})
    file = await weights(world)
    assert await world.read(file) == WEIGHTS
    hub.cdn.largest, hub.cdn.too_large = 1000, status
    hub.cdn.expire()
    with pytest.raises(SourceUnsupported, match="by Xet only") as e:
        await world.read(await weights(world))
    assert str(status) in e.value.message
    assert "hf download" in e.value.remedy


async def test_a_small_one_that_only_xet_brings(world: World, repo: Repo, hub: Hub) -> None:
    """It is known when its fresh address was refused."""
    repo.commit({"model.safetensors": WEIGHTS}, xet={"model.safetensors": "e" * 64})
    hub.cdn.largest = 1000
    with pytest.raises(SourceUnsupported, match="by Xet only"):
        await world.read(await weights(world))


async def test_a_resolve_that_is_cancelled(world: World, repo: Repo, hub: Hub) -> None:
    hub.fault("api/models/*", Fault(stall_head=True))
    source = world.source
    task = asyncio.create_task(source.resolve(parse_ref("hf://org/name")))
    await asyncio.to_thread(hub.wait_for, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for thread in [t for t in threading.enumerate() if t.name == "weightd-asker-watch"]:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


async def test_a_reader_that_is_aborted_while_the_hub_is_silent(world: World, repo: Repo, hub: Hub) -> None:
    file = await weights(world)
    hub.fault("org/name/resolve/*", Fault(stall_head=True))
    reader = world.sources[-1].reader(file)
    started = asyncio.get_running_loop().run_in_executor(None, reader.start, 0, 100)
    await asyncio.to_thread(hub.wait_for, 3)
    reader.abort()
    with pytest.raises(SourceUnavailable, match="aborted"):
        await started
    reader.close()


def test_a_wait_that_is_ended() -> None:
    wait(3600, lambda: True)
    wait(0.01, lambda: False)
