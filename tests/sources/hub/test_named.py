"""Models of the configuration whose source is a Hub."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.sources.hub.world import CHOSEN, FILES, WEIGHTS
from tests.support.hub import Hub
from tests.support.hub_repos import Repo
from weightd.core.errors import DigestMismatch, SizeMismatch, SourceNotFound
from weightd.core.manifest import Manifest
from weightd.core.models import NamedFile, NamedModel
from weightd.core.refs import parse_ref
from weightd.sources.hub_access import HubOptions
from weightd.sources.registry import SourceOptions, Sources

SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
async def make(hub: Hub, tmp_path: Path) -> AsyncIterator[Callable[[NamedModel], Sources]]:
    made: list[Sources] = []
    token = tmp_path / "token"
    token.write_text("hf_" + "a" * 30)
    hub.token("hf_" + "a" * 30, "alice")

    def sources(model: NamedModel) -> Sources:
        options = HubOptions(endpoint=hub.endpoint, cache="off", offline=False, token_file=str(token))
        made.append(Sources(SourceOptions(hub=options, models={"mine": model})))
        return made[-1]

    yield sources
    for one in made:
        await one.close()


async def resolved(sources: Sources) -> Manifest:
    return await sources.resolve(parse_ref("mine"))


async def test_a_repository(make: Callable[[NamedModel], Sources], repo: Repo) -> None:
    manifest = await resolved(make(NamedModel("hf://org/name")))
    assert [f.path for f in manifest.files] == CHOSEN
    assert (manifest.ref, manifest.revision) == ("mine", repo.refs["refs/heads/main"])


async def test_one_of_its_files(make: Callable[[NamedModel], Sources], repo: Repo) -> None:
    manifest = await resolved(make(NamedModel("hf://org/name/model.safetensors", sha256=SHA256, size=len(WEIGHTS))))
    assert [(f.path, f.digest) for f in manifest.files] == [("model.safetensors", f"sha256:{SHA256}")]
    with pytest.raises(DigestMismatch):
        await resolved(make(NamedModel("hf://org/name/model.safetensors", sha256="0" * 64)))


@pytest.mark.parametrize("source", ["hf://org/name", "hf://org/name@main", "hf://word", "hf://word@main/"])
async def test_files_that_are_listed(make: Callable[[NamedModel], Sources], hub: Hub, repo: Repo, source: str) -> None:
    hub.repo("word").commit(FILES)
    config = NamedFile("config.json", sha256=hashlib.sha256(FILES["config.json"]).hexdigest())
    files = ("onnx/deep/model.onnx", config, NamedFile("model.safetensors", size=len(WEIGHTS)))
    manifest = await resolved(make(NamedModel(source, files=files)))
    assert [f.path for f in manifest.files] == ["config.json", "model.safetensors", "onnx/deep/model.onnx"]
    assert [f.digest is not None for f in manifest.files] == [True, True, True]
    name = "word" if "word" in source else "org/name"
    assert len(hub.asked_of(f"api/models/{name}/revision/*")) == 1
    assert len(hub.asked_of(f"api/models/{name}/tree/*")) == 1


async def test_what_is_given_has_to_hold(make: Callable[[NamedModel], Sources], repo: Repo) -> None:
    with pytest.raises(SizeMismatch):
        await resolved(make(NamedModel("hf://org/name", files=(NamedFile("config.json", size=1),))))
    with pytest.raises(SourceNotFound) as e:
        await resolved(make(NamedModel("hf://org/name", files=("nothing.json",))))
    assert e.value.file == "nothing.json"
    assert e.value.ref == "mine"
