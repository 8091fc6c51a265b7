"""What may be believed of the whole file, and what may not."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.crc import Crc, CrcAlgorithm
from weightd.core.digest import digest_of
from weightd.core.stated import NAMES, Stated, stated

RAW = hashlib.sha256(b"123456789").digest()
SHA = base64.b64encode(RAW).decode()
OTHER = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
DIGEST = digest_of(RAW)
FULL = {"x-amz-checksum-type": "FULL_OBJECT"}
CRC32 = Crc(CrcAlgorithm.CRC32, 0xCBF43926)
CRC32C = Crc(CrcAlgorithm.CRC32C, 0xE3069283)
NVME = Crc(CrcAlgorithm.CRC64NVME, 0xAE8B14860A799888)
NOTHING = Stated()
AMZ = {
    "x-amz-checksum-crc32": "y/Q5Jg==",
    "x-amz-checksum-crc32c": "4waSgw==",
    "x-amz-checksum-crc64nvme": "rosUhgp5mIg=",
    "x-amz-checksum-sha256": SHA,
}


def whole(headers: dict[str, str]) -> Stated:
    return stated(headers, size=9, partial=False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x-amz-checksum-crc32", Stated(crc=CRC32)),
        ("x-amz-checksum-crc32c", Stated(crc=CRC32C)),
        ("x-amz-checksum-crc64nvme", Stated(crc=NVME)),
        ("x-amz-checksum-sha256", Stated(DIGEST)),
    ],
)
def test_s3(name: str, expected: Stated) -> None:
    one = {name: AMZ[name]}
    assert whole(FULL | one) == expected
    assert whole({"x-amz-checksum-type": " full_object "} | one) == expected
    assert stated(FULL | one, size=9, partial=True) == NOTHING
    assert whole(one) == NOTHING
    assert whole({"x-amz-checksum-type": "COMPOSITE"} | one) == NOTHING
    assert whole({"x-amz-checksum-type": "FULL_OBJECT, COMPOSITE"} | one) == NOTHING
    assert whole(FULL | {name: AMZ[name] + "-3"}) == NOTHING
    assert whole(FULL | {name: f"{AMZ[name]}, {AMZ[name]}"}) == NOTHING
    assert whole(FULL | {name: "garbled"}) == NOTHING


def test_of_several_crcs_one_counts() -> None:
    assert whole(FULL | AMZ) == Stated(DIGEST, NVME)
    assert whole(FULL | AMZ | {"x-amz-checksum-crc64nvme": ""}) == Stated(DIGEST, CRC32C)


@pytest.mark.parametrize("partial", [True, False])
def test_google(partial: bool) -> None:
    def crc(headers: dict[str, str]) -> Crc | None:
        return stated(headers, size=9, partial=partial).crc

    both = {"x-goog-hash": "crc32c=4waSgw==, md5=JfnnlDI7RTiF9RgfG2JNCw=="}
    assert crc(both) == CRC32C
    assert crc({"x-goog-hash": "md5=JfnnlDI7RTiF9RgfG2JNCw==,crc32c=4waSgw=="}) == CRC32C
    stored = {"x-goog-stored-content-encoding": "identity", "x-goog-stored-content-length": "9"}
    assert crc(both | stored) == CRC32C
    assert crc(both | stored | {"x-goog-stored-content-encoding": "gzip"}) is None
    assert crc(both | stored | {"x-goog-stored-content-length": "7"}) is None
    assert crc({"x-goog-hash": "md5=JfnnlDI7RTiF9RgfG2JNCw=="}) is None
    assert crc({"x-goog-hash": "crc32c=4waSgw==, crc32c=y/Q5Jg=="}) is None
    assert crc({"x-goog-hash": "crc32c=garbled"}) is None
    assert crc({"x-goog-hash": "crc32c"}) is None


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (f"sha-256=:{SHA}:", DIGEST),
        (f"sha-512=:AAAA:, sha-256=:{SHA}:", DIGEST),
        (f"sha-256=:{SHA}:;q=1, sha-512=:AAAA:", DIGEST),
        (f"sha-256=:{SHA}:, sha-256=:{SHA}:", DIGEST),
        (f"sha-256=:{SHA}:, sha-256=:{OTHER}:", None),
        (f"sha-256={SHA}", None),
        (f"sha-256=:{SHA[:-8]}:", None),
        (f"sha-256=:{SHA[:-1]}*:", None),
        (f"SHA-256=:{SHA}:", None),
        ("sha-256=::", None),
        ("sha-256=:", None),
        ("sha-256", None),
        ("sha-512=:AAAA:", None),
        ("", None),
    ],
)
def test_repr_digest(field: str, expected: str | None, partial: bool) -> None:
    assert stated({"repr-digest": field}, size=9, partial=partial) == Stated(expected)  # type: ignore[arg-type]


def test_contradictions_say_nothing() -> None:
    other = FULL | {"x-amz-checksum-sha256": OTHER, "repr-digest": f"sha-256=:{SHA}:"}
    assert whole(other) == NOTHING
    assert whole(FULL | {"x-amz-checksum-crc32c": "y/Q5Jg==", "x-goog-hash": "crc32c=4waSgw=="}) == NOTHING


def test_a_content_digest_is_of_the_body() -> None:
    assert whole({"content-digest": f"sha-256=:{SHA}:", "digest": f"sha-256={SHA}", "content-md5": "x"}) == NOTHING


@given(st.dictionaries(st.sampled_from(sorted(NAMES)), st.text(max_size=60)), st.booleans())
def test_nonsense_is_no_fault(headers: dict[str, str], partial: bool) -> None:
    stated(headers, size=9, partial=partial)
