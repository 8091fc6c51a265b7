"""Tensors over mapped memory, without a copy: numpy arrays that cannot be written, torch tensors that may.

numpy and torch are imported when a view is first asked for, ml_dtypes when it is of a dtype that numpy lacks.

| dtype | numpy | torch |
|---|---|---|
| BOOL, I8 … U64, F16, F32, F64, C64 | the dtype of that name | the same |
| BF16, F8_E4M3, F8_E5M2, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ | ml_dtypes, as torch names them | the same |
| F4 | uint8, as packed, last dimension halved | float4_e2m1fn_x2, last dimension halved |
| F6_E2M3, F6_E3M2 | none: `bytes_view` | none: `bytes_view` |

F4 packs two elements into a byte; the header's shape counts elements, torch's dtype counts pairs, and the reference
loader (safetensors 0.8.0, `torch_storage_shape` in bindings/python/src/lib.rs) halves the last dimension. The numpy
view has that same shape. (ml_dtypes has a float4 of one element a byte; unpacking into it would be a copy.) No
framework has a dtype for packed F6, and the reference loads it into none.
"""

from __future__ import annotations

import math
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from weightd.core.dtypes import BITS, is_packed
from weightd.core.errors import DependencyMissing, TensorUnsupported
from weightd.core.safetensors import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import torch

_NAMES: Final = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_EXTENDED: Final = {
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
"""In ml_dtypes and in torch by these names; numpy itself lacks them."""
_TORCH: Final = _NAMES | _EXTENDED | {"F4": "float4_e2m1fn_x2"}
_PACKED_REMEDY: Final = "weightd.client.views.bytes_view gives its bytes as they are stored"


def numpy_view(buffer: memoryview, info: TensorInfo) -> np.ndarray[Any, Any]:
    """The tensor as an array over `buffer`, a whole file's bytes. Not writable; never a copy, even where unaligned.

    Over a read-only mapping `setflags(write=True)` fails as well. The array keeps the mapping alive. dtypes as in the
    module's table. Raises TensorUnsupported.
    """
    import numpy as np

    dtype = _numpy_dtype(info.dtype)
    shape = _shape(info)
    _check_room(buffer, info)
    try:
        # By offset and not by slice: an empty tensor at the end, and a slice that would be unaligned, work.
        return np.ndarray(shape, dtype, buffer.toreadonly(), info.offset)
    except ValueError as e:  # more dimensions than numpy has
        raise TensorUnsupported(f"numpy cannot hold tensor {info.name!r}: {e}") from None


def bytes_view(buffer: memoryview, info: TensorInfo) -> np.ndarray[Any, Any]:
    """The tensor's bytes as stored: uint8, one dimension, not writable, never a copy. For every dtype."""
    import numpy as np

    _check_room(buffer, info)
    return np.ndarray((info.length,), np.uint8, buffer.toreadonly(), info.offset)


def torch_view(buffer: memoryview, info: TensorInfo) -> torch.Tensor:
    """The tensor over `buffer`, a whole file's bytes in a private, writable mapping (MAP_PRIVATE).

    torch has no read-only tensors, and a write into a read-only mapping would kill the process: `buffer` must be
    writable, or ValueError is raised; a write through the tensor changes this process's copy of the page only. Each
    tensor has a storage of its own, of its own bytes, that keeps the mapping alive.

    A copy only where the tensor begins at no multiple of its element's size (the reference writer aligns since 0.3.1):
    torch takes such an address, but its compiled kernels may assume alignment, and then crash.

    dtypes as in the module's table. Raises TensorUnsupported, DependencyMissing.
    """
    torch = _import_torch()
    dtype = _torch_dtype(info.dtype)
    shape = _shape(info)
    _check_room(buffer, info)
    if buffer.readonly:
        raise ValueError("torch_view needs a private, writable mapping (MAP_PRIVATE): torch has no read-only tensors")
    if info.length == 0:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(buffer, dtype=torch.uint8, count=info.length, offset=info.offset)
    if flat.data_ptr() % _alignment(info.dtype):
        flat = flat.clone()
    return flat.view(dtype).reshape(shape)


def _alignment(dtype: str) -> int:
    """Bytes; a complex number is aligned as its parts are."""
    return 4 if dtype == "C64" else max(1, BITS[dtype] // 8)


def _check_room(buffer: memoryview, info: TensorInfo) -> None:
    if info.offset + info.length > buffer.nbytes:
        raise ValueError(f"tensor {info.name!r} ends at byte {info.offset + info.length} of {buffer.nbytes}")


def _shape(info: TensorInfo) -> tuple[int, ...]:
    """As numpy and torch count. Raises TensorUnsupported for what neither can hold."""
    shape = info.shape
    if is_packed(info.dtype):
        if not shape or shape[-1] % 2:
            raise TensorUnsupported(
                f"tensor {info.name!r} of {info.dtype} and shape {list(shape)} has rows that end within a byte",
                remedy=_PACKED_REMEDY,
            )
        shape = (*shape[:-1], shape[-1] // 2)
    if 0 in shape and math.prod(n or 1 for n in shape) * 8 >= 2**63:  # a tensor of bytes cannot be that large
        raise TensorUnsupported(f"tensor {info.name!r} is empty, but its other dimensions overflow 64 bits")
    return shape


@cache
def _numpy_dtype(dtype: str) -> np.dtype[Any]:
    import numpy as np

    if dtype in _EXTENDED:
        import ml_dtypes

        extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _EXTENDED[dtype]))
        return extended
    if dtype == "F4":
        return np.dtype(np.uint8)
    if dtype not in _NAMES:
        raise TensorUnsupported(f"numpy has no dtype for {dtype}", remedy=_PACKED_REMEDY)
    return np.dtype(_NAMES[dtype]).newbyteorder("<")


@cache
def _torch_dtype(dtype: str) -> Any:
    torch = _import_torch()
    if dtype not in _TORCH:
        raise TensorUnsupported(f"torch has no dtype for {dtype}", remedy=_PACKED_REMEDY)
    found = getattr(torch, _TORCH[dtype], None)
    if found is None:
        raise TensorUnsupported(
            f"torch {torch.__version__} has no {_TORCH[dtype]}, the dtype for {dtype}", remedy="Install a newer torch"
        )
    return found


def _import_torch() -> ModuleType:
    try:
        import torch
    except ImportError as e:
        raise DependencyMissing(f"torch cannot be imported: {e}", remedy="pip install 'weightd[torch]'") from None
    return torch  # type: ignore[no-any-return]
