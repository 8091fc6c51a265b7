"""The scripted Hub speaks the Hub's protocol: the unmodified huggingface_hub client takes its answers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub import close_session as close_client

from tests.support.hub import Hub
from tests.support.hub_repos import Repo, blob_id

WEIGHTS = random.Random(1).randbytes(300_000)
FILES = {
    "config.json": b'{"model_type": "test"}',
    "README.md": b"# A model\n",
    "model.safetensors": WEIGHTS,
    "onnx/deep/model.onnx": WEIGHTS[:1000],
    "a file +%41.txt": "wörds".encode(),
}


@pytest.fixture(autouse=True)
def _client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield
    close_client()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def repo(hub: Hub) -> Repo:
    repo = hub.repo("org/name")
    repo.commit(FILES)
    return repo


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)


def fetch(hub: Hub, directory: Path, revision: str | None = None, token: str | bool = False) -> Path:
    """A snapshot made by the client."""
    found = snapshot_download(
        "org/name", revision=revision, endpoint=hub.endpoint, cache_dir=directory, token=token, max_workers=2
    )
    return Path(found)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resolve_cache", [True, False])
def test_snapshot_is_identical(hub: Hub, repo: Repo, tmp_path: Path, resolve_cache: bool) -> None:
    hub.resolve_cache = resolve_cache
    snapshot = fetch(hub, tmp_path)
    assert contents(snapshot) == FILES
    blobs = {path.name for path in (tmp_path / "models--org--name/blobs").iterdir()}
    lfs = {hashlib.sha256(FILES[name]).hexdigest() for name in ("model.safetensors", "onnx/deep/model.onnx")}
    assert blobs == lfs | {blob_id(FILES[name]) for name in ("config.json", "README.md", "a file +%41.txt")}
    assert len(hub.cdn.requests) == 2
    assert not hub.cdn.violations
