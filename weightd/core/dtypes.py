"""The dtypes of the safetensors format, as the reference library names them.

Source: `enum Dtype` and `Dtype::bitsize` in safetensors/src/tensor.rs, safetensors 0.8.0. All are little-endian, in
row-major order; those of less than 8 bits are packed without padding between elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

BITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "BOOL": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)
"""Bits of one element, by the name in the header. C64 is a pair of 32-bit floats."""


def is_packed(dtype: str) -> bool:
    """Whether elements share bytes, so that a single one has no address of its own."""
    return BITS[dtype] < 8
