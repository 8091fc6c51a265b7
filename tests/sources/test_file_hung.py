"""A mount that does not answer keeps nobody else waiting."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tests.support.hung import hung
from weightd.core.refs import parse_ref
from weightd.sources.file import FileSource

MANY = min(32, (os.cpu_count() or 1) + 4) + 1
"""More than the loop has threads of its own (asyncio's default executor)."""


async def test_a_mount_that_hangs_takes_no_thread_in_which_others_ask(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"x")
    source = FileSource()
    with hung(tmp_path / "gone") as gone:
        asked = [asyncio.create_task(source.resolve(parse_ref(f"file://{gone}/{n}/"))) for n in range(MANY)]
        try:
            async with asyncio.timeout(10):
                (file,) = (await source.resolve(parse_ref(f"file://{tmp_path}/model.safetensors"))).files
                assert file.size == 1
                assert await asyncio.to_thread(int) == 0
            assert not any(task.done() for task in asked)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.wait(asked)
