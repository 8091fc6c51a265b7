"""How far a model was verified, by what its origin says of it: in every answer of the daemon and the command line."""

from __future__ import annotations

import base64
import hashlib
import zlib
from pathlib import Path

import pytest

from tests.e2e.host import Host, assert_refused, safetensors, weightd
from tests.support.origin import Fault, Origin
from weightd import AsyncClient, Client
from weightd.core.crc import Crc, CrcAlgorithm, encode_crc
from weightd.core.verification import Verification
from weightd.engine.crcs import crc_of

SIZE = 40 << 20
"""Three parts."""


def in_base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def says(kind: str, data: bytes) -> dict[str, str]:
    """What an origin answers of `data` beside the bytes."""
    sha = hashlib.sha256(data).digest()
    full = {"x-amz-request-id": "1", "x-amz-checksum-type": "FULL_OBJECT"}
    match kind:
        case "google":
            value = encode_crc(Crc(CrcAlgorithm.CRC32C, crc_of(CrcAlgorithm.CRC32C, memoryview(data))))
            return {"x-goog-hash": f"crc32c={value}", "X-Goog-Hash": f"md5={in_base64(bytes(16))}"}
        case "s3":
            return full | {"x-amz-checksum-crc32": in_base64(zlib.crc32(data).to_bytes(4, "big"))}
        case "s3 sha256":
            return full | {"x-amz-checksum-sha256": in_base64(sha)}
        case "composite":
            return {"x-amz-request-id": "1", "x-amz-checksum-crc32": "AAAAAA==-3", "x-amz-checksum-type": "COMPOSITE"}
        case "digest":
            return {"Repr-Digest": f"sha-256=:{in_base64(sha)}:"}
        case _:
            return {"Content-Digest": f"sha-256=:{in_base64(bytes(32))}:"}


LEVELS = {
    "google": Verification.CRC,
    "s3": Verification.CRC,
    "s3 sha256": Verification.SHA256,
    "composite": Verification.SIZE,
    "digest": Verification.SHA256,
    "nothing": Verification.SIZE,
}


def served(kind: str, origin: Origin) -> tuple[str, bytes]:
    """A new file that the origin says this of: its name, its bytes."""
    name = f"{kind.replace(' ', '-')}.safetensors"
    data = safetensors(SIZE, kind.encode())
    origin.put(name, data)
    origin.fault(name, Fault(headers=says(kind, data)))
    return name, data


@pytest.mark.parametrize("kind", LEVELS)
def test_what_the_origin_says(kind: str, host: Host, origin: Origin) -> None:
    name, data = served(kind, origin)
    with Client(host.socket) as client:
        assert client.fetch(origin.url(name)).verification is LEVELS[kind]
        with client.acquire(origin.url(name)) as lease:
            assert lease.verification is lease.files[name].verification is LEVELS[kind]
            assert lease["t"].tobytes() == data[-SIZE:]


async def test_a_crc_is_in_every_answer(host: Host, origin: Origin, tmp_path: Path) -> None:
    name, data = served("google", origin)
    ref, text, word, level = origin.url(name), "crc verified", "crc", Verification.CRC
    fetched = host.cli("fetch", ref)
    assert fetched.code == 0, fetched
    assert text in fetched.out
    for command in ("ls", "inspect", "verify"):
        ended = host.cli(command, *([ref] if command != "ls" else []))
        assert [text in line for line in ended.out.splitlines() if line.startswith(ref)] == [True], ended
    (model,) = [m for m in host.cli("ls", "--json").objects if m["ref"] == ref]
    (inspected,) = host.cli("inspect", ref, "--json").objects
    check = host.cli("verify", ref, "--json").objects[0]
    for answer in (model, model["files"][0], inspected, inspected["files"][0], check):
        assert answer["verification"] == word
    with Client(host.socket) as client, client.acquire(ref) as lease:
        assert lease.verification is lease.files[name].verification is level
        (found,) = [m for m in client.models() if m.ref == ref]
        assert found.verification is found.files[0].verification is level
    async with AsyncClient(host.socket) as client, await client.acquire(ref) as lease:
        assert lease.verification is level
    exported = weightd("fetch", ref, "--to", tmp_path, "--json").objects[-1]
    assert exported["verification"] == exported["files"][0]["verification"] == word
    assert (tmp_path / name).read_bytes() == data


@pytest.mark.parametrize(
    ("kind", "error"), [("google", "CrcMismatch"), ("s3", "CrcMismatch"), ("digest", "DigestMismatch")]
)
def test_bytes_that_are_not_what_the_origin_says(
    kind: str, error: str, host: Host, origin: Origin, good: str, tmp_path: Path
) -> None:
    name = f"wrong-{kind}.safetensors"
    origin.put(name, safetensors(1 << 20, b"wrong"))
    origin.fault(name, Fault(headers=says(kind, b"other")))
    ref = origin.url(name)
    with host.unharmed(good):
        assert_refused(host.cli("fetch", ref, "--json"), 10, error, ref, name)
    assert_refused(weightd("fetch", ref, "--to", tmp_path, "--json"), 10, error, ref, name)
    assert list(tmp_path.iterdir()) == []
