"""What one Hub says counts for that Hub alone, and one that does not answer holds up no other, nor the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.sources.hub.world import World
from tests.support.hub import Hub
from tests.support.hub_repos import Repo
from tests.support.origin import Fault
from weightd.core.credentials import Credential
from weightd.core.errors import SourceUnavailable, WeightdError
from weightd.core.refs import parse_ref
from weightd.sources.connection import HttpOptions
from weightd.sources.hub import THREADS
from weightd.sources.hub_access import HubOptions
from weightd.sources.receiving import Receiving


async def test_a_name_that_leads_to_another_hub(world: World, repo: Repo, hub: Hub, tmp_path: Path) -> None:
    """A Hub may rename what it has; what another has, it has no say in."""
    token = tmp_path / "token"
    token.write_text("hf_corp")
    with Hub() as other:
        rule = Credential("hf://corp/*", endpoint=other.endpoint, token_file=str(token))
        world.options = HubOptions(cache="off", credentials=(rule,))
        moved = hub.repo("org/old")
        moved.commit({"model.safetensors": b"1", "config.json": b"{}"})
        hub.rename(moved, "corp/secret")
        assert await world.contents("hf://org/old") == {"model.safetensors": b"1", "config.json": b"{}"}
        assert other.requests == []


@pytest.mark.parametrize("link", ["ftp://h/x", "http://[", "http://h:x/"])
async def test_a_next_page_that_is_none(world: World, repo: Repo, hub: Hub, link: str) -> None:
    hub.fault("api/models/org/name/tree/*", Fault(headers={"Link": f'<{link}>; rel="next"'}))
    with pytest.raises(WeightdError) as e:
        await world.resolve()
    assert e.value.remedy


async def test_many_files_of_one_model_hold_up_no_other(world: World, repo: Repo, hub: Hub) -> None:
    """They are asked for one by one, and wait for one answer, that does not come."""
    world.receiving = Receiving(HttpOptions(connect_timeout=5, read_timeout=100))
    hub.repo("org/other").commit({"model.safetensors": b"1"})
    hub.fault("api/models/org/name/*", Fault(stall_head=True))
    source, name = world.source, parse_ref("model")
    asked = [
        asyncio.create_task(source.stat(name, f"{i}", f"hf://org/name/{i}", size=None, digest=None))
        for i in range(2 * THREADS)
    ]
    try:
        await asyncio.to_thread(hub.wait_for, 1)
        assert await source.resolve(parse_ref("hf://org/other"))
        assert not any(task.done() for task in asked)
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def test_closing_ends_what_is_asked(world: World, repo: Repo, hub: Hub) -> None:
    world.receiving = Receiving(HttpOptions(connect_timeout=5, read_timeout=100))
    hub.fault("api/models/*", Fault(stall_head=True))
    source = world.source
    asked = asyncio.create_task(source.resolve(parse_ref("hf://org/name")))
    await asyncio.to_thread(hub.wait_for, 1)
    async with asyncio.timeout(30):
        await source.close()
    with pytest.raises(SourceUnavailable):
        await asked
    with pytest.raises(SourceUnavailable):
        await source.resolve(parse_ref("hf://org/name"))
