"""What one Hub says of repositories, pages and addresses counts for that Hub alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sources.hub.world import World
from tests.support.hub import Hub
from tests.support.hub_repos import Repo
from tests.support.origin import Fault
from weightd.core.credentials import Credential
from weightd.core.errors import WeightdError
from weightd.sources.hub_access import HubOptions


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
