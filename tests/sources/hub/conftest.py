"""A Hub, and the client kept from everything outside of this machine and this test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.sources.hub.world import FILES, World
from tests.support.hub import Hub
from tests.support.hub_repos import Repo
from weightd.sources.hub_home import Home


@pytest.fixture(autouse=True)
def _client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # With telemetry, the first call asks huggingface.co which agents there are.
    import huggingface_hub as client
    import huggingface_hub.utils  # Another name of it is loaded only with its first call.

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    client.utils.disable_progress_bars()
    yield
    client.close_session()
    client.utils.enable_progress_bars()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def repo(hub: Hub) -> Repo:
    repo = hub.repo("org/name")
    repo.commit(FILES)
    return repo


@pytest.fixture
async def world(hub: Hub, tmp_path: Path) -> AsyncIterator[World]:
    world = World(hub, Home(hub.endpoint, str(tmp_path / "no cache"), False))
    yield world
    await world.close()
