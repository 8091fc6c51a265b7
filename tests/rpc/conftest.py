from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.serving import DaemonProcess, Served, served, short_directory


@pytest.fixture
def short() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
async def daemon(short: Path) -> AsyncIterator[Served]:
    async with served(short) as it:
        yield it


@pytest.fixture
def process(short: Path) -> Iterator[DaemonProcess]:
    it = DaemonProcess(short)
    try:
        yield it
    finally:
        it.close()
