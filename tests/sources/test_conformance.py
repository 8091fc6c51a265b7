"""One suite for every source: what the engine may rely on."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import pytest

from tests.support.origin import Fault, Origin
from tests.support.seaweed import ADMIN, Seaweed
from weightd.core.digest import digest_of
from weightd.core.errors import (
    ManifestError,
    SizeMismatch,
    SourceChanged,
    SourceNotFound,
    SourceUnavailable,
)
from weightd.core.manifest import FileSpec
from weightd.core.refs import parse_ref
from weightd.sources.file import FileSource, url_of
from weightd.sources.http import HttpSource
from weightd.sources.memory import MemorySource
from weightd.sources.protocols import Reader, Source
from weightd.sources.registry import SourceOptions, Sources
from weightd.sources.s3_settings import S3Options

WEIGHTS = bytes(range(256)) * 1000


class World(Protocol):
    """A source, and a way to change what it reads."""

    source: Source

    def put(self, name: str, data: bytes) -> None: ...

    def remove(self, name: str) -> None: ...

    def ref(self, name: str) -> str: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.memory = MemorySource()
        self.source: Source = self.memory

    def put(self, name: str, data: bytes) -> None:
        self.memory.files[self.ref(name)] = data

    def remove(self, name: str) -> None:
        del self.memory.files[self.ref(name)]

    def ref(self, name: str) -> str:
        return f"https://memory.test/m/{quote(name)}"


class FileWorld:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.source: Source = FileSource()

    def put(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_bytes(data)
        os.replace(new, path)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()

    def ref(self, name: str) -> str:
        return url_of(self.root) + "/" + quote(name)


class HttpWorld:
    def __init__(self, origin: Origin, source: Source) -> None:
        self.origin, self.source = origin, source

    def put(self, name: str, data: bytes) -> None:
        self.origin.put(f"m/{name}", data)

    def remove(self, name: str) -> None:
        self.origin.remove(f"m/{name}")

    def ref(self, name: str) -> str:
        return self.origin.url(f"m/{quote(name)}")


class S3World:
    count = itertools.count()

    def __init__(self, weed: Seaweed, source: Source) -> None:
        self.weed, self.source = weed, source
        self.bucket = f"conformance-{next(self.count)}"
        weed.put(self.bucket, {})

    def put(self, name: str, data: bytes) -> None:
        self.weed.put(self.bucket, {f"m/{name}": data})

    def remove(self, name: str) -> None:
        self.weed.client().delete_object(Bucket=self.bucket, Key=f"m/{name}")

    def ref(self, name: str) -> str:
        return f"s3://{self.bucket}/m/{quote(name)}"


def read(reader: Reader, offset: int, length: int, step: int = 1 << 20) -> bytes:
    data = bytearray(length)
    reader.start(offset, length)
    done = 0
    while done < length:
        count = reader.readinto(memoryview(data)[done : done + step])
        assert 0 < count <= step
        done += count
    reader.finish()
    return bytes(data)


class SourceSuite:
    """Subclasses give the fixture `world`."""

    async def one(self, world: World, name: str = "model.safetensors", data: bytes = WEIGHTS) -> FileSpec:
        world.put(name, data)
        manifest = await world.source.resolve(parse_ref(world.ref(name)))
        return manifest.files[0]

    async def test_a_file_is_one_file(self, world: World) -> None:
        world.put("model.safetensors", WEIGHTS)
        world.put("config.json", b"{}")
        ref = parse_ref(world.ref("model.safetensors"))
        manifest = await world.source.resolve(ref)
        assert [(f.path, f.size) for f in manifest.files] == [("model.safetensors", len(WEIGHTS))]
        assert manifest.format == "safetensors"
        assert manifest.ref == ref.text
        assert manifest.files[0].source_key

    async def test_any_other_file_is_raw(self, world: World) -> None:
        world.put("weights.bin", b"abc")
        assert (await world.source.resolve(parse_ref(world.ref("weights.bin")))).format == "raw"

    async def test_the_revision_follows_the_content(self, world: World) -> None:
        ref = parse_ref(world.ref("w.bin"))
        world.put("w.bin", b"one")
        first = await world.source.resolve(ref)
        assert (await world.source.resolve(ref)).revision == first.revision
        world.put("w.bin", b"two")
        assert (await world.source.resolve(ref)).revision != first.revision

    async def test_reads_the_whole(self, world: World) -> None:
        reader = world.source.reader(await self.one(world))
        assert read(reader, 0, len(WEIGHTS), 7919) == WEIGHTS
        reader.close()

    async def test_reads_parts_in_any_order_with_one_reader(self, world: World) -> None:
        file = await self.one(world)
        reader = world.source.reader(file)
        if not file.ranges:
            with pytest.raises(SourceUnavailable):
                reader.start(4096, 100)
            reader.close()
            return
        for offset, length in ((200_000, 56_000), (0, 1), (4096, 100_000), (len(WEIGHTS) - 1, 1)):
            assert read(reader, offset, length) == WEIGHTS[offset : offset + length]
        reader.close()

    async def test_readers_are_independent(self, world: World) -> None:
        file = await self.one(world)
        size = file.size
        first, second = world.source.reader(file), world.source.reader(file)
        data = bytearray(size)
        first.start(0, size)
        assert read(second, 0, size) == WEIGHTS
        done = 0
        while done < size:
            done += first.readinto(memoryview(data)[done:])
        first.finish()
        assert data == WEIGHTS
        first.close()
        second.close()
        second.close()

    @pytest.mark.parametrize(("offset", "length"), [(0, 0), (-1, 5), (0, len(WEIGHTS) + 1), (len(WEIGHTS), 1)])
    async def test_refuses_impossible_ranges(self, world: World, offset: int, length: int) -> None:
        reader = world.source.reader(await self.one(world))
        with pytest.raises(ValueError, match="bytes"):
            reader.start(offset, length)
        reader.close()

    async def test_finish_needs_all_bytes(self, world: World) -> None:
        file = await self.one(world)
        reader = world.source.reader(file)
        reader.start(0, file.size)
        reader.readinto(memoryview(bytearray(10)))
        with pytest.raises(ValueError, match="unread"):
            reader.finish()
        reader.close()

    async def test_another_version_is_refused(self, world: World) -> None:
        file = await self.one(world)
        world.put("model.safetensors", WEIGHTS[::-1])
        reader = world.source.reader(file)
        with pytest.raises(SourceChanged) as e:
            read(reader, 0, file.size)
        assert e.value.file == "model.safetensors"
        assert e.value.remedy
        reader.close()

    async def test_a_file_that_went_away(self, world: World) -> None:
        file = await self.one(world)
        world.remove("model.safetensors")
        reader = world.source.reader(file)
        with pytest.raises(SourceNotFound):
            reader.start(0, file.size)
        reader.close()

    async def test_abort_before_start(self, world: World) -> None:
        file = await self.one(world)
        reader = world.source.reader(file)
        reader.abort()
        reader.abort()
        with pytest.raises(SourceUnavailable, match="aborted"):
            reader.start(0, file.size)
        reader.close()
        reader.close()

    async def test_an_empty_file(self, world: World) -> None:
        file = await self.one(world, "empty.bin", b"")
        assert file.size == 0

    async def test_a_missing_file_names_the_ref(self, world: World) -> None:
        ref = world.ref("nothing.safetensors")
        with pytest.raises(SourceNotFound) as e:
            await world.source.resolve(parse_ref(ref))
        assert e.value.ref == ref
        assert e.value.remedy

    async def test_a_directory_with_one_file(self, world: World) -> None:
        world.put("model.safetensors", WEIGHTS)
        for sibling in ("config.json", "tokenizer.json", "1_Pooling/config.json"):
            world.put(sibling, sibling.encode())
        world.put("picture.png", b"no")
        manifest = await world.source.resolve(parse_ref(world.ref("")))
        assert [f.path for f in manifest.files] == [
            "1_Pooling/config.json",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        ]
        pooling = world.source.reader(manifest.files[0])
        assert read(pooling, 0, manifest.files[0].size) == b"1_Pooling/config.json"
        pooling.close()

    def put_sharded(self, world: World, shards: dict[str, str], index: str = "model.safetensors.index.json") -> None:
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": shards})
        world.put(index, text.encode())

    async def test_a_directory_with_an_index(self, world: World) -> None:
        names = ["model-00001-of-00002.safetensors", "sub dir/mo#del?2%2F.safetensors"]
        self.put_sharded(world, {"a": names[0], "b": names[1], "c": names[0]})
        for name in names:
            world.put(name, name.encode())
        world.put("config.json", b"{}")
        manifest = await world.source.resolve(parse_ref(world.ref("")))
        assert [f.path for f in manifest.files] == sorted(["config.json", "model.safetensors.index.json", *names])
        for file in manifest.files:
            if file.path in names:
                reader = world.source.reader(file)
                assert read(reader, 0, file.size) == file.path.encode()
                reader.close()

    async def test_an_index_by_its_own_name(self, world: World) -> None:
        self.put_sharded(world, {"a": "x.safetensors"}, "fp16.safetensors.index.json")
        world.put("x.safetensors", b"x")
        world.put("config.json", b"{}")
        manifest = await world.source.resolve(parse_ref(world.ref("fp16.safetensors.index.json")))
        assert [f.path for f in manifest.files] == ["config.json", "fp16.safetensors.index.json", "x.safetensors"]
        assert manifest.format == "safetensors"

    async def test_a_missing_shard_is_named(self, world: World) -> None:
        self.put_sharded(world, {"a": "x.safetensors", "b": "gone.safetensors"})
        world.put("x.safetensors", b"x")
        with pytest.raises(SourceNotFound) as e:
            await world.source.resolve(parse_ref(world.ref("")))
        assert e.value.file == "gone.safetensors"

    @pytest.mark.parametrize(
        "hostile", ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "", "a\\b.safetensors", "x.bin"]
    )
    async def test_a_hostile_shard_is_refused(self, world: World, hostile: str) -> None:
        self.put_sharded(world, {"a": hostile})
        with pytest.raises(ManifestError) as e:
            await world.source.resolve(parse_ref(world.ref("")))
        assert e.value.ref == world.ref("")

    @pytest.mark.parametrize(
        "text", [b"", b"<!DOCTYPE html>", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b"\xff{}"]
    )
    async def test_a_malformed_index_is_refused(self, world: World, text: bytes) -> None:
        world.put("model.safetensors.index.json", text)
        with pytest.raises(ManifestError) as e:
            await world.source.resolve(parse_ref(world.ref("")))
        assert e.value.file == "model.safetensors.index.json" or "weight_map" in str(e.value)

    async def test_an_oversized_index_is_refused(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("weightd.sources.safetensors_repo.MAX_INDEX", 10)
        self.put_sharded(world, {"a": "x.safetensors"})
        with pytest.raises(ManifestError, match="over 10"):
            await world.source.resolve(parse_ref(world.ref("")))

    async def test_a_directory_without_a_model(self, world: World) -> None:
        world.put("config.json", b"{}")
        with pytest.raises(SourceNotFound) as e:
            await world.source.resolve(parse_ref(world.ref("")))
        assert e.value.remedy

    async def test_stat_pins_under_another_name(self, world: World) -> None:
        world.put("w.bin", b"abc")
        digest = digest_of(b"\1" * 32)
        url = world.ref("w.bin")
        file = await world.source.stat(parse_ref(url), "other/name.bin", url, size=3, digest=digest)
        assert (file.path, file.size, file.digest) == ("other/name.bin", 3, digest)

    async def test_stat_checks_a_given_size(self, world: World) -> None:
        world.put("w.bin", b"abc")
        url = world.ref("w.bin")
        with pytest.raises(SizeMismatch) as e:
            await world.source.stat(parse_ref(url), "w.bin", url, size=4, digest=None)
        assert e.value.file == "w.bin"
        assert e.value.ref == url

    async def test_close_twice(self, world: World) -> None:
        await self.one(world)
        await world.source.close()
        await world.source.close()


class TestMemory(SourceSuite):
    @pytest.fixture
    def world(self) -> World:
        return MemoryWorld()


class TestMemoryWithoutRanges(SourceSuite):
    @pytest.fixture
    def world(self) -> World:
        world = MemoryWorld()
        world.memory.ranges = False
        return world


class TestFile(SourceSuite):
    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        return FileWorld(tmp_path)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({}) as origin:
        yield origin


class TestHttp(SourceSuite):
    @pytest.fixture
    async def world(self, origin: Origin) -> AsyncIterator[World]:
        world = HttpWorld(origin, HttpSource())
        yield world
        await world.source.close()


class TestHttpWithoutRanges(SourceSuite):
    @pytest.fixture
    async def world(self, origin: Origin) -> AsyncIterator[World]:
        origin.fault("*", Fault(no_ranges=True))
        world = HttpWorld(origin, HttpSource())
        yield world
        await world.source.close()


class TestRegistry(SourceSuite):
    @pytest.fixture
    async def world(self, origin: Origin) -> AsyncIterator[World]:
        world = HttpWorld(origin, Sources())
        yield world
        await world.source.close()


class TestS3(SourceSuite):
    @pytest.fixture
    async def world(self, weed: Seaweed, no_aws: None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ADMIN.id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ADMIN.secret)
        world = S3World(weed, Sources(SourceOptions(s3=S3Options(endpoint=weed.endpoint))))
        yield world
        await world.source.close()
