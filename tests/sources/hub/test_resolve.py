"""A ref becomes a commit's files, with what names their bytes."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest

from tests.sources.hub.world import CHOSEN, FILES, World
from tests.support.hub import Hub, Mirror
from tests.support.hub_repos import Repo, blob_id
from tests.support.origin import Origin
from weightd.core.errors import ManifestError, SelectionAmbiguous, SourceNotFound, SourceUnavailable
from weightd.core.refs import parse_ref
from weightd.sources.asker import Told
from weightd.sources.hub_api import _next
from weightd.sources.hub_errors import Asked


async def test_a_repository(world: World, repo: Repo) -> None:
    manifest = await world.resolve()
    assert [f.path for f in manifest.files] == CHOSEN
    assert manifest.revision == repo.refs["refs/heads/main"]
    assert (manifest.ref, manifest.format) == ("hf://org/name", "safetensors")
    for file in manifest.files:
        data = FILES[file.path]
        assert file.size == len(data)
        assert file.url == f"hf://org/name@{manifest.revision}/{file.path}"
        lfs = file.path == "model.safetensors"
        assert file.digest == (f"sha256:{hashlib.sha256(data).hexdigest()}" if lfs else None)
        assert file.git_id == ("" if lfs else blob_id(data))
        assert file.by_parts
    assert world.hub.resolves == 0


async def test_its_bytes(world: World, repo: Repo) -> None:
    assert await world.contents() == {name: FILES[name] for name in CHOSEN}
    assert world.hub.resolves == len(CHOSEN)
    assert len(world.hub.asked_of("api/resolve-cache/*")) == len(CHOSEN) - 1
    assert len(world.hub.cdn.requests) == 1
    assert not world.hub.cdn.violations


@pytest.mark.parametrize("resolve_cache", [True, False])
async def test_one_question_for_all_parts(world: World, repo: Repo, resolve_cache: bool) -> None:
    world.hub.resolve_cache = resolve_cache
    manifest = await world.resolve()
    for file in manifest.files:
        for offset in range(1, 20, 2):
            reader = world.sources[-1].reader(file)
            reader.start(offset % file.size, 1)
            assert reader.readinto(memoryview(bytearray(1))) == 1
            reader.finish()
            reader.close()
    asked = [r for r in world.hub.requests if r.headers.get("range") == "bytes=0-0" and "/resolve/" in r.path]
    assert len(asked) == len(CHOSEN)


@pytest.mark.parametrize("revision", ["v1", "fp16", "refs/pr/1", "refs%2Fpr%2F1", "a%2Fb", "commit", "short"])
async def test_revisions(world: World, repo: Repo, revision: str) -> None:
    old = repo.commit({"old.txt": b"old"}, branch="old")
    repo.tag("v1", old)
    for branch in ("fp16", "refs/pr/1", "a/b"):
        repo.branch(branch, old)
    with repo.lock:
        repo.refs["refs/pr/1"] = old
    repo.commit({"model.safetensors": b"other"})
    named = {"commit": old, "short": old[:9]}.get(revision, revision)
    # The branch "old" has one file, and no weights.
    manifest = await world.resolve(f"hf://org/name@{named}/old.txt")
    assert (manifest.revision, manifest.files[0].path) == (old, "old.txt")
    assert await world.read(manifest.files[0]) == b"old"


async def test_a_commit_stays_what_it_is(world: World, repo: Repo) -> None:
    first = await world.resolve()
    repo.commit({"config.json": b"changed", "model.safetensors": b"changed"})
    second = await world.resolve()
    assert first.revision != second.revision
    assert [await world.read(f) for f in first.files] == [FILES[name] for name in CHOSEN]
    changed = {"config.json", "model.safetensors"}
    for old, new in zip(first.files, second.files, strict=True):
        assert (old.source_key == new.source_key) == (old.path not in changed)


async def test_pages(world: World) -> None:
    world.hub.page_size = 7
    repo = world.hub.repo("org/name")
    files = {f"deep/{n % 5}/f{n:03}.json": str(n).encode() for n in range(60)}
    repo.commit({**files, "model.safetensors": b"x"})
    assert await world.contents() == {**files, "model.safetensors": b"x"}
    assert len(world.hub.asked_of("api/models/org/name/tree/*")) == (60 + 1 + 6 + 6) // 7


async def test_a_list_is_asked_for_once(world: World, repo: Repo) -> None:
    source = world.source
    await source.resolve(parse_ref("hf://org/name"))
    await source.resolve(parse_ref("hf://org/name?include=*.bin"))
    assert len(world.hub.asked_of("api/models/org/name/tree/*")) == 1
    assert len(world.hub.asked_of("api/models/org/name/revision/*")) == 2


async def test_names_are_quoted(world: World) -> None:
    names = ["a file +%41.json", "wörds/ünï.json", "q?x=1&y#z.json", "model.safetensors"]
    world.hub.repo("org/name").commit({name: name.encode() for name in names})
    assert await world.contents() == {name: name.encode() for name in names}


async def test_a_name_of_one_word(world: World) -> None:
    world.hub.repo("gpt2").commit(FILES)
    assert set(await world.contents("hf://gpt2")) == set(CHOSEN)
    assert set(await world.contents("hf://gpt2@main/config.json")) == {"config.json"}


async def test_include_and_exclude(world: World, repo: Repo) -> None:
    assert set(await world.contents("hf://org/name?include=*.bin&include=onnx/")) == {
        "pytorch_model.bin",
        "onnx/deep/model.onnx",
    }
    found = await world.contents("hf://org/name?exclude=*.safetensors&exclude=README*")
    assert set(found) == {"config.json", "tokenizer.json", "pytorch_model.bin"}
    with pytest.raises(SourceNotFound, match="matches") as e:
        await world.resolve("hf://org/name?include=*.gguf")
    assert e.value.ref == "hf://org/name?include=*.gguf"


async def test_patterns_of_the_configuration(world: World, repo: Repo) -> None:
    """For refs that have none themselves."""
    world.options = msgspec.structs.replace(world.options, include=("*.bin", "*.json"), exclude=("tokenizer*",))
    assert set(await world.contents()) == {"config.json", "pytorch_model.bin"}
    assert set(await world.contents("hf://org/name?include=README*")) == {"README.md"}
    assert set(await world.contents("hf://org/name?exclude=*.bin")) == set(CHOSEN)
    assert set(await world.contents("hf://org/name/tokenizer.json")) == {"tokenizer.json"}


async def test_a_folder_of_it(world: World) -> None:
    files = {"unet/config.json": b"{}", "unet/m.safetensors": b"m", "unet/deep/x.json": b"x", "vae/m.safetensors": b"v"}
    world.hub.repo("org/name").commit(files)
    for ref in ("hf://org/name/unet", "hf://org/name@main/unet/"):
        found = await world.contents(ref)
        assert found == {"config.json": b"{}", "m.safetensors": b"m", "deep/x.json": b"x"}
    with pytest.raises(SourceNotFound, match="une"):
        await world.resolve("hf://org/name/une")


async def test_an_index_says_which_shards(world: World, repo: Repo) -> None:
    shard = "model-00001-of-00001.safetensors"
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    repo.commit({"model.safetensors.index.json": index, shard: b"s", "stale-00001-of-00002.safetensors": b"s"})
    found = await world.contents()
    assert set(found) == {*CHOSEN, "model.safetensors.index.json", shard} - {"model.safetensors"}
    repo.commit({shard: None, "model.safetensors": None})
    with pytest.raises(SourceNotFound, match="names it") as e:
        await world.resolve()
    assert e.value.file == shard


async def test_no_weights(world: World) -> None:
    world.hub.repo("org/name").commit({"config.json": b"{}", "model.onnx": b"x"})
    with pytest.raises(SourceNotFound, match=r"no weights .* model\.onnx") as e:
        await world.resolve()
    assert "?include=" in e.value.remedy
    assert set(await world.contents("hf://org/name?include=*.onnx&include=*.json")) == {"config.json", "model.onnx"}


async def test_several_quantizations(world: World) -> None:
    world.hub.repo("org/name").commit({"m-Q4_K_M.gguf": b"4", "m-Q8_0.gguf": b"8"})
    with pytest.raises(SelectionAmbiguous, match="2 GGUF models") as e:
        await world.resolve()
    assert e.value.ref == "hf://org/name"
    assert await world.contents("hf://org/name?include=m-Q4_K_M*") == {"m-Q4_K_M.gguf": b"4"}


HOSTILE = ["../x.safetensors", "/etc/passwd", "a/../../b.json", "a\\b.json", "", "a//b.json", ".weightd-x", "a\nb.json"]


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_names(world: World, repo: Repo, name: str) -> None:
    repo.commit({}, extra=({"type": "file", "oid": "0" * 40, "size": 1, "path": name},))
    with pytest.raises(ManifestError) as e:
        await world.resolve()
    assert e.value.ref == "hf://org/name"
    assert e.value.remedy


@pytest.mark.parametrize(
    "entry",
    [
        {"oid": "nonsense"},
        {"oid": "0" * 40, "size": -1},
        {"oid": "0" * 40, "lfs": {"oid": "short", "size": 1, "pointerSize": 1}},
    ],
)
async def test_lists_that_lie(world: World, repo: Repo, entry: dict[str, object]) -> None:
    repo.commit({}, extra=({"type": "file", "size": 1, "path": "z.json", **entry},))
    with pytest.raises(ManifestError):
        await world.resolve()


async def test_what_is_no_hub(world: World) -> None:
    with Origin({"api/models/org/name/revision/main": b"<!doctype html>"}) as origin:
        world.home = world.home._replace(endpoint=origin.url().rstrip("/"))
        with pytest.raises(SourceUnavailable, match="no Hub's") as e:
            await world.resolve()
    assert "HF_ENDPOINT" in e.value.remedy


async def test_a_mirror(world: World, repo: Repo, hub: Hub) -> None:
    """It answers the API, and sends every file to the Hub by 308: which gets no token that is meant for the mirror."""
    hub.token("hf_mirror", "someone")
    with Mirror(hub) as mirror:
        world.home, world.token = world.home._replace(endpoint=mirror.endpoint), "hf_mirror"
        assert await world.contents() == {name: FILES[name] for name in CHOSEN}
    assert all("authorization" in r.headers for r in mirror.requests)
    assert not any("authorization" in r.headers for r in hub.requests)


async def test_a_commit_is_answered_by_itself(world: World, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub or mirror that names another is not believed."""
    first = repo.refs["refs/heads/main"]
    second = repo.commits[repo.commit({"config.json": b"[]"})]
    monkeypatch.setattr(repo, "find", lambda revision: second)
    with pytest.raises(SourceUnavailable, match="or another"):
        await world.resolve(f"hf://org/name@{first}")
    assert (await world.resolve(f"hf://org/name@{second.sha}")).revision == second.sha


async def test_a_mirror_whose_pages_name_the_hub(world: World, repo: Repo, hub: Hub) -> None:
    """Link is followed at the mirror, which alone has what the token is for."""
    hub.page_size = 3
    with Mirror(hub) as mirror:
        world.home = world.home._replace(endpoint=mirror.endpoint)
        assert [f.path for f in (await world.resolve()).files] == CHOSEN
        assert len([r for r in mirror.requests if "/tree/" in r.path]) == 3
    assert not hub.requests


@pytest.mark.parametrize(
    ("endpoint", "link", "following"),
    [
        ("https://h", '<https://h/api/x?cursor=a%2Fb>; rel="next"', "https://h/api/x?cursor=a%2Fb"),
        ("https://h", '</api/x?cursor=1>; rel="next"', "https://h/api/x?cursor=1"),
        ("https://m/hub", '<https://h/api/x>; rel="next"', "https://m/hub/api/x"),
        ("https://m/hub", '<https://m/hub/api/x>; rel="next"', "https://m/hub/api/x"),
        ("https://h", '<https://h/api/x>; rel="prev"', ""),
        ("https://h", "", ""),
    ],
)
def test_the_following_page(endpoint: str, link: str, following: str) -> None:
    told = Told(200, {"link": link}, b"", f"{endpoint}/api/first")
    assert _next(told, told.url, Asked(endpoint, "")) == following


def test_what_a_hub_told_shows_no_signature() -> None:
    told = Told(
        302, {"location": "https://cdn/x?Signature=s3cr3t"}, b"", "https://h/x", "https://cdn/x?Signature=s3cr3t"
    )
    assert "s3cr3t" not in repr(told)
