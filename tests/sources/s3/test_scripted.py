"""What a server says rarely: another region, too many requests, a wrong clock, checksums of parts, hostile names."""

from __future__ import annotations

import asyncio
import base64
import datetime
import email.utils
import random
import re
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from awscrt import checksums

from tests.sources.s3.conftest import Make, fault, read, resolve
from tests.support.proxy import Proxy
from tests.support.scripted_s3 import Answer, Asked, ScriptedS3, error
from tests.support.seaweed import Keys
from tests.support.tls import make_certificate
from weightd.core.crc import Crc, CrcAlgorithm, encode_crc
from weightd.core.credentials import Credential
from weightd.core.errors import (
    ClockSkew,
    ConfigError,
    CredentialsExpired,
    CredentialsMissing,
    CredentialsRejected,
    InvalidArgument,
    ManifestError,
    Precondition,
    SourceChanged,
    SourceDenied,
    SourceUnavailable,
    WeightdError,
    WrongRegion,
)
from weightd.sources.connection import HttpOptions
from weightd.sources.proxies import Proxies
from weightd.sources.proxies import Proxy as ProxyAt
from weightd.sources.s3 import S3Source
from weightd.sources.urls import target

Use = Callable[[Keys], None]
DATA = bytes(range(256)) * 100
REF = "s3://bucket/m/model.safetensors"


@pytest.fixture
def server(scripted: ScriptedS3) -> ScriptedS3:
    scripted.put("bucket/m/model.safetensors", DATA)
    return scripted


async def test_who_asks_pays(server: ScriptedS3, make: Make) -> None:
    """The header is in what is signed, so it goes with every request, those of the receive path among them."""
    server.rule(lambda a: None if a.headers.get("x-amz-request-payer") == "requester" else error(403, "AccessDenied"))
    source = make(server.endpoint, requester_pays=True)
    (file,) = (await resolve(source, REF)).files
    assert await read(source, file) == DATA
    assert "x-amz-request-payer" in server.log[-1].query["X-Amz-SignedHeaders"]
    assert "requester_pays = true" in (await fault(make(server.endpoint), REF)).remedy
    pays = Credential("s3://bucket", requester_pays=True)
    assert await resolve(make(server.endpoint, (pays,)), REF)


@pytest.mark.parametrize(
    "answer",
    [
        error(400, "AuthorizationHeaderMalformed", "<Region>eu-far-1</Region>"),
        error(301, "PermanentRedirect", "<Bucket>bucket</Bucket>", {"x-amz-bucket-region": "eu-far-1"}),
    ],
    ids=["malformed", "redirect"],
)
async def test_the_bucket_is_in_another_region(server: ScriptedS3, make: Make, answer: Answer) -> None:
    """It is followed there, and addresses are signed for it at once."""

    def elsewhere(asked: Asked) -> Answer | None:
        signed = asked.headers.get("authorization", "") + asked.query.get("X-Amz-Credential", "")
        return None if "/eu-far-1/s3/" in signed else answer

    server.rule(elsewhere)
    source = make(server.endpoint)
    for ref in (REF, "s3://bucket/m/"):
        (file,) = (await resolve(source, ref)).files
        assert await read(source, file) == DATA
    wrong = [a for a in server.log if elsewhere(a) and "X-Amz-Credential" in a.query]
    assert wrong == []


async def test_a_region_that_is_not_told(server: ScriptedS3, make: Make) -> None:
    server.rule(lambda _: error(301, "PermanentRedirect"))
    e = await fault(make(server.endpoint), "s3://bucket/m/")
    assert type(e) is WrongRegion
    assert "Set region" in e.remedy


@pytest.mark.parametrize("ref", [REF, "s3://bucket/m/"])
async def test_an_endpoint_that_is_elsewhere(
    server: ScriptedS3, make: Make, monkeypatch: pytest.MonkeyPatch, ref: str
) -> None:
    """Nothing that was signed for one server, and no token of a session, is sent to another."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session-s3cr3t")
    with ScriptedS3() as other:
        there = f"{other.endpoint}/bucket/?X-Amz-Signature=s3cr3t"
        server.rule(lambda _: Answer(301, {"Location": there, "Content-Type": "text/html"}, b"<html>Moved"))
        e = await fault(make(server.endpoint), ref)
        assert other.log == []
    assert type(e) is InvalidArgument
    assert f"it redirects to {other.endpoint}" in e.message
    assert "s3.endpoint" in e.remedy


async def test_slow_down(server: ScriptedS3, make: Make) -> None:
    """It is asked again, and the receivers of this server are told."""
    source = make(server.endpoint)
    gate = source._receiving.pool.gates.of(target(server.endpoint).origin)
    before = gate.limit
    server.rule(lambda a: error(503, "SlowDown"), times=1)
    (file,) = (await resolve(source, REF)).files
    assert gate.limit == before // 2
    assert await read(source, file) == DATA
    server.rule(lambda a: error(503, "SlowDown", headers={"Retry-After": "7"}))
    e = await fault(source, "s3://bucket/m/")
    assert type(e) is SourceUnavailable
    assert e.retry_after == 7.0
    assert "SlowDown" in e.message


CODES: dict[str, tuple[int, type[WeightdError]]] = {
    "ExpiredToken": (400, CredentialsExpired),
    "InvalidToken": (400, CredentialsRejected),
    "InvalidAccessKeyId": (403, CredentialsRejected),
    "SignatureDoesNotMatch": (403, CredentialsRejected),
    "AllAccessDisabled": (403, SourceDenied),
    "InvalidObjectState": (403, Precondition),
    "InternalError": (500, SourceUnavailable),
    "InvalidRequest": (400, InvalidArgument),
    "PreconditionFailed": (412, SourceChanged),
}


@pytest.mark.parametrize("code", CODES)
async def test_what_a_server_says_is_an_error_of_its_kind(server: ScriptedS3, make: Make, code: str) -> None:
    """Whether it is asked by HEAD, whose answer has no body to say it, or otherwise; and never with its own text."""
    status, kind = CODES[code]
    more = "<AWSAccessKeyId>AKIA</AWSAccessKeyId><StringToSign>s3cr3t</StringToSign>"
    server.rule(lambda a: Answer(status) if a.method == "HEAD" else error(status, code, more))
    for ref in (REF, "s3://bucket/m/"):
        e = await fault(make(server.endpoint, http=HttpOptions(attempts=1)), ref)
        assert type(e) is kind, e
        assert status >= 500 or code in e.message


@pytest.mark.parametrize(("seconds", "words"), [(-7200, "ahead of"), (3600, "behind")])
async def test_a_wrong_clock(server: ScriptedS3, make: Make, seconds: int, words: str) -> None:
    def skewed(asked: Asked) -> Answer:
        date = email.utils.format_datetime(datetime.datetime.fromtimestamp(time.time() + seconds, datetime.UTC), True)
        return error(403, "RequestTimeTooSkewed", headers={"Date": date})

    server.rule(skewed)
    e = await fault(make(server.endpoint), "s3://bucket/m/")
    assert type(e) is ClockSkew
    told = re.search(r"clock is (\d+) s (\w+ ?\w*) the server's", e.message)
    assert told is not None, e.message
    assert abs(int(told[1]) - abs(seconds)) < 60
    assert told[2] == words
    assert "NTP" in e.remedy


async def test_the_session_token_of_an_address_has_expired(server: ScriptedS3, make: Make) -> None:
    """S3 answers 400 then, which says of an address that it is of no use."""
    source = make(server.endpoint)
    (file,) = (await resolve(source, REF)).files
    server.rule(lambda a: error(400, "ExpiredToken"))
    with pytest.raises(CredentialsExpired):
        await read(source, file)


async def test_who_may_not_name_versions_reads_the_newest(server: ScriptedS3, make: Make) -> None:
    """S3 has a right of its own for that. The ETag says whether it is still the one that was pinned."""
    server.put("bucket/v.bin", DATA, {"x-amz-version-id": "v1"})
    server.rule(lambda a: error(403, "AccessDenied") if "versionId" in a.query else None)
    source = make(server.endpoint)
    (file,) = (await resolve(source, "s3://bucket/v.bin")).files
    assert file.url == "s3://bucket/v.bin?versionId=v1"
    assert await read(source, file) == DATA
    server.put("bucket/v.bin", DATA[::-1], {"x-amz-version-id": "v2"})
    with pytest.raises(SourceChanged):
        await read(source, file)
    assert type(await fault(source, "s3://bucket/v.bin?versionId=v1")) is SourceDenied


HOSTILE = ["../x.safetensors", "a/../../x.safetensors", "/etc/x.safetensors", "a//x.safetensors", "./x.safetensors"]


@pytest.mark.parametrize("name", [*HOSTILE, "a\\x.safetensors", "a\x1fx.safetensors", ".weightd-x.safetensors"])
async def test_a_hostile_name_in_a_listing(server: ScriptedS3, make: Make, name: str) -> None:
    """As a model of such a bucket would be fetched: whoever may upload into it chooses the names."""
    server.put(f"bucket/m/{name}", b"evil")
    e = await fault(make(server.endpoint), "s3://bucket/m/?include=*")
    assert type(e) is ManifestError, e
    assert "a file name in the manifest" in e.message


async def test_what_changes_while_it_is_listed(server: ScriptedS3, make: Make) -> None:
    body = b"<ListBucketResult><Contents><Key>m/model.safetensors</Key><Size>3</Size><ETag>&quot;old&quot;</ETag>"
    listing = Answer(200, {"Content-Type": "application/xml"}, body + b"</Contents></ListBucketResult>")
    server.rule(lambda a: listing if "list-type" in a.query else None)
    e = await fault(make(server.endpoint), "s3://bucket/m/")
    assert type(e) is SourceChanged
    assert e.file == "model.safetensors"


async def test_an_object_that_is_stored_compressed(server: ScriptedS3, make: Make) -> None:
    server.put("bucket/m/model.safetensors", DATA, {"Content-Encoding": "gzip"})
    e = await fault(make(server.endpoint), REF)
    assert type(e) is ManifestError
    assert "Content-Encoding 'gzip'" in e.message


PIECES = [random.Random(n).randbytes(length) for n, length in enumerate((4096, 4096, 77))]
LIBRARY: dict[CrcAlgorithm, Callable[[bytes], int]] = {
    CrcAlgorithm.CRC32: checksums.crc32,
    CrcAlgorithm.CRC32C: checksums.crc32c,
}


def attributes(algorithm: CrcAlgorithm, *, page: int, asked: Asked) -> Answer:
    """As S3 answers GetObjectAttributes, `page` parts at a time."""
    marker = int(asked.headers.get("x-amz-part-number-marker", "0"))
    shown = list(enumerate(PIECES, 1))[marker : marker + page]
    tag = f"Checksum{algorithm.value}"
    parts = "".join(
        f"<Part><PartNumber>{n}</PartNumber><Size>{len(p)}</Size>"
        f"<{tag}>{encode_crc(Crc(algorithm, LIBRARY[algorithm](p)))}</{tag}></Part>"
        for n, p in shown
    )
    last = shown[-1][0] if shown else marker
    more = "true" if last < len(PIECES) else "false"
    body = (
        f"<GetObjectAttributesResponse><ObjectParts><PartsCount>3</PartsCount><IsTruncated>{more}</IsTruncated>"
        f"<NextPartNumberMarker>{last}</NextPartNumberMarker>{parts}</ObjectParts></GetObjectAttributesResponse>"
    )
    return Answer(200, {"Content-Type": "application/xml"}, body.encode())


@pytest.mark.parametrize("page", [1, 1000])
@pytest.mark.parametrize("algorithm", LIBRARY)
async def test_a_checksum_of_checksums_is_taken_apart(
    server: ScriptedS3, make: Make, algorithm: CrcAlgorithm, page: int
) -> None:
    """The parts' own are listed, fit what is said of the object, and make up the whole's."""
    raw = b"".join(base64.b64decode(encode_crc(Crc(algorithm, LIBRARY[algorithm](p)))) for p in PIECES)
    said = f"{encode_crc(Crc(algorithm, LIBRARY[algorithm](raw)))}-3"
    name = f"x-amz-checksum-{algorithm.value.lower()}"
    whole = b"".join(PIECES)
    server.put("bucket/c.bin", whole, {"ETag": '"abc-3"', name: said, "x-amz-checksum-type": "COMPOSITE"})
    server.rule(lambda a: attributes(algorithm, page=page, asked=a) if "attributes" in a.query else None)
    source = make(server.endpoint)
    (file,) = (await resolve(source, "s3://bucket/c.bin")).files
    assert file.crc == Crc(algorithm, LIBRARY[algorithm](whole))
    assert await read(source, file) == whole
    server.put("bucket/c.bin", whole, {"ETag": '"abd-3"', name: "AAAAAA==-3", "x-amz-checksum-type": "COMPOSITE"})
    (file,) = (await resolve(source, "s3://bucket/c.bin")).files
    assert file.crc is None, "the parts are not those of the object"


async def test_who_may_not_ask_for_the_parts_has_no_checksum(server: ScriptedS3, make: Make) -> None:
    said = {"x-amz-checksum-crc32": "AAAAAA==-3", "x-amz-checksum-type": "COMPOSITE", "ETag": '"abc-3"'}
    server.put("bucket/c.bin", DATA, said)
    server.rule(lambda a: error(403, "AccessDenied") if "attributes" in a.query else None)
    (file,) = (await resolve(make(server.endpoint), "s3://bucket/c.bin")).files
    assert file.crc is None


@pytest.mark.parametrize(
    "headers",
    [
        {"x-amz-checksum-crc32": "AAAAAA==", "x-amz-checksum-type": "COMPOSITE"},
        {"x-amz-checksum-crc32": "AAAAAA==", "ETag": '"abc-3"'},
        {"x-amz-checksum-sha256": "A" * 43 + "=", "ETag": '"abc-3"'},
        {"x-amz-checksum-sha256": "A" * 43 + "=-3", "x-amz-checksum-type": "FULL_OBJECT"},
    ],
)
async def test_a_checksum_that_may_not_be_of_the_whole_is_none(
    server: ScriptedS3, make: Make, headers: dict[str, str]
) -> None:
    server.put("bucket/c.bin", DATA, headers)
    (file,) = (await resolve(make(server.endpoint), "s3://bucket/c.bin")).files
    assert (file.crc, file.digest) == (None, None)


async def test_an_endpoint_with_a_path(server: ScriptedS3, make: Make) -> None:
    server.put("gate/s3/bucket/x.bin", DATA)
    source = make(server.endpoint + "/gate/s3")
    (file,) = (await resolve(source, "s3://bucket/x.bin")).files
    assert await read(source, file) == DATA


async def test_addressing_by_host_through_a_proxy(server: ScriptedS3, make: Make) -> None:
    """Only the proxy knows the hosts; both kinds of requests go through it."""
    server.put("x/y.bin", DATA)
    port = server.endpoint.rpartition(":")[2]
    with Proxy(basic="us er:pass/word", names={"bucket.s3.test": "127.0.0.1"}) as proxy:
        proxies = Proxies(ProxyAt("127.0.0.1", proxy.port, "us er", "pass/word"), {}, "")
        http = HttpOptions(connect_timeout=5, read_timeout=5, attempts=1, proxies=proxies)
        source = make(f"http://s3.test:{port}", http=http, addressing="virtual")
        (file,) = (await resolve(source, "s3://bucket/x/y.bin")).files
        asked = len(proxy.log)
        assert asked > 0
        assert await read(source, file) == DATA
        assert len(proxy.log) > asked
    assert {a.headers["host"] for a in server.log} == {f"bucket.s3.test:{port}"}


async def test_a_private_authority(make: Make, admin: None, tmp_path: Path) -> None:
    """The one of [http] ca_file, for both kinds of requests."""
    both = make_certificate(tmp_path / "both.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    with ScriptedS3(context) as server:
        server.put("bucket/m/model.safetensors", DATA)
        http = HttpOptions(connect_timeout=5, read_timeout=5, attempts=1, ca_file=str(both.with_suffix(".crt")))
        source = make(server.endpoint, http=http)
        (file,) = (await resolve(source, REF)).files
        assert await read(source, file) == DATA
        e = await fault(make(server.endpoint), REF)
        assert type(e) is SourceUnavailable
        assert "http.ca_file" in e.remedy


async def test_a_server_that_does_not_speak_s3(server: ScriptedS3, make: Make) -> None:
    server.rule(lambda a: Answer(200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><p>hello"))
    e = await fault(make(server.endpoint), "s3://bucket/m/")
    assert type(e) is SourceUnavailable
    assert "no answer of S3" in e.message


@pytest.mark.parametrize("options", [{"region": "no region"}, {"endpoint": "nowhere"}])
async def test_settings_that_make_no_request(make: Make, admin: None, options: dict[str, str]) -> None:
    given = {"endpoint": "http://127.0.0.1:9"} | options
    e = await fault(make(**given), "s3://bucket/m/")
    assert type(e) is ConfigError


class Door:
    """Lets `key` in, and no other."""

    def __init__(self, server: ScriptedS3, use: Use) -> None:
        self.key, self._use = "FIRSTKEY", use
        use(Keys(self.key, "a-s3cr3t"))
        server.rule(self._ask)

    def _ask(self, asked: Asked) -> Answer | None:
        signed = asked.headers.get("authorization", "") + asked.query.get("X-Amz-Credential", "")
        return None if self.key in signed else error(403, "InvalidAccessKeyId")

    def replace(self) -> None:
        self.key = "SECONDKEY"
        self._use(Keys(self.key, "a-s3cr3t"))


@pytest.mark.parametrize("ref", [REF, "s3://bucket/m/"])
async def test_credentials_that_are_replaced(server: ScriptedS3, make: Make, use: Use, ref: str) -> None:
    """While the daemon runs: it is neither started anew nor asked twice, nor does a fetch under way fail."""
    door, source = Door(server, use), make(server.endpoint)
    (file,) = (await resolve(source, ref)).files
    door.replace()
    assert len((await resolve(source, ref)).files) == 1
    assert await read(source, file) == DATA
    use(Keys("NOBODYSKEY", "a-s3cr3t"))
    door.key = "NONE"
    assert type(await fault(source, ref)) is CredentialsRejected


async def test_credentials_that_are_replaced_between_two_parts(server: ScriptedS3, make: Make, use: Use) -> None:
    door, source = Door(server, use), make(server.endpoint)
    (file,) = (await resolve(source, REF)).files
    assert await read(source, file) == DATA
    door.replace()
    assert await read(source, file) == DATA


async def test_credentials_that_come_late(
    server: ScriptedS3, make: Make, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    source = make(server.endpoint)
    for _ in range(2):
        assert type(await fault(source, REF)) is CredentialsMissing
    assert server.log == []
    use(Keys("FIRSTKEY", "a-s3cr3t"))
    (file,) = (await resolve(source, REF)).files
    assert await read(source, file) == DATA


async def test_clients_that_were_replaced_are_closed(server: ScriptedS3, make: Make, use: Use) -> None:
    """Keys of an hour are replaced ten thousand times in a year."""
    source = make(server.endpoint)
    await resolve(source, REF)
    server.rule(lambda a: error(403, "InvalidAccessKeyId"))
    for _ in range(5):
        assert type(await fault(source, REF)) is CredentialsRejected
    s3 = source._by_scheme["s3"]
    assert isinstance(s3, S3Source)
    assert s3._made is not None
    (made,) = s3._made._made.values()
    assert made.before is not None
    assert made.before.before is None


@pytest.mark.parametrize("token", ["", "<NextContinuationToken>same</NextContinuationToken>"], ids=["none", "same"])
async def test_a_list_that_does_not_go_on(server: ScriptedS3, make: Make, token: str) -> None:
    """Part of a model is none."""

    def cut(asked: Asked) -> Answer | None:
        whole = server._list("bucket", asked)
        body = whole.body.replace(
            b"<IsTruncated>false</IsTruncated>", f"<IsTruncated>true</IsTruncated>{token}".encode()
        )
        return whole._replace(body=body) if asked.path in ("bucket", "bucket/") else None

    server.rule(cut)
    e = await fault(make(server.endpoint), "s3://bucket/m/")
    assert type(e) is ManifestError
    assert "breaks off" in e.message


async def test_an_endpoint_of_the_environment_with_a_password(
    server: ScriptedS3, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint.replace("://", "://user:s3cr3t@"))
    e = await fault(make(""), "s3://bucket/none")
    assert "user" not in e.message


async def test_an_empty_object_in_another_region(scripted: ScriptedS3, make: Make) -> None:
    """Why a HEAD is refused is asked by reading a byte, of which there is none."""
    scripted.put("bucket/empty", b"")

    def elsewhere(asked: Asked) -> Answer | None:
        signed = asked.headers.get("authorization", "") + asked.query.get("X-Amz-Credential", "")
        if "/eu-far-1/s3/" not in signed:
            return error(400, "AuthorizationHeaderMalformed", "<Region>eu-far-1</Region>")
        return error(416, "InvalidRange") if "range" in asked.headers else None

    scripted.rule(elsewhere)
    (file,) = (await resolve(make(scripted.endpoint), "s3://bucket/empty")).files
    assert file.size == 0


@pytest.mark.parametrize("ref", [REF, "s3://bucket/m/"])
async def test_a_server_that_breaks_off(make: Make, admin: None, ref: str) -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(break_off, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert type(await fault(make(f"http://127.0.0.1:{port}"), ref)) is SourceUnavailable


async def test_closing_ends_what_is_asked(make: Make, admin: None) -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        source = make(f"http://127.0.0.1:{port}", http=HttpOptions(read_timeout=100))
        task = asyncio.create_task(resolve(source, REF))
        await asked.wait()
        async with asyncio.timeout(30):
            await source.close()
        with pytest.raises(SourceUnavailable, match="closed"):
            await task
