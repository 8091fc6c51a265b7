"""`weightd link`"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from tests.cli.conftest import MODEL, Cli
from tests.daemon.process import Served
from tests.support.hub_repos import blob_id
from tests.support.origin import Origin
from tests.support.serving import run_script
from weightd import Client
from weightd.cli.link import link_model
from weightd.client.types import ModelInfo
from weightd.core.errors import InvalidArgument, NotFound, RefSyntax

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OFFLINE = """if True:
    import os, sys
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": sys.argv[1], "HF_HUB_DISABLE_TELEMETRY": "1"}
    from huggingface_hub import snapshot_download
    print(snapshot_download("org/name"))"""


@pytest.fixture
def held(served: Served, host: Cli, origin: Origin) -> ModelInfo:
    """What the daemon says of a model of the Hub: a file of which the source gave the SHA-256, as of one in LFS."""
    ref = origin.url("m/model.safetensors")
    assert host("fetch", ref, "--sha256", hashlib.sha256(MODEL).hexdigest()).code == 0
    with Client(str(served.socket)) as client:
        return msgspec.structs.replace(client.model(ref), ref="hf://org/name", revision=COMMIT)


def test_links_to_the_blobs_of_a_daemon(served: Served, held: ModelInfo, tmp_path: Path) -> None:
    made = link_model(held, served.state_dir, tmp_path)
    (file,) = held.files
    blob = tmp_path / "models--org--name/blobs" / file.digest.removeprefix("sha256:")
    hard = os.stat(served.state_dir).st_dev == os.stat(tmp_path).st_dev
    assert (made.hard, made.symbolic) == ((1, 0) if hard else (0, 1))
    assert blob.is_symlink() != hard
    assert Path(run_script(OFFLINE, tmp_path).stdout.strip(), "model.safetensors").read_bytes() == MODEL


def test_file_outside_of_lfs(served: Served, host: Cli, origin: Origin, tmp_path: Path) -> None:
    ref = origin.url("m/config.json")
    assert host("fetch", ref).code == 0
    with Client(str(served.socket)) as client:
        model = client.model(ref)
    files = tuple(msgspec.structs.replace(f, git_id=blob_id(b"{}")) for f in model.files)
    model = msgspec.structs.replace(model, ref="hf://org/name@v1", revision=COMMIT, files=files)
    link_model(model, served.state_dir, tmp_path)
    assert [blob.name for blob in (tmp_path / "models--org--name/blobs").iterdir()] == [blob_id(b"{}")]
    assert (tmp_path / "models--org--name/refs/v1").read_text() == COMMIT


@pytest.mark.parametrize("ref", ["hf://org/name/unet", "hf://org/name@main/model.safetensors", "bench"])
def test_not_a_whole_repository(served: Served, held: ModelInfo, tmp_path: Path, ref: str) -> None:
    with pytest.raises(RefSyntax):
        link_model(msgspec.structs.replace(held, ref=ref), served.state_dir, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_not_a_commit(served: Served, held: ModelInfo, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no commit"):
        link_model(msgspec.structs.replace(held, revision="0123456789abcdef"), served.state_dir, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_directory_that_is_gone(served: Served, held: ModelInfo, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        link_model(msgspec.structs.replace(held, directory=str(tmp_path / "none")), tmp_path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_not_of_the_hub(host: Cli, origin: Origin, tmp_path: Path) -> None:
    ref = origin.url("m/config.json")
    assert host("fetch", ref).code == 0
    result = host("link", ref, "--hf-cache", tmp_path / "cache", "--json")
    assert result.code == 3
    (error,) = result.objects
    assert error["kind"] == "RefSyntax"
    assert ref in result.err
    assert not (tmp_path / "cache").exists()


def test_usage(cli: Cli) -> None:
    assert cli("link", "hf://org/name").code == 2
    assert "--hf-cache" in cli("link", "--help").out


def test_model_that_is_not_held(host: Cli, tmp_path: Path) -> None:
    assert host("link", "https://127.0.0.1/none", "--hf-cache", tmp_path / "cache").code == 4
