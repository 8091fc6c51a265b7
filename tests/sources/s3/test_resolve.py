"""What an s3:// ref means on a real server."""

from __future__ import annotations

import random
from collections.abc import Callable
from urllib.parse import quote

import pytest

from tests.sources.s3.conftest import Make, fault, read, resolve
from tests.support.seaweed import ADMIN, DENIED, READER, Keys, Seaweed
from weightd.core.crc import Crc, CrcAlgorithm
from weightd.core.digest import digest_of
from weightd.core.errors import (
    AccessDenied,
    BucketNotFound,
    CredentialsMissing,
    CredentialsRejected,
    ManifestError,
    NotFound,
    SelectionAmbiguous,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
)
from weightd.engine.crcs import crc_of

MODEL = {"a/config.json": b"{}", "a/model.safetensors": b"weights", "a/README.md": b"#"}
MIB = 1 << 20
PARTS = [random.Random(n).randbytes(size) for n, size in enumerate((5 * MIB, 5 * MIB, 100))]


async def test_a_prefix_with_and_without_its_slash(weed: Seaweed, make: Make, admin: None) -> None:
    weed.put("slashes", MODEL | {"ab/model.safetensors": b"another"})
    source = make(weed.endpoint)
    for ref in ("s3://slashes/a/", "s3://slashes/a"):
        manifest = await resolve(source, ref)
        assert [f.path for f in manifest.files] == ["README.md", "config.json", "model.safetensors"]
        assert (manifest.format, manifest.ref) == ("safetensors", ref)
    assert [f.path for f in (await resolve(source, "s3://slashes/ab/")).files] == ["model.safetensors"]


async def test_a_whole_bucket(weed: Seaweed, make: Make, admin: None) -> None:
    weed.put("whole-bucket", {"model.safetensors": b"x", "sub/": b"", "sub/tokenizer.json": b"{}"})
    for ref in ("s3://whole-bucket", "s3://whole-bucket/"):
        manifest = await resolve(make(weed.endpoint), ref)
        assert [f.path for f in manifest.files] == ["model.safetensors", "sub/tokenizer.json"]


async def test_a_listing_of_many_pages(weed: Seaweed, make: Make, admin: None) -> None:
    """SeaweedFS gives 1000 keys at a time, as S3 does."""
    names = {f"many/{n:05}.json": b"" for n in range(1100)}
    weed.put("pages", names | {"many/zz.safetensors": b"the last"})
    manifest = await resolve(make(weed.endpoint), "s3://pages/many/?include=*.safetensors&include=*999.json")
    assert [f.path for f in manifest.files] == ["00999.json", "zz.safetensors"]


async def test_more_objects_than_a_model_has(
    weed: Seaweed, make: Make, admin: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    weed.put("crowd", {f"m/{n}.json": b"" for n in range(12)})
    source = make(weed.endpoint)
    monkeypatch.setattr("weightd.sources.s3_store.MAX_LISTED", 11)
    e = await fault(source, "s3://crowd/m/")
    assert isinstance(e, ManifestError)
    assert "more than 11 objects" in e.message


async def test_include_and_exclude(weed: Seaweed, make: Make, admin: None) -> None:
    weed.put("chosen", {"m/a.Q4_K_M.gguf": b"4", "m/a.Q8_0.gguf": b"8", "m/config.json": b"{}"})
    source = make(weed.endpoint)
    assert isinstance(await fault(source, "s3://chosen/m/"), SelectionAmbiguous)
    manifest = await resolve(source, "s3://chosen/m/?include=*Q4*&include=*.json")
    assert [f.path for f in manifest.files] == ["a.Q4_K_M.gguf", "config.json"]
    manifest = await resolve(source, "s3://chosen/m/?exclude=*Q4*")
    assert [f.path for f in manifest.files] == ["a.Q8_0.gguf", "config.json"]
    assert isinstance(await fault(source, "s3://chosen/m/?include=*.none"), SourceNotFound)


async def test_versions(weed: Seaweed, make: Make, admin: None) -> None:
    """The newest is pinned by its version, and stays readable when it is newest no more."""
    weed.put("versions", {})
    client = weed.client()
    client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    old, new = (client.put_object(Bucket="versions", Key="k.bin", Body=b)["VersionId"] for b in (b"old", b"newer"))
    source = make(weed.endpoint)
    (file,) = (await resolve(source, "s3://versions/k.bin")).files
    assert file.url == f"s3://versions/k.bin?versionId={new}"
    (first,) = (await resolve(source, f"s3://versions/k.bin?versionId={old}")).files
    assert (first.size, first.url) == (3, f"s3://versions/k.bin?versionId={old}")
    client.put_object(Bucket="versions", Key="k.bin", Body=b"third")
    assert (await read(source, file), await read(source, first)) == (b"newer", b"old")
    e = await fault(source, "s3://versions/k.bin?versionId=none-such")
    assert isinstance(e, SourceNotFound)
    client.delete_object(Bucket="versions", Key="k.bin")
    assert isinstance(await fault(source, "s3://versions/k.bin"), SourceNotFound)
    assert await read(source, first) == b"old"


@pytest.mark.parametrize("key", ["a b+c.bin", "ü?#%2F&=.bin", "~!$'()*,;:@.bin", "deep/er/x.bin", "%zz.bin"])
async def test_keys_of_all_kinds(weed: Seaweed, make: Make, admin: None, key: str) -> None:
    weed.put("keys", {key: key.encode()})
    source = make(weed.endpoint)
    (file,) = (await resolve(source, f"s3://keys/{quote(key)}")).files
    assert file.path == key.rpartition("/")[2]
    assert await read(source, file) == key.encode()


async def test_what_an_upload_says_of_the_whole(weed: Seaweed, make: Make, admin: None) -> None:
    """Of an upload in parts its type says whether a checksum is of the whole; of one in one piece it always is."""
    weed.put("sums", {"plain.bin": b"plain"})
    client, whole = weed.client(), b"".join(PARTS)
    for algorithm in ("CRC32", "CRC32C", "CRC64NVME"):
        client.put_object(Bucket="sums", Key=f"{algorithm}.bin", Body=whole, ChecksumAlgorithm=algorithm)
        weed.put_parts("sums", f"parts-{algorithm}.bin", PARTS, algorithm, "FULL_OBJECT")
    client.put_object(Bucket="sums", Key="SHA256.bin", Body=b"plain", ChecksumAlgorithm="SHA256")
    weed.put_parts("sums", "parts-SHA256.bin", PARTS, "SHA256", "COMPOSITE")
    weed.put_parts("sums", "composite.bin", PARTS, "CRC32", "COMPOSITE")
    weed.put_parts("sums", "parts.bin", PARTS)
    source = make(weed.endpoint)
    files = {f.path: f for f in (await resolve(source, "s3://sums/?include=*")).files}
    for algorithm in CrcAlgorithm:
        expected = Crc(algorithm, crc_of(algorithm, memoryview(whole)))
        for prefix in ("", "parts-"):
            assert files[f"{prefix}{algorithm.value}.bin"].crc == expected, (prefix, algorithm)
    import hashlib

    assert files["SHA256.bin"].digest == digest_of(hashlib.sha256(b"plain").digest())
    for name in ("plain.bin", "parts.bin", "parts-SHA256.bin", "composite.bin"):
        # SeaweedFS lists parts without their checksums: nothing to be believed.
        assert (files[name].crc, files[name].digest) == (None, None), name
    assert {f.stored_part for n, f in files.items() if n.startswith("parts")} == {5 * MIB}
    assert files["plain.bin"].stored_part == files["CRC32.bin"].stored_part == 0
    assert await read(source, files["parts-CRC64NVME.bin"]) == whole


async def test_nothing_there(weed: Seaweed, make: Make, admin: None) -> None:
    weed.put("bare", {"there/x.json": b"{}"})
    source = make(weed.endpoint)
    for ref, kind, words in (
        ("s3://bare/nowhere/", SourceNotFound, "nothing below s3://bare/nowhere/"),
        ("s3://bare/there/", SourceNotFound, "no file of weights"),
        ("s3://bare/none.bin", SourceNotFound, "NoSuchKey"),
        ("s3://no-such-bucket/none.bin", BucketNotFound, "NoSuchBucket"),
        ("s3://no-such-bucket/none/", BucketNotFound, "NoSuchBucket"),
    ):
        e = await fault(source, ref)
        assert type(e) is kind, (ref, e)
        assert isinstance(e, NotFound)
        assert words in e.message
        assert e.ref == ref


@pytest.mark.parametrize("what", ["model.safetensors", ""])
@pytest.mark.parametrize(
    ("keys", "kind", "words"),
    [
        (DENIED, SourceDenied, "AccessDenied"),
        (Keys(ADMIN.id, "another-s3cr3t"), CredentialsRejected, "SignatureDoesNotMatch"),
        (Keys("NOBODYSKEY", "another-s3cr3t"), CredentialsRejected, "InvalidAccessKeyId"),
    ],
)
async def test_keys_that_do_not_open_it(
    weed: Seaweed, make: Make, use: Callable[[Keys], None], keys: Keys, kind: type, words: str, what: str
) -> None:
    weed.put("locked", {"m/model.safetensors": b"x"})
    use(keys)
    e = await fault(make(weed.endpoint), f"s3://locked/m/{what}")
    assert type(e) is kind
    assert isinstance(e, AccessDenied)
    assert words in e.message


async def test_who_may_not_list_finds_the_model_by_its_names(
    weed: Seaweed, make: Make, use: Callable[[Keys], None]
) -> None:
    weed.put("unlisted", {"m/model.safetensors": b"x", "m/config.json": b"{}", "m/other.json": b"{}"})
    use(READER)
    source = make(weed.endpoint)
    assert [f.path for f in (await resolve(source, "s3://unlisted/m/")).files] == ["config.json", "model.safetensors"]
    assert isinstance(await fault(source, "s3://unlisted/none/"), SourceDenied), "what was asked first is told"


async def test_no_credentials_at_all(weed: Seaweed, make: Make) -> None:
    weed.put("locked", {"m/model.safetensors": b"x"})
    e = await fault(make(weed.endpoint), "s3://locked/m/")
    assert type(e) is CredentialsMissing
    assert "anonymous = true" in e.remedy


async def test_anonymous(weed: Seaweed, make: Make) -> None:
    weed.put("public", {"m/model.safetensors": b"for all"})
    weed.put("locked", {"m/model.safetensors": b"x"})
    source = make(weed.endpoint, anonymous=True)
    (file,) = (await resolve(source, "s3://public/m/")).files
    assert await read(source, file) == b"for all"
    assert isinstance(await fault(source, "s3://locked/m/"), SourceDenied)


async def test_a_server_that_is_not_there(make: Make, admin: None) -> None:
    e = await fault(make("http://127.0.0.1:9"), "s3://bucket/m/")
    assert type(e) is SourceUnavailable
    assert "127.0.0.1:9" in e.message
    e = await fault(make("http://no-such-host.invalid"), "s3://bucket/m/")
    assert type(e) is SourceUnavailable
