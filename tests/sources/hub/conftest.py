"""A Hub, and the client kept from everything outside of this machine and this test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.hub import Hub


@pytest.fixture(autouse=True)
def _client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # With telemetry, the first call asks huggingface.co which agents there are.
    import huggingface_hub as client

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
