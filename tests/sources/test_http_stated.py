"""What real answers say of the whole file, and what is asked for it."""

from __future__ import annotations

import base64
import hashlib
import zlib
from typing import Any

import pytest

from tests.sources.conftest import DATA
from tests.support.origin import Fault, Origin
from weightd.core.crc import Crc, CrcAlgorithm, encode_crc
from weightd.core.digest import Digest, digest_of
from weightd.core.errors import DigestMismatch, InvalidArgument
from weightd.core.manifest import FileSpec, with_digest
from weightd.core.models import NamedModel
from weightd.core.refs import parse_ref
from weightd.sources.http import HttpSource
from weightd.sources.named import resolve_named

RAW = hashlib.sha256(DATA).digest()
DIGEST = digest_of(RAW)
OTHER = Digest("sha256:" + "0" * 64)
CRC = Crc(CrcAlgorithm.CRC32, zlib.crc32(DATA))
CRC32C = Crc(CrcAlgorithm.CRC32C, 0x01020304)
FULL = {"x-amz-checksum-crc32": encode_crc(CRC), "x-amz-checksum-type": "FULL_OBJECT"}
REPR = {"Repr-Digest": f"sha-256=:{base64.b64encode(RAW).decode()}:"}
S3 = {"x-amz-request-id": "4442587FB7D0A2F9"}


async def one(source: HttpSource, origin: Origin, query: str = "") -> FileSpec:
    return (await source.resolve(parse_ref(origin.url("f.bin") + query))).files[0]


async def test_an_origin_that_says_nothing_is_asked_nothing_more(origin: Origin, http: HttpSource) -> None:
    file = await one(http, origin)
    assert (file.digest, file.crc, file.crc_algorithm) == (None, None, None)
    assert len(origin.requests) == 1


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_digest_of_the_representation(origin: Origin, http: HttpSource, ranges: bool) -> None:
    origin.fault("f.bin", Fault(headers=REPR, no_ranges=not ranges))
    file = await one(http, origin)
    assert (file.digest, file.ranges, file.source_key) == (DIGEST, ranges, DIGEST)


@pytest.mark.parametrize("ranges", [True, False])
async def test_hashes_in_lines_of_their_own(origin: Origin, http: HttpSource, ranges: bool) -> None:
    """As Google Cloud Storage sends them; the last line is not the only one that counts."""
    lines = {"x-goog-hash": f"crc32c={encode_crc(CRC32C)}", "X-Goog-Hash": "md5=JfnnlDI7RTiF9RgfG2JNCw=="}
    stored = {"x-goog-stored-content-encoding": "identity", "x-goog-stored-content-length": str(len(DATA))}
    origin.fault("f.bin", Fault(headers=lines | stored, no_ranges=not ranges))
    file = await one(http, origin)
    assert (file.crc, file.crc_algorithm, file.digest) == (CRC32C, CrcAlgorithm.CRC32C, None)


async def test_what_was_decompressed_for_us_has_another_hash(origin: Origin, http: HttpSource) -> None:
    gzip = {"x-goog-hash": f"crc32c={encode_crc(CRC32C)}", "x-goog-stored-content-encoding": "gzip"}
    origin.fault("f.bin", Fault(headers=gzip, no_ranges=True))
    assert (await one(http, origin)).crc is None


async def test_a_full_object_checksum_on_the_whole(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(headers=FULL, no_ranges=True))
    assert (await one(http, origin)).crc == CRC


async def test_on_a_part_it_is_not_believed(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(headers=FULL))
    assert (await one(http, origin)).crc is None
    assert len(origin.requests) == 1


async def test_an_object_store_is_asked_by_head(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(headers=S3), times=1)
    origin.fault("f.bin", Fault(headers=S3 | FULL), times=1)
    assert (await one(http, origin)).crc == CRC
    get, head = origin.requests
    assert (get.method, head.method) == ("GET", "HEAD")
    assert "x-amz-checksum-mode" not in get.headers
    assert "range" not in head.headers
    assert head.headers["x-amz-checksum-mode"] == "ENABLED"


async def test_also_one_that_gives_no_hash_with_a_range(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(headers={"x-goog-generation": "1"}), times=1)
    origin.fault("f.bin", Fault(headers={"x-goog-hash": f"crc32c={encode_crc(CRC32C)}"}), times=1)
    assert (await one(http, origin)).crc == CRC32C


@pytest.mark.parametrize(
    "fault",
    [
        Fault(headers=S3),
        Fault(headers=FULL | {"x-amz-checksum-type": "COMPOSITE"}),
        Fault(headers=FULL | {"x-amz-checksum-type": ""}),
        Fault(headers=FULL | {"x-amz-checksum-crc32": encode_crc(CRC) + "-2"}),
        Fault(headers=FULL | {"x-amz-checksum-crc32": "!"}),
        Fault(headers=FULL, etag='"another"'),
        Fault(headers=FULL, etag=""),
        Fault(headers=FULL | {"Content-Length": "7"}),
        Fault(headers=FULL | {"Content-Encoding": "gzip"}),
        Fault(headers=FULL, status=403),
        Fault(headers=FULL, status=503),
        Fault(headers=FULL, redirect="ftp://nowhere/"),
        Fault(hang_up=True),
        Fault(raw=b"nonsense\r\n\r\n"),
    ],
)
async def test_a_head_that_helps_nothing_harms_nothing(origin: Origin, http: HttpSource, fault: Fault) -> None:
    origin.fault("f.bin", Fault(headers=S3), times=1)
    origin.fault("f.bin", fault)
    file = await one(http, origin)
    assert (file.size, file.crc, file.digest) == (len(DATA), None, None)
    methods = [r.method for r in origin.requests]
    assert (methods[0], set(methods[1:])) == ("GET", {"HEAD"})


async def test_a_head_is_believed_of_a_named_version_only(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(headers=S3 | FULL, etag=""))
    assert (await one(http, origin)).crc is None
    assert [r.method for r in origin.requests] == ["GET", "HEAD"]


@pytest.mark.parametrize("query", ["?X-Amz-Signature=00", "?x=1&Signature=00", "?X-Goog-Signature=00"])
async def test_a_signed_address_is_good_for_get_alone(origin: Origin, http: HttpSource, query: str) -> None:
    origin.fault("f.bin", Fault(headers=S3))
    await one(http, origin, query)
    assert [r.method for r in origin.requests] == ["GET"]


async def test_who_gives_the_digest_needs_no_more(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(headers=S3 | {"x-goog-hash": f"crc32c={encode_crc(CRC32C)}"}))
    url = origin.url("f.bin")
    file = await http.stat(parse_ref(url), "f.bin", url, size=None, digest=DIGEST)
    assert (file.digest, file.crc) == (DIGEST, None)
    assert [r.method for r in origin.requests] == ["GET"]


async def test_a_redirect_speaks_for_itself_only(origin: Origin, http: HttpSource) -> None:
    origin.fault("moved.bin", Fault(redirect=origin.url("f.bin"), headers=REPR))
    file = (await http.resolve(parse_ref(origin.url("moved.bin")))).files[0]
    assert (file.size, file.digest) == (len(DATA), None)


@pytest.mark.parametrize("value", ["sha-256=:AAAA:", "sha-256=garbled", "sha-512=:AAAA:", ";;,,=="])
async def test_a_garbled_header_says_nothing(origin: Origin, http: HttpSource, value: str) -> None:
    origin.fault("f.bin", Fault(headers={"Repr-Digest": value, "x-goog-hash": value}))
    file = await one(http, origin)
    assert (file.digest, file.crc) == (None, None)


async def test_an_origin_that_contradicts_the_user_is_not_fetched_from(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(headers=REPR))
    url = origin.url("f.bin")
    with pytest.raises(DigestMismatch) as e:
        await http.stat(parse_ref(url), "f.bin", url, size=None, digest=OTHER)
    assert (e.value.ref, e.value.file) == (url, "f.bin")
    assert DIGEST in e.value.message
    assert OTHER in e.value.message
    with pytest.raises(InvalidArgument):
        with_digest(await http.resolve(parse_ref(url)), OTHER)
    assert with_digest(await http.resolve(parse_ref(url)), DIGEST).files[0].digest == DIGEST


@pytest.mark.parametrize("source", ["f.bin", ""])
async def test_nor_is_it_by_name(origin: Origin, http: HttpSource, source: str) -> None:
    origin.fault("f.bin", Fault(headers=REPR))
    origin.fault("model.safetensors", Fault(headers=REPR))
    models: Any = {"m": NamedModel(origin.url(source), sha256="0" * 64)}
    with pytest.raises(DigestMismatch) as e:
        await resolve_named(parse_ref("m"), models, http)
    assert e.value.ref == "m"
