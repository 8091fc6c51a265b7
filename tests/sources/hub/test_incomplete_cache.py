"""Without the network: whether a model in the cache of the Hub's client is all there."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from tests.sources.hub.world import FILES, WEIGHTS, World
from tests.support.hub_repos import Repo
from weightd.core.errors import NotInCache

SHARDS = {f"model-{i:05}-of-00003.safetensors": WEIGHTS[i:] for i in range(1, 4)}


@pytest.fixture(autouse=True)
def _client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


def download(world: World, cache: Path, *, trees: bool, patterns: list[str] | None = None) -> None:
    """As a user would, who then has no network."""
    from huggingface_hub import close_session

    snapshot_download("org/name", endpoint=world.hub.endpoint, cache_dir=cache, token=False, allow_patterns=patterns)
    close_session()
    for tree in cache.glob("*/trees/*.json"):
        if not trees:
            tree.unlink()
    world.home = world.home._replace(cache=str(cache), offline=True)
    world.hub.stop()


@pytest.mark.parametrize("trees", [True, False])
async def test_all_of_it(world: World, repo: Repo, tmp_path: Path, trees: bool) -> None:
    download(world, tmp_path / "hub", trees=trees)
    chosen = ("README.md", "config.json", "model.safetensors", "tokenizer.json")
    assert await world.contents() == {name: FILES[name] for name in chosen}
    online = repo.refs["refs/heads/main"]
    assert (await world.resolve()).revision == online


async def test_with_the_clients_list_weights_that_are_missing_are_missed(
    world: World, repo: Repo, tmp_path: Path
) -> None:
    """Those of another format do not stand in for them."""
    download(world, tmp_path / "hub", trees=True, patterns=["*.json", "*.bin"])
    with pytest.raises(NotInCache) as e:
        await world.resolve()
    assert e.value.file == "model.safetensors"
    assert e.value.remedy
    assert await world.contents("hf://org/name?include=*.json") == {
        name: data for name, data in FILES.items() if name.endswith(".json")
    }
    with pytest.raises(NotInCache):
        await world.resolve("hf://org/name/README.md")


async def test_what_no_loader_needs_may_be_missing(
    world: World, repo: Repo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """vLLM, for one, downloads no README."""
    download(world, tmp_path / "hub", trees=True, patterns=["*.json", "*.safetensors"])
    with caplog.at_level("INFO", "weightd.sources"):
        assert sorted(await world.contents()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert "not in the cache: README.md" in caplog.text


@pytest.mark.parametrize("trees", [True, False])
async def test_a_shard_that_is_missing(world: World, repo: Repo, tmp_path: Path, trees: bool) -> None:
    repo.commit({"model.safetensors": None, "pytorch_model.bin": None, **SHARDS})
    download(world, tmp_path / "hub", trees=trees, patterns=["*.json", "*-00001-*", "*-00003-*"])
    with pytest.raises(NotInCache) as e:
        await world.resolve()
    assert e.value.file == "model-00002-of-00003.safetensors"
    first = "model-00001-of-00003.safetensors"
    assert await world.contents("hf://org/name?include=*-00001-*") == {first: SHARDS[first]}


@pytest.mark.parametrize("text", ["{", '{"format_version": 2, "files": {}}', '{"format_version": 1, "files": {}}'])
async def test_a_list_that_says_nothing(world: World, repo: Repo, tmp_path: Path, text: str) -> None:
    download(world, tmp_path / "hub", trees=True)
    for tree in (tmp_path / "hub").glob("*/trees/*.json"):
        tree.write_text(text)
    assert len(await world.contents()) == 4
