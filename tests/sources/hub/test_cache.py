"""The Hugging Face cache of the host, made by the client itself: what is in it is not fetched, and not believed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from huggingface_hub import snapshot_download

from tests.sources.hub.world import CHOSEN, FILES, WEIGHTS, World
from tests.support.hub import Hub
from tests.support.hub_repos import HubFile, Repo, blob_id
from tests.support.origin import Fault
from weightd.core.errors import (
    AccessDenied,
    Corruption,
    DigestMismatch,
    GitIdMismatch,
    NotInCache,
    SourceNotFound,
    WeightdError,
)
from weightd.core.refs import parse_ref
from weightd.core.verification import Verification
from weightd.engine.export import ExportedFile, fetch_to
from weightd.sources.registry import Sources


@asynccontextmanager
async def sources(world: World) -> AsyncIterator[Sources]:
    found = Sources(others={"hf": world.source})
    yield found
    await found.close()


async def export(world: World, directory: Path, ref: str = "hf://org/name") -> dict[str, ExportedFile]:
    async with sources(world) as found:
        return {f.path: f for f in await fetch_to(ref, directory, sources=found)}


@pytest.fixture
async def cache(world: World, repo: Repo, hub: Hub, tmp_path: Path) -> Path:
    """With all of org/name, after which nothing was asked of the Hub."""
    root = tmp_path / "hub"
    await asyncio.to_thread(snapshot_download, "org/name", endpoint=hub.endpoint, cache_dir=root, token=False)
    world.home = world.home._replace(cache=str(root))
    return root


def blob(cache: Path, name: str) -> Path:
    return (next((cache / "models--org--name/snapshots").iterdir()) / name).resolve()


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


async def test_it_is_read_in_place_of_the_hub(world: World, hub: Hub, cache: Path, tmp_path: Path) -> None:
    before = hub.resolves, len(hub.cdn.requests)
    files = await export(world, tmp_path / "out")
    assert tree(tmp_path / "out") == {name: FILES[name] for name in CHOSEN}
    assert (hub.resolves, len(hub.cdn.requests)) == before
    assert {p: f.verification for p, f in files.items()} == {
        p: Verification.SHA256 if p == "model.safetensors" else Verification.GIT for p in CHOSEN
    }


async def test_off_is_off(world: World, hub: Hub, cache: Path) -> None:
    world.options = msgspec.structs.replace(world.options, cache="off")
    before = hub.resolves
    await world.contents()
    assert hub.resolves == before + len(CHOSEN)


async def test_another_directory(world: World, hub: Hub, cache: Path, tmp_path: Path) -> None:
    world.home = world.home._replace(cache=str(tmp_path / "empty"))
    world.options = msgspec.structs.replace(world.options, cache=str(cache))
    before = hub.resolves
    assert await world.contents() == {name: FILES[name] for name in CHOSEN}
    assert hub.resolves == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
async def test_a_blob_that_is_another(world: World, hub: Hub, cache: Path, tmp_path: Path, name: str) -> None:
    """As when somebody wrote through its link: what is fetched is right all the same, and only that is fetched."""
    wrong = bytes(len(FILES[name]))
    blob(cache, name).write_bytes(wrong)
    before = hub.resolves
    async with sources(world) as found:
        files = {f.path: f for f in await fetch_to("hf://org/name", tmp_path / "out", sources=found)}
        assert tree(tmp_path / "out") == {p: FILES[p] for p in CHOSEN}
        assert files[name].repaired
        assert hub.resolves == before + 1
        assert blob(cache, name).read_bytes() == wrong, "it is the user's"
        # The source that found it out does not read it again.
        (file,) = (await found.resolve(parse_ref(f"hf://org/name/{name}"))).files
        assert await world.read(file) == FILES[name]


async def test_an_index_that_is_another(world: World, repo: Repo, hub: Hub, tmp_path: Path) -> None:
    index = b'{"weight_map": {"a": "x.safetensors"}}'
    repo.commit({"model.safetensors.index.json": index, "x.safetensors": WEIGHTS, "model.safetensors": None})
    root = tmp_path / "hub"
    await asyncio.to_thread(snapshot_download, "org/name", endpoint=hub.endpoint, cache_dir=root, token=False)
    world.home = world.home._replace(cache=str(root))
    blob(root, "model.safetensors.index.json").write_bytes(index.replace(b"x.", b"y."))
    assert "x.safetensors" in await world.contents()


@pytest.mark.parametrize("how", ["shorter", "gone", "directory"])
async def test_a_blob_that_cannot_be_it(world: World, hub: Hub, cache: Path, how: str) -> None:
    path = blob(cache, "config.json")
    path.unlink()
    if how == "shorter":
        path.write_bytes(b"{}")
    elif how == "directory":
        path.mkdir()
    before = hub.resolves
    assert await world.contents() == {name: FILES[name] for name in CHOSEN}
    assert hub.resolves == before + 1


async def test_a_blob_that_goes_meanwhile(world: World, hub: Hub, cache: Path, tmp_path: Path) -> None:
    before = hub.resolves
    hub.before("api/models/org/name/tree/*", lambda: None)
    async with sources(world) as found:
        resolve = found.resolve

        async def then_gone(ref: object) -> object:
            manifest = await resolve(ref)  # type: ignore[arg-type]
            blob(cache, "model.safetensors").unlink()
            return manifest

        found.resolve = then_gone  # type: ignore[method-assign, assignment]
        await fetch_to("hf://org/name", tmp_path / "out", sources=found)
    assert tree(tmp_path / "out") == {name: FILES[name] for name in CHOSEN}
    assert hub.resolves == before + 1


async def test_a_cache_without_links(world: World, hub: Hub, cache: Path, tmp_path: Path) -> None:
    """As where the file system has none: copies in the snapshot."""
    path = next((cache / "models--org--name/snapshots").iterdir()) / "config.json"
    data, target = path.read_bytes(), path.resolve()
    path.unlink()
    target.unlink()
    path.write_bytes(data)
    before = hub.resolves
    assert (await world.contents())["config.json"] == data
    assert hub.resolves == before


async def refused(world: World, kind: type[WeightdError], text: str) -> WeightdError:
    with pytest.raises(WeightdError) as e:
        await world.contents(text)
    assert type(e.value) is kind, e.value
    assert e.value.remedy
    return e.value


async def test_offline(world: World, repo: Repo, hub: Hub, cache: Path, tmp_path: Path) -> None:
    asked = len(hub.requests)
    world.home = world.home._replace(offline=True)
    commit = repo.refs["refs/heads/main"]
    for ref in ("hf://org/name", f"hf://org/name@{commit}", f"hf://org/name@{commit[:8]}"):
        manifest = await world.resolve(ref)
        assert manifest.revision == commit
        assert {f.path: await world.read(f) for f in manifest.files} == {name: FILES[name] for name in CHOSEN}
    by_path = {f.path: f for f in manifest.files}
    assert by_path["model.safetensors"].digest == f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
    assert by_path["config.json"].git_id == blob_id(FILES["config.json"])
    error = await refused(world, NotInCache, "hf://org/name@v2")
    assert "HF_HUB_OFFLINE" in error.remedy
    assert str(cache) in error.message
    assert "It has main" in (await refused(world, NotInCache, "hf://org/name@mian")).remedy
    await refused(world, NotInCache, "hf://org/other")
    await refused(world, SourceNotFound, "hf://org/name/nothing.json")
    files = await export(world, tmp_path / "out")
    assert {f.verification for f in files.values()} == {Verification.SHA256, Verification.GIT}
    assert len(hub.requests) == asked


async def test_offline_by_the_configuration(world: World, hub: Hub, cache: Path) -> None:
    asked = len(hub.requests)
    world.options = msgspec.structs.replace(world.options, offline=True)
    assert set(await world.contents()) == set(CHOSEN)
    assert len(hub.requests) == asked
    world.options = msgspec.structs.replace(world.options, cache="off")
    assert "hf.cache" in (await refused(world, NotInCache, "hf://org/name")).remedy
    world.home = world.home._replace(offline=True)
    world.options = msgspec.structs.replace(world.options, offline=False)
    assert set(await world.contents()) == set(CHOSEN)


async def test_offline_a_wrong_blob_is_an_error(world: World, cache: Path, tmp_path: Path) -> None:
    blob(cache, "config.json").write_bytes(bytes(len(FILES["config.json"])))
    world.home = world.home._replace(offline=True)
    with pytest.raises(NotInCache, match=r"no sound config\.json") as e:
        await export(world, tmp_path / "out")
    assert e.value.file == "config.json"
    assert not (tmp_path / "out/config.json").exists()


async def test_offline_what_is_there_in_part(world: World, cache: Path) -> None:
    blob(cache, "model.safetensors").unlink()
    world.home = world.home._replace(offline=True)
    world.options = msgspec.structs.replace(world.options, exclude=("*.bin",))
    assert (await refused(world, NotInCache, "hf://org/name")).file == "model.safetensors"


@pytest.mark.parametrize("target", ["/etc/hostname", "../../../../elsewhere"])
async def test_links_that_lead_out_of_it_are_not_followed(
    world: World, cache: Path, tmp_path: Path, target: str
) -> None:
    (tmp_path / "elsewhere").write_bytes(b"secret")
    snapshot = next((cache / "models--org--name/snapshots").iterdir())
    (snapshot / "leak.txt").symlink_to(target)
    world.home = world.home._replace(offline=True)
    assert set(await world.contents()) == set(CHOSEN)


async def test_a_hub_that_lies(world: World, hub: Hub, tmp_path: Path) -> None:
    """Of a plain file its git id, of one in LFS its SHA-256 is not that of the bytes."""
    repo = hub.repo("org/lies")
    good = repo.commit({"config.json": b"{}", "model.safetensors": WEIGHTS})
    for name, kind in (("config.json", GitIdMismatch), ("model.safetensors", DigestMismatch)):
        file = repo.commits[good].files[name]
        wrong = HubFile(file.content, "f" * 40 if file.sha256 is None else file.sha1, "f" * 64 if file.sha256 else None)
        repo.commit({"config.json": b"{}", "model.safetensors": WEIGHTS, name: wrong})
        with pytest.raises(Corruption) as e:
            await export(world, tmp_path / name, "hf://org/lies")
        assert type(e.value) is kind
        assert e.value.file == name
        assert not list((tmp_path / name).glob("*"))


async def test_what_comes_right_the_second_time(world: World, repo: Repo, hub: Hub, tmp_path: Path) -> None:
    size = len(FILES["config.json"])
    wrong = Fault(status=206, body=bytes(size), headers={"Content-Range": f"bytes 0-{size - 1}/{size}"})
    hub.fault("api/resolve-cache/*/config.json", wrong, times=1)
    files = await export(world, tmp_path / "out")
    assert files["config.json"].repaired
    assert tree(tmp_path / "out")["config.json"] == FILES["config.json"]


async def test_who_may_not_read_it(world: World, hub: Hub, cache: Path) -> None:
    """Root may read everything, so a link in a circle stands for it."""
    path = blob(cache, "config.json")
    path.unlink()
    path.symlink_to(path)
    before = hub.resolves
    try:
        assert await world.contents() == {name: FILES[name] for name in CHOSEN}
    except AccessDenied as e:
        pytest.fail(str(e))
    assert hub.resolves == before + 1
