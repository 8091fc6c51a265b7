"""One origin and one daemon for each module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.host import Host, daemon, safetensors
from tests.support.origin import Origin


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    """With one sound model, `good.safetensors`, of 64 KiB."""
    with Origin({"good.safetensors": safetensors()}) as origin:
        yield origin


@pytest.fixture(scope="module")
def good(origin: Origin) -> str:
    return origin.url("good.safetensors")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """With defaults, but few retries."""
    with daemon() as host:
        yield host
