"""CRCs combined from parts are those of the whole, for every way to cut it."""

from __future__ import annotations

import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.crc import Crc, CrcAlgorithm, combine, combine_parts, encode_crc, parse_crc

ALL = pytest.mark.parametrize("algorithm", list(CrcAlgorithm))
NORMAL = {
    CrcAlgorithm.CRC32: 0x04C11DB7,
    CrcAlgorithm.CRC32C: 0x1EDC6F41,
    CrcAlgorithm.CRC64NVME: 0xAD93D23594C93659,
}
"""As the standards print them, not reflected."""


def reflected(value: int, bits: int) -> int:
    return int(f"{value:0{bits}b}"[::-1], 2)


def bytewise(algorithm: CrcAlgorithm, data: bytes) -> int:
    """From the definition, bit by bit."""
    ones = (1 << algorithm.bits) - 1
    polynomial, crc = reflected(NORMAL[algorithm], algorithm.bits), ones
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ polynomial if crc & 1 else crc >> 1
    return crc ^ ones


@pytest.mark.parametrize(
    ("algorithm", "check"),
    [
        (CrcAlgorithm.CRC32, 0xCBF43926),
        (CrcAlgorithm.CRC32C, 0xE3069283),
        (CrcAlgorithm.CRC64NVME, 0xAE8B14860A799888),
    ],
)
def test_published_check_values(algorithm: CrcAlgorithm, check: int) -> None:
    """The reference of these tests is right, and so are combinations of it."""
    data = b"123456789"
    assert bytewise(algorithm, data) == check
    for cut in range(len(data) + 1):
        first, second = bytewise(algorithm, data[:cut]), bytewise(algorithm, data[cut:])
        assert combine(algorithm, first, second, len(data) - cut) == check


@ALL
@given(parts=st.lists(st.binary(max_size=40), max_size=8))
def test_parts_combine_to_the_whole(algorithm: CrcAlgorithm, parts: list[bytes]) -> None:
    pieces = [(bytewise(algorithm, p), len(p)) for p in parts]
    assert combine_parts(algorithm, pieces) == bytewise(algorithm, b"".join(parts))


@given(st.integers(0, 1 << 45), st.integers(0, 1 << 45), *[st.integers(0, (1 << 32) - 1)] * 3)
def test_long_lengths_combine_in_any_order(n: int, m: int, a: int, b: int, c: int) -> None:
    """(A B) C is A (B C), also for files that no test could hold."""
    for algorithm in CrcAlgorithm:
        left = combine(algorithm, combine(algorithm, a, b, n), c, m)
        right = combine(algorithm, a, combine(algorithm, b, c, m), n + m)
        assert left == right


def test_a_large_file_against_zlib() -> None:
    zeros = bytes(1 << 20)
    whole = zlib.crc32(b"head")
    for _ in range(40):
        whole = zlib.crc32(zeros, whole)
    mib = zlib.crc32(zeros)
    assert combine_parts(CrcAlgorithm.CRC32, [(zlib.crc32(b"head"), 4)] + [(mib, 1 << 20)] * 40) == whole


@ALL
@given(raw=st.integers(0, (1 << 64) - 1))
def test_values_survive_their_encodings(algorithm: CrcAlgorithm, raw: int) -> None:
    crc = Crc(algorithm, raw >> (64 - algorithm.bits))
    assert parse_crc(algorithm, encode_crc(crc)) == crc
    assert msgspec.json.decode(msgspec.json.encode(crc), type=Crc) == crc


def test_values_are_big_endian() -> None:
    assert parse_crc(CrcAlgorithm.CRC32, " y/Q5Jg== ") == Crc(CrcAlgorithm.CRC32, 0xCBF43926)
    assert parse_crc(CrcAlgorithm.CRC32C, "4waSgw==") == Crc(CrcAlgorithm.CRC32C, 0xE3069283)
    nvme = Crc(CrcAlgorithm.CRC64NVME, 0xAE8B14860A799888)
    assert parse_crc(CrcAlgorithm.CRC64NVME, "rosUhgp5mIg=") == nvme
    assert str(nvme) == "CRC64NVME ae8b14860a799888"
    assert str(Crc(CrcAlgorithm.CRC32, 1)) == "CRC32 00000001"


@pytest.mark.parametrize(
    "text", ["", "y/Q5Jg==-7", "y/Q5Jg", "y_Q5Jg==", "y/Q5Jg==y/Q5Jg==", "cbf43926", "rosUhgp5mIg=", "ÿ", "y/Q5 Jg=="]
)
def test_what_is_not_exactly_a_crc_is_none(text: str) -> None:
    assert parse_crc(CrcAlgorithm.CRC32, text) is None
