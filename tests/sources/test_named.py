"""Models by name: what the configuration says must hold."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.support.origin import Fault, Origin
from weightd.core.errors import (
    ConfigError,
    ManifestError,
    ModelNotFound,
    RefSyntax,
    SizeMismatch,
    SourceNotFound,
    SourceUnavailable,
)
from weightd.core.manifest import FileSpec, Manifest
from weightd.core.models import NamedFile, NamedModel
from weightd.core.refs import parse_ref
from weightd.sources.file import url_of
from weightd.sources.memory import MemorySource
from weightd.sources.registry import SourceOptions, Sources

BASE = "https://memory.test/m/"
A = hashlib.sha256(b"a").hexdigest()


@pytest.fixture
def memory() -> MemorySource:
    return MemorySource(
        {BASE + "model.safetensors": b"weights", BASE + "config.json": b"{}", BASE + "sub%20dir/x.bin": b"x"}
    )


async def resolve(memory: MemorySource, model: NamedModel, name: str = "mini") -> Manifest:
    sources = Sources(SourceOptions(models={name: model}), {"https": memory})
    try:
        return await sources.resolve(parse_ref(name))
    finally:
        await sources.close()


async def test_a_whole_source(memory: MemorySource) -> None:
    manifest = await resolve(memory, NamedModel(BASE))
    assert manifest.ref == "mini"
    assert manifest.format == "safetensors"
    assert [f.path for f in manifest.files] == ["config.json", "model.safetensors"]


async def test_one_file_with_size_and_digest(memory: MemorySource) -> None:
    manifest = await resolve(memory, NamedModel(BASE + "model.safetensors", size=7, sha256=A))
    (file,) = manifest.files
    assert (file.path, file.size, file.digest) == ("model.safetensors", 7, f"sha256:{A}")


@pytest.mark.parametrize("source", [BASE, BASE.rstrip("/")])
async def test_listed_files(memory: MemorySource, source: str) -> None:
    files = (NamedFile("sub dir/x.bin", size=1, sha256=A), "config.json")
    manifest = await resolve(memory, NamedModel(source, files=files, size=3))
    assert [(f.path, f.size, f.digest) for f in manifest.files] == [
        ("config.json", 2, None),
        ("sub dir/x.bin", 1, f"sha256:{A}"),
    ]
    assert manifest.format == "raw"


async def test_a_single_listed_file_takes_the_model_digest(memory: MemorySource) -> None:
    manifest = await resolve(memory, NamedModel(BASE, files=("config.json",), size=2, sha256=A))
    assert manifest.files[0].digest == f"sha256:{A}"


@pytest.mark.parametrize(
    "model",
    [
        NamedModel(BASE + "model.safetensors", size=8),
        NamedModel(BASE, size=8),
        NamedModel(BASE, files=("config.json", "model.safetensors"), size=8),
        NamedModel(BASE, files=(NamedFile("config.json", size=3),)),
    ],
)
async def test_a_wrong_size(memory: MemorySource, model: NamedModel) -> None:
    with pytest.raises(SizeMismatch) as e:
        await resolve(memory, model)
    assert e.value.ref == "mini"
    assert "models.json" in e.value.remedy


async def test_one_digest_for_many_files(memory: MemorySource) -> None:
    with pytest.raises(ConfigError, match="2 files"):
        await resolve(memory, NamedModel(BASE, sha256=A))


async def test_the_digest_of_the_only_file_found(memory: MemorySource) -> None:
    del memory.files[BASE + "config.json"]
    assert (await resolve(memory, NamedModel(BASE, sha256=A))).files[0].digest == f"sha256:{A}"


async def test_the_format_given(memory: MemorySource) -> None:
    assert (await resolve(memory, NamedModel(BASE, format="raw"))).format == "raw"
    with pytest.raises(ManifestError, match="given as safetensors"):
        await resolve(memory, NamedModel(BASE + "config.json", format="safetensors"))


async def test_a_missing_file(memory: MemorySource) -> None:
    with pytest.raises(SourceNotFound) as e:
        await resolve(memory, NamedModel(BASE, files=("gone.bin",)))
    assert (e.value.ref, e.value.file) == ("mini", "gone.bin")
    assert BASE in e.value.message


async def test_an_unknown_name(memory: MemorySource) -> None:
    sources = Sources(SourceOptions(models={"mini": NamedModel(BASE)}))
    with pytest.raises(ModelNotFound, match="Did you mean 'mini'"):
        await sources.resolve(parse_ref("mimi"))
    with pytest.raises(ModelNotFound, match=r"models\.json"):
        await sources.resolve(parse_ref("quite-another"))
    await sources.close()


async def test_files_below_a_local_directory(tmp_path: Path) -> None:
    (tmp_path / "ä b").mkdir()
    (tmp_path / "ä b" / "w%2F.gguf").write_bytes(b"abc")
    model = NamedModel(url_of(tmp_path), files=("ä b/w%2F.gguf",), size=3)
    sources = Sources(SourceOptions(models={"local": model}))
    file = (await sources.resolve(parse_ref("local"))).files[0]
    reader = sources.reader(file)
    reader.start(0, 3)
    view = memoryview(bytearray(3))
    assert reader.readinto(view) == 3
    assert view == b"abc"
    reader.finish()
    reader.close()
    await sources.close()


@pytest.mark.parametrize("listed", [True, False])
async def test_a_given_size_serves_an_origin_that_tells_none(origin: Origin, listed: bool) -> None:
    origin.put("w.bin", b"abc")
    origin.fault("w.bin", Fault(no_ranges=True, no_length=True))
    model = (
        NamedModel(origin.url(), files=(NamedFile("w.bin", size=3),))
        if listed
        else NamedModel(origin.url("w.bin"), size=3)
    )
    sources = Sources(SourceOptions(models={"w": model}))
    assert (await sources.resolve(parse_ref("w"))).size == 3
    await sources.close()


async def test_an_unreachable_origin_is_told_by_name(memory: MemorySource) -> None:
    def down(url: str, offset: int, length: int) -> None:
        raise SourceUnavailable("down", remedy="Wait.")

    memory.on_stat = down
    with pytest.raises(SourceUnavailable) as e:
        await resolve(memory, NamedModel(BASE))
    assert e.value.ref == "mini"


async def test_no_source_for_a_scheme() -> None:
    sources = Sources()
    with pytest.raises(RefSyntax, match="ftp"):
        sources.reader(FileSpec("x", 1, "ftp://host/x"))
    await sources.close()
