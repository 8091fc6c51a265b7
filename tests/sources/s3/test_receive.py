"""Objects are read through addresses that are signed for a while, by the one receive path."""

from __future__ import annotations

import asyncio
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.sources.s3.conftest import Make, read, resolve
from tests.support.seaweed import ADMIN, DENIED, Keys, Seaweed
from weightd.core.credentials import Credential
from weightd.core.errors import (
    BucketNotFound,
    CredentialsMissing,
    CredentialsRejected,
    SourceChanged,
    SourceDenied,
    SourceNotFound,
    WeightdError,
)
from weightd.core.manifest import FileSpec
from weightd.sources.registry import Sources

DATA = bytes(range(256)) * 800


async def one(weed: Seaweed, source: Sources, bucket: str) -> FileSpec:
    weed.put(bucket, {"m/model.safetensors": DATA})
    return (await resolve(source, f"s3://{bucket}/m/")).files[0]


def address(source: Sources, file: FileSpec) -> str:
    return source._receiving.routes.where(file.url)


@pytest.mark.parametrize("processes", [0, 1])
async def test_one_signed_address_is_read_by_all(weed: Seaweed, make: Make, admin: None, processes: int) -> None:
    source = make(weed.endpoint, processes=processes)
    file = await one(weed, source, "signed")
    assert await read(source, file) == DATA
    first = address(source, file)
    query = parse_qs(urlsplit(first).query)
    assert query["X-Amz-Expires"] == ["3600"]
    assert query["X-Amz-SignedHeaders"] == ["host"], "nothing else is to be sent"
    assert await read(source, file) == DATA
    assert address(source, file) == first
    assert "Signature" not in repr(source.reader(file)) + repr(file) + file.url


async def test_an_address_that_is_refused_is_renewed(weed: Seaweed, make: Make, admin: None) -> None:
    """It ended at the server, although our clock says that it is good."""
    source = make(weed.endpoint)
    file = await one(weed, source, "refused")
    assert await read(source, file) == DATA
    first = address(source, file)
    old = first.replace("X-Amz-Expires=3600", "X-Amz-Expires=3601")
    source._receiving.routes.learned(file.url, old)
    assert await read(source, file) == DATA
    assert address(source, file) != old


async def test_an_address_of_a_short_life_is_renewed(
    weed: Seaweed, make: Make, admin: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightd.sources.s3_store.LIFE_S", 3)
    source = make(weed.endpoint)
    file = await one(weed, source, "short-lived")
    assert await read(source, file) == DATA
    first = address(source, file)
    assert "X-Amz-Expires=3&" in first
    await asyncio.to_thread(until_refused, first)
    assert await read(source, file) == DATA
    assert address(source, file) != first


def until_refused(url: str) -> None:
    while True:
        try:
            with urllib.request.urlopen(url) as answer:
                answer.read()
        except urllib.error.HTTPError as e:
            e.close()
            return


async def test_it_changes_meanwhile(weed: Seaweed, make: Make, admin: None) -> None:
    source = make(weed.endpoint)
    file = await one(weed, source, "changing")
    weed.put("changing", {"m/model.safetensors": DATA[::-1]})
    with pytest.raises(SourceChanged):
        await read(source, file)


async def refused(source: Sources, file: FileSpec) -> WeightdError:
    with pytest.raises(WeightdError) as e:
        await read(source, file)
    assert "s3cr3t" not in str(e.value)
    assert "X-Amz" not in str(e.value)
    assert e.value.file == "model.safetensors"
    return e.value


async def test_why_an_address_is_refused(weed: Seaweed, make: Make, use: Callable[[Keys], None]) -> None:
    """The receive path sees 403 and 404; what is asked then says more."""
    use(ADMIN)
    good = make(weed.endpoint)
    file = await one(weed, good, "refusing")
    for keys, kind, words in (
        (DENIED, SourceDenied, "AccessDenied"),
        (Keys(ADMIN.id, "wrong-s3cr3t"), CredentialsRejected, "SignatureDoesNotMatch"),
        (Keys("NOBODYSKEY", "wrong-s3cr3t"), CredentialsRejected, "InvalidAccessKeyId"),
    ):
        use(keys)
        e = await refused(make(weed.endpoint), file)
        assert type(e) is kind, e
        assert words in e.message
    weed.client().delete_object(Bucket="refusing", Key="m/model.safetensors")
    assert type(await refused(good, file)) is SourceNotFound
    weed.client().delete_bucket(Bucket="refusing")
    assert type(await refused(good, file)) is BucketNotFound


async def test_keys_by_pattern_and_their_replacement(weed: Seaweed, make: Make, tmp_path: Path) -> None:
    """A file is read when its secret is needed: one that was replaced is used from then on."""
    weed.put("by-pattern", {"m/model.safetensors": DATA})
    secret = tmp_path / "secret"
    rule = Credential("s3://by-pattern/*", access_key_id=ADMIN.id, secret_access_key_file=str(secret))
    source = make(weed.endpoint, (rule, Credential("s3://public/*", anonymous=True)))
    with pytest.raises(CredentialsMissing, match="cannot be read: No such file"):
        await resolve(source, "s3://by-pattern/m/")
    secret.write_text("\n")
    with pytest.raises(CredentialsMissing, match="holds no secret"):
        await resolve(source, "s3://by-pattern/m/")
    secret.write_text("wrong-s3cr3t\n")
    with pytest.raises(CredentialsRejected):
        await resolve(source, "s3://by-pattern/m/")
    secret.write_text(ADMIN.secret + "\n")
    (file,) = (await resolve(source, "s3://by-pattern/m/")).files
    assert await read(source, file) == DATA
    (file,) = (await resolve(source, "s3://public/there")).files
    assert await read(source, file) == b"it is"
    assert address(source, file) == f"{weed.endpoint}/public/there"


async def test_no_secret_is_logged(weed: Seaweed, make: Make, admin: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        source = make(weed.endpoint)
        file = await one(weed, source, "logged")
        assert await read(source, file) == DATA
    assert "s3cr3t" not in caplog.text
    assert "Signature=" not in caplog.text
