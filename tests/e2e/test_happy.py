"""The main way, by command line and client: http, file and a named model, to the daemon and to a directory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.host import Host, assert_refused, daemon, safetensors, weightd
from tests.support.origin import Origin
from weightd import Client

SHARDS = {f"model-{i}.safetensors": safetensors(1 << 20, bytes([i])) for i in (1, 2)}
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
DATA = safetensors(3 << 20, b"happy")
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def files(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files at the origin and in a directory."""
    directory = tmp_path_factory.mktemp("files")
    for name, data in {"one.safetensors": DATA, "notes.bin": b"n" * 5000}.items():
        origin.put(name, data)
        (directory / name).write_bytes(data)
    return directory


@pytest.fixture(scope="module")
def named(origin: Origin, files: Path) -> Iterator[Host]:
    config = f'[models.tiny]\nsource = "{origin.url()}"\nfiles = [{{ path = "one.safetensors", sha256 = "{SHA}" }}]\n'
    with daemon(config=config) as host:
        yield host


@pytest.mark.parametrize("kind", ["http", "file", "name"])
def test_fetch_then_every_answer_about_it(kind: str, named: Host, origin: Origin, files: Path) -> None:
    ref = {"http": origin.url("one.safetensors"), "file": (files / "one.safetensors").as_uri(), "name": "tiny"}[kind]
    ended = named.cli("fetch", ref, "--json", *(["--sha256", SHA] if kind != "name" else []))
    assert ended.code == 0, ended
    model = ended.objects[-1]
    assert (model["type"], model["ref"], model["verification"]) == ("model", ref, "sha256")
    assert (model["shm"], model["nvme"], model["size"]) == ("resident", "resident", len(DATA))
    assert Path(model["directory"], "one.safetensors").read_bytes() == DATA
    assert ref in named.cli("ls").out
    inspected = named.cli("inspect", ref)
    assert inspected.code == 0, inspected
    assert "u8" in inspected.out.lower(), inspected
    with Client(named.socket) as client, client.acquire(ref) as lease:
        assert lease["t"].tobytes() == DATA[-(3 << 20) :]
        assert not lease["t"].flags.writeable
        assert client.status().leases == 1
    # Three refs, one blob: held once.
    assert sum(n.endswith(SHA) for n in named.held()) == 1


def test_to_a_directory_without_a_daemon(origin: Origin, files: Path, tmp_path: Path) -> None:
    ended = weightd("fetch", origin.url("one.safetensors"), "--to", tmp_path, "--sha256", SHA, socket=tmp_path / "no")
    assert ended.code == 0, ended
    assert [p.name for p in tmp_path.iterdir()] == ["one.safetensors"]
    assert (tmp_path / "one.safetensors").read_bytes() == DATA


@pytest.mark.parametrize("target", ["outside", "nowhere"])
def test_a_symlink_in_the_way(target: str, origin: Origin, files: Path, tmp_path: Path) -> None:
    to, outside = tmp_path / "to", tmp_path / "outside"
    to.mkdir()
    outside.write_bytes(b"mine")
    (to / "one.safetensors").symlink_to(tmp_path / target)
    ref = origin.url("one.safetensors")
    assert_refused(weightd("fetch", ref, "--to", to, "--json"), 6, "PathInTheWay", ref, "one.safetensors")
    assert outside.read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()
    assert [p.is_symlink() for p in to.iterdir()] == [True]


def test_a_wrong_digest_leaves_the_directory_empty(origin: Origin, files: Path, tmp_path: Path) -> None:
    ended = weightd("fetch", origin.url("one.safetensors"), "--to", tmp_path, "--sha256", "0" * 64, "--json")
    assert_refused(ended, 10, "DigestMismatch", origin.url("one.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_shards_and_its_directory(named: Host, origin: Origin, tmp_path: Path) -> None:
    for name, data in {**SHARDS, "model.safetensors.index.json": INDEX, "config.json": b"{}"}.items():
        origin.put(f"sharded/{name}", data)
    ref = origin.url("sharded/model.safetensors.index.json")
    ended = named.cli("fetch", ref, "--json")
    assert ended.code == 0, ended
    names = {f["path"] for f in ended.objects[-1]["files"]}
    assert names == {*SHARDS, "model.safetensors.index.json", "config.json"}
