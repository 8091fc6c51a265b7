"""What an s3:// ref names, and whole checksums from those of parts."""

from __future__ import annotations

import base64
import random
import zlib

import pytest
from awscrt import checksums
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.crc import Crc, CrcAlgorithm, crc_of_bytes, encode_crc
from weightd.core.s3 import S3Object, crc_of_parts, parse_s3, stored_parts


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", S3Object("bucket", "")),
        ("s3://bucket/", S3Object("bucket", "")),
        ("s3://bucket/a/b/", S3Object("bucket", "a/b/")),
        ("s3://bucket/a%20b+c%3F%23%25", S3Object("bucket", "a b+c?#%")),
        ("s3://bucket//a//b", S3Object("bucket", "/a//b")),
        ("s3://bucket/../x", S3Object("bucket", "../x")),
        ("s3://bucket/x?versionId=a%2Bb", S3Object("bucket", "x", "a+b")),
        ("s3://bucket/x?versionId=a+b", S3Object("bucket", "x", "a+b")),
        ("s3://bucket/x/?include=c++*", S3Object("bucket", "x/", include=("c++*",))),
        ("s3://bucket/x/?exclude=*.bin", S3Object("bucket", "x/", exclude=("*.bin",))),
    ],
)
def test_what_a_ref_names(url: str, expected: S3Object) -> None:
    assert parse_s3(url) == expected


@given(st.text(min_size=1, max_size=200), st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=50))
def test_a_files_url_names_its_object(key: str, version: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError:
        return
    at = S3Object("bucket", key, "" if key.endswith("/") else version)
    if len(key.encode()) <= 1024:
        assert parse_s3(at.url) == at


def test_the_parts_of_an_etag() -> None:
    assert stored_parts('"6f0cf9180d32ed442a7993004f71d499-3"') == 3
    for etag in ('"6f0cf9180d32ed442a7993004f71d499"', '"a-b"', "", "6f0c-3", '"x-"', '"3-4-"'):
        assert stored_parts(etag) == 1


PARTS = [random.Random(n).randbytes(length) for n, length in enumerate((5000, 5000, 5000, 17))]
LIBRARY = {
    CrcAlgorithm.CRC32: zlib.crc32,
    CrcAlgorithm.CRC32C: checksums.crc32c,
    CrcAlgorithm.CRC64NVME: checksums.crc64nvme,
}


@pytest.mark.parametrize("algorithm", CrcAlgorithm)
def test_a_crc_of_bytes(algorithm: CrcAlgorithm) -> None:
    for data in (b"", b"123456789", *PARTS):
        assert crc_of_bytes(algorithm, data) == LIBRARY[algorithm](data)


def listed(algorithm: CrcAlgorithm) -> list[tuple[str, int]]:
    return [(encode_crc(Crc(algorithm, LIBRARY[algorithm](p))), len(p)) for p in PARTS]


def composite(algorithm: CrcAlgorithm, parts: list[tuple[str, int]]) -> str:
    raw = b"".join(base64.b64decode(text) for text, _ in parts)
    return f"{encode_crc(Crc(algorithm, LIBRARY[algorithm](raw)))}-{len(parts)}"


@pytest.mark.parametrize("algorithm", CrcAlgorithm)
def test_a_whole_crc_of_parts_that_fit_what_is_said_of_them(algorithm: CrcAlgorithm) -> None:
    whole = b"".join(PARTS)
    parts = listed(algorithm)
    said = composite(algorithm, parts)
    assert crc_of_parts(algorithm, said, len(whole), parts) == Crc(algorithm, LIBRARY[algorithm](whole))


def test_parts_that_do_not_fit_say_nothing() -> None:
    algorithm = CrcAlgorithm.CRC32C
    parts, size = listed(algorithm), sum(map(len, PARTS))
    said = composite(algorithm, parts)
    for wrong_said, wrong_size, wrong in (
        (said, size + 1, parts),
        (said.partition("-")[0], size, parts),
        (said[:-1] + "5", size, parts),
        (said, size, parts[::-1]),
        (said, size, parts[:-1]),
        (said, size, [("", length) for _, length in parts]),
        (said, size, [("!", parts[0][1]), *parts[1:]]),
        (said, size, []),
        ("", size, parts),
        (said, size, [*parts, (parts[0][0], 0)]),
    ):
        assert crc_of_parts(algorithm, wrong_said, wrong_size, wrong) is None
