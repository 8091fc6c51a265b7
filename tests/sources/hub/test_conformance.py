"""What the engine may rely on holds of a Hub too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.sources.test_conformance import WEIGHTS, SourceSuite, World, read
from tests.support.hub import Hub
from weightd.core.digest import digest_of
from weightd.core.errors import DigestMismatch
from weightd.core.refs import parse_ref
from weightd.sources.hub_access import HubOptions
from weightd.sources.protocols import Source
from weightd.sources.registry import SourceOptions, Sources


class HubWorld:
    def __init__(self, hub: Hub, source: Source) -> None:
        self.source = source
        self._repo = hub.repo("org/name")
        self._repo.commit({})

    def put(self, name: str, data: bytes) -> None:
        self._repo.commit({name: data})

    def remove(self, name: str) -> None:
        self._repo.commit({name: None})

    def ref(self, name: str) -> str:
        return f"hf://org/name/{quote(name)}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


class TestHub(SourceSuite):
    @pytest.fixture
    async def world(self, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[HubWorld]:
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        source = Sources(SourceOptions(hub=HubOptions(endpoint=hub.endpoint, cache="off")))
        yield HubWorld(hub, source)
        await source.close()

    async def test_another_version_is_refused(self, world: World) -> None:
        """A commit has one version."""
        file = await self.one(world)
        world.put("model.safetensors", WEIGHTS[::-1])
        reader = world.source.reader(file)
        assert read(reader, 0, file.size) == WEIGHTS
        reader.close()

    async def test_a_file_that_went_away(self, world: World) -> None:
        """It stays in its commit."""
        file = await self.one(world)
        world.remove("model.safetensors")
        reader = world.source.reader(file)
        assert read(reader, 0, file.size) == WEIGHTS
        reader.close()

    async def test_stat_pins_under_another_name(self, world: World) -> None:
        """A digest that is given goes before a git id, and may not contradict that of the list."""
        world.put("w.txt", b"abc")
        world.put("w.bin", b"abc")
        for name in ("w.txt", "w.bin"):
            url, digest = world.ref(name), digest_of(b"\1" * 32)
            asked = world.source.stat(parse_ref(url), "other/name.bin", url, size=3, digest=digest)
            if name == "w.bin":
                with pytest.raises(DigestMismatch):
                    await asked
            else:
                file = await asked
                assert (file.path, file.size, file.digest) == ("other/name.bin", 3, digest)
                assert not file.by_git_id

    async def test_a_directory_with_one_file(self, world: World) -> None:
        """It can be listed: nothing small is left out."""
        files = {"model.safetensors": WEIGHTS, "1_Pooling/config.json": b"pooling", "related.txt": b"yes"}
        for name, data in {**files, "picture.png": b"no"}.items():
            world.put(name, data)
        manifest = await world.source.resolve(parse_ref(world.ref("")))
        assert [f.path for f in manifest.files] == sorted(files)
        for file in manifest.files:
            reader = world.source.reader(file)
            assert read(reader, 0, file.size) == files[file.path]
            reader.close()
