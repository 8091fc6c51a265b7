"""What only file:// can get wrong."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from weightd.core.errors import (
    ManifestError,
    SourceChanged,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    WeightdError,
)
from weightd.core.manifest import FileSpec, Manifest
from weightd.core.refs import parse_ref
from weightd.sources.file import FileSource, url_of


async def resolve(path: Path) -> Manifest:
    return await FileSource().resolve(parse_ref(url_of(path)))


async def pinned(tmp_path: Path, data: bytes = b"x" * 10_000) -> tuple[Path, FileSpec]:
    path = tmp_path / "f.bin"
    path.write_bytes(data)
    return path, (await resolve(path)).files[0]


def paths(manifest: Manifest) -> list[str]:
    return [f.path for f in manifest.files]


async def test_a_directory_is_all_its_weights(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors", "q4.gguf", "config.json", "notes.txt", ".hidden.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    assert paths(await resolve(tmp_path)) == ["a.safetensors", "b.safetensors", "config.json", "q4.gguf"]


async def test_the_layout_of_the_hub_cache(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1234").write_bytes(b"weights")
    (blobs / "5678").write_bytes(b"{}")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    (snapshot / "config.json").symlink_to("../../blobs/5678")
    manifest = await resolve(snapshot)
    assert [(f.path, f.size) for f in manifest.files] == [("config.json", 2), ("model.safetensors", 7)]


async def test_a_dangling_weight_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x")
    (tmp_path / "b.safetensors").symlink_to("nowhere")
    with pytest.raises(SourceNotFound) as e:
        await resolve(tmp_path)
    assert e.value.file == "b.safetensors"


async def test_a_circle_of_symlinks(tmp_path: Path) -> None:
    (tmp_path / "a.bin").symlink_to("a.bin")
    with pytest.raises(SourceUnavailable, match="symbolic links"):
        await resolve(tmp_path / "a.bin")


async def test_a_directory_called_license_is_no_sibling(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x")
    (tmp_path / "LICENSE").mkdir()
    assert paths(await resolve(tmp_path)) == ["a.safetensors"]


async def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"w\xff.safetensors")).write_bytes(b"x")
    with pytest.raises(ManifestError, match="Unicode"):
        await resolve(tmp_path)


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "directory"])
async def test_not_a_regular_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    listener = socket.socket(socket.AF_UNIX)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        listener.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with listener, pytest.raises(SourceDenied, match="not a regular file") as e:
        await resolve(tmp_path)
    assert e.value.file == "model.safetensors"
    reader = FileSource().reader(FileSpec("model.safetensors", 10, url_of(path)))
    with pytest.raises(SourceDenied, match="not a regular file"):
        reader.start(0, 10)
    reader.close()


async def test_a_file_with_a_slash_behind(tmp_path: Path) -> None:
    path, _ = await pinned(tmp_path)
    with pytest.raises(SourceNotFound, match="not a directory"):
        await FileSource().resolve(parse_ref(url_of(path) + "/"))


async def test_a_path_through_a_file(tmp_path: Path) -> None:
    path, _ = await pinned(tmp_path)
    with pytest.raises(SourceNotFound):
        await resolve(path / "below")


async def test_a_name_too_long(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound):
        await resolve(tmp_path / ("n" * 300))


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Root may read everything, so the test is nobody for a while."""
    euid = os.geteuid()
    if euid == 0:
        os.seteuid(65534)
    yield
    os.seteuid(euid)


async def test_a_file_without_rights(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path, file = await pinned(tmp_path)
    path.chmod(0)
    request.getfixturevalue("ordinary_user")
    reader = FileSource().reader(file)
    with pytest.raises(SourceDenied) as e:
        reader.start(0, 10)
    assert e.value.remedy
    reader.close()


async def change_size(path: Path) -> None:
    os.truncate(path, 5_000)


async def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [change_size, touch])
@pytest.mark.parametrize("when", ["start", "read", "finish"])
async def test_a_change_is_seen(tmp_path: Path, change: object, when: str) -> None:
    path, file = await pinned(tmp_path)
    reader = FileSource().reader(file)
    view = memoryview(bytearray(10_000))
    with pytest.raises(SourceChanged) as e:
        if when == "start":
            await change(path)  # type: ignore[operator]
        reader.start(0, 10_000)
        reader.readinto(view[:100])
        if when == "read":
            await change(path)  # type: ignore[operator]
        done = 100
        while done < 10_000:
            done += reader.readinto(view[done:])
        if when == "finish":
            await change(path)  # type: ignore[operator]
        reader.finish()
    assert e.value.file == "f.bin"
    reader.close()


async def test_abort_between_reads(tmp_path: Path) -> None:
    _, file = await pinned(tmp_path)
    reader = FileSource().reader(file)
    reader.start(0, 10_000)
    reader.abort()
    with pytest.raises(WeightdError, match="aborted"):
        reader.readinto(memoryview(bytearray(10)))
    reader.close()
