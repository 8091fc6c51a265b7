"""Cyclic redundancy checks of whole objects, as S3 and Google Cloud Storage give them, and how those of parts combine.

A CRC over A followed by B follows from the CRC of A, that of B and the length of B alone: A's is multiplied by
x^(8 · length) modulo the polynomial, and B's is added. This is zlib's `crc32_combine` (crc32.c, `multmodp` and
`x2nmodp`), for any reflected polynomial whose CRC begins with, and is inverted by, all ones; the three here are.
"""

from __future__ import annotations

import base64
import binascii
import enum
from collections.abc import Iterable
from functools import lru_cache

import msgspec


class CrcAlgorithm(enum.Enum):
    """The values are the names that S3 has for them (API reference, ChecksumAlgorithm)."""

    CRC32 = "CRC32"
    """ISO-HDLC, the one of gzip and Ethernet."""
    CRC32C = "CRC32C"
    """Castagnoli: RFC 9260, appendix A."""
    CRC64NVME = "CRC64NVME"
    """NVM Express NVM command set, 64b CRC; also called Rocksoft."""

    @property
    def bits(self) -> int:
        return 64 if self is CrcAlgorithm.CRC64NVME else 32


_POLYNOMIALS = {
    CrcAlgorithm.CRC32: 0xEDB88320,
    CrcAlgorithm.CRC32C: 0x82F63B78,
    CrcAlgorithm.CRC64NVME: 0x9A6C9329AC4BC9B5,
}
"""Reflected: the highest bit stands for x^0. The term x^bits is left out."""


class Crc(msgspec.Struct, frozen=True):
    """The CRC of a whole file. `value` is at least 0 and has at most `algorithm.bits` bits."""

    algorithm: CrcAlgorithm
    value: int

    def __str__(self) -> str:
        return f"{self.algorithm.value} {self.value:0{self.algorithm.bits // 4}x}"


def parse_crc(algorithm: CrcAlgorithm, text: str) -> Crc | None:
    """From base64 of the big-endian bytes, as in `x-amz-checksum-crc32` and in `x-goog-hash`; None for what is not
    exactly that, the "-N" that S3 appends to checksums of checksums among it."""
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return Crc(algorithm, int.from_bytes(raw, "big")) if len(raw) * 8 == algorithm.bits else None


def encode_crc(crc: Crc) -> str:
    """The inverse of `parse_crc`."""
    return base64.b64encode(crc.value.to_bytes(crc.algorithm.bits // 8, "big")).decode("ascii")


def combine(algorithm: CrcAlgorithm, first: int, second: int, length: int) -> int:
    """The CRC of A followed by B, from that of A, that of B, and the `length` of B in bytes."""
    return _multiply(algorithm, _shift(algorithm, length), first) ^ second


def combine_parts(algorithm: CrcAlgorithm, parts: Iterable[tuple[int, int]]) -> int:
    """The CRC of a file from the (CRC, length in bytes) of its parts, in order; of none, that of an empty file: 0."""
    whole = 0
    for crc, length in parts:
        whole = combine(algorithm, whole, crc, length)
    return whole


def crc_of_bytes(algorithm: CrcAlgorithm, data: bytes) -> int:
    """Slow, and needs nothing: for a few kilobytes. Files are the business of `weightd.engine.crcs`."""
    table, value = _table(algorithm), (1 << algorithm.bits) - 1
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ ((1 << algorithm.bits) - 1)


@lru_cache(maxsize=3)
def _table(algorithm: CrcAlgorithm) -> tuple[int, ...]:
    polynomial, table = _POLYNOMIALS[algorithm], []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ polynomial if value & 1 else value >> 1
        table.append(value)
    return tuple(table)


def _multiply(algorithm: CrcAlgorithm, a: int, b: int) -> int:
    """a · b modulo the polynomial, both reflected."""
    polynomial = _POLYNOMIALS[algorithm]
    bit = 1 << (algorithm.bits - 1)
    product = 0
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ polynomial if b & 1 else b >> 1
    return product


@lru_cache(maxsize=64)
def _shift(algorithm: CrcAlgorithm, length: int) -> int:
    """x^(8 · length) modulo the polynomial. Parts of one file have one length, but the last."""
    power, square, exponent = 1 << (algorithm.bits - 1), 1 << (algorithm.bits - 2), 8 * length
    while exponent:
        if exponent & 1:
            power = _multiply(algorithm, power, square)
        square = _multiply(algorithm, square, square)
        exponent >>= 1
    return power
