"""Views over real mappings, beside what the reference's own loaders make of the same file."""

from __future__ import annotations

import gc
import json
import mmap
import os
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from weightd.client.views import bytes_view, numpy_view, torch_view
from weightd.core.dtypes import BITS
from weightd.core.errors import DependencyMissing, TensorUnsupported
from weightd.core.safetensors import TensorInfo, read_header

PACKED = [d for d in BITS if BITS[d] < 8]
WHOLE = [d for d in BITS if BITS[d] >= 8]
IN_TORCH = [*WHOLE, "F4"]


def file_of(dtype: str, shape: tuple[int, ...], data: bytes, shift: int = 0) -> bytes:
    """A file of one tensor `a`, its data at a multiple of 8 bytes plus `shift`."""
    header = {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8 + shift)
    return struct.pack("<Q", len(raw)) + raw + data


def sample(dtype: str, elements: int) -> bytes:
    """Bytes that are not all alike; for BOOL only those that are bools."""
    size = elements * BITS[dtype] // 8
    return bytes(i % 2 if dtype == "BOOL" else i * 37 % 256 for i in range(size))


def mapped(path: Path, *, private: bool) -> memoryview:
    """As the client maps a segment: shared and read-only for numpy, private and writable for torch."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if private:
            return memoryview(mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))
        return memoryview(mmap.mmap(fd, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))
    finally:
        os.close(fd)


class Fixture:
    """A file of one tensor, mapped both ways."""

    def __init__(self, path: Path, blob: bytes) -> None:
        self.path = path
        path.write_bytes(blob)
        self.shared = mapped(path, private=False)
        self.private = mapped(path, private=True)
        self.info = read_header(self.shared).tensors["a"]

    def numpy(self) -> np.ndarray[Any, Any]:
        return numpy_view(self.shared, self.info)

    def torch(self) -> torch.Tensor:
        return torch_view(self.private, self.info)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Fixture]:
    def made(dtype: str, shape: tuple[int, ...] = (2, 4), *, shift: int = 0) -> Fixture:
        elements = int(np.prod(shape, dtype=np.int64))
        return Fixture(tmp_path / "a.safetensors", file_of(dtype, shape, sample(dtype, elements), shift))

    return made


def address(buffer: memoryview) -> int:
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def torch_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize("dtype", IN_TORCH)
def test_torch_views_are_what_the_reference_loads(dtype: str, make: Any) -> None:
    made = make(dtype)
    mine = made.torch()
    with safe_open(made.path, "pt") as opened:
        theirs = opened.get_tensor("a")
    assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
    assert torch_bytes(mine) == torch_bytes(theirs)
    assert mine.data_ptr() == address(made.private) + made.info.offset, "a copy"
    assert mine.untyped_storage().nbytes() == made.info.length


@pytest.mark.parametrize("dtype", [*safetensors.torch._TYPES])
def test_torch_views_are_what_the_reference_loads_from_bytes(dtype: str, make: Any) -> None:
    made = make(dtype)
    theirs = safetensors.torch.load(made.path.read_bytes())["a"]
    assert (made.torch().dtype, made.torch().shape) == (theirs.dtype, theirs.shape)
    assert torch_bytes(made.torch()) == torch_bytes(theirs)


@pytest.mark.parametrize(
    "dtype", ["BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"]
)
def test_numpy_views_are_what_the_reference_loads(dtype: str, make: Any) -> None:
    made = make(dtype)
    mine = made.numpy()
    with safe_open(made.path, "np") as opened:
        theirs = opened.get_tensor("a")
    assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
    assert mine.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("dtype", [*WHOLE, "F4"])
def test_numpy_views_cannot_be_written_and_are_no_copy(dtype: str, make: Any) -> None:
    made = make(dtype)
    mine = made.numpy()
    assert mine.tobytes() == bytes(made.shared[made.info.offset :])
    assert mine.ctypes.data == address(made.shared) + made.info.offset, "a copy"
    assert not mine.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        mine[0] = mine[1]
    with pytest.raises(ValueError, match="WRITEABLE"):
        mine.setflags(write=True)


@pytest.mark.parametrize("dtype", [d for d in WHOLE if d not in ("C64", "BOOL", "F8_E8M0")])
def test_numpy_and_torch_see_the_same_numbers(dtype: str, make: Any) -> None:
    made = make(dtype, (8,))
    ours = made.numpy().astype(np.float64)
    theirs = made.torch().to(torch.float64).numpy()
    np.testing.assert_array_equal(ours, theirs)


def test_e8m0_is_a_power_of_two(make: Any) -> None:
    made = make("F8_E8M0", (4,))
    expected = [2.0 ** (b - 127) for b in sample("F8_E8M0", 4)]
    assert made.numpy().astype(np.float64).tolist() == expected
    assert made.torch().to(torch.float32).tolist() == expected


def test_a_numpy_view_of_a_writable_buffer_is_not_writable() -> None:
    blob = bytearray(file_of("F32", (2,), bytes(8)))
    view = memoryview(blob)
    with pytest.raises(ValueError, match="read-only"):
        numpy_view(view, read_header(view).tensors["a"])[0] = 1


@pytest.mark.parametrize("dtype", [*WHOLE, "F4"])
def test_empty_tensors(dtype: str, make: Any) -> None:
    made = make(dtype, (3, 0))
    assert made.numpy().shape == (3, 0)
    assert not made.numpy().flags.writeable
    assert made.torch().shape == (3, 0)
    assert made.torch().numel() == 0
    with safe_open(made.path, "pt") as opened:
        theirs = opened.get_tensor("a")
    assert (made.torch().dtype, made.torch().shape) == (theirs.dtype, theirs.shape)


@pytest.mark.parametrize("dtype", WHOLE)
def test_scalars(dtype: str, make: Any) -> None:
    made = make(dtype, ())
    assert made.numpy().shape == ()
    assert made.torch().shape == ()
    assert made.numpy().tobytes() == torch_bytes(made.torch()) == sample(dtype, 1)


@pytest.mark.parametrize("dtype", WHOLE)
def test_unaligned_tensors(dtype: str, make: Any) -> None:
    """numpy reads them in place; for torch they are copied, and only for torch, and only if they must be."""
    made = make(dtype, (2, 4), shift=1)
    assert made.info.offset % 2 == 1
    assert made.numpy().ctypes.data == address(made.shared) + made.info.offset
    assert made.numpy().tobytes() == torch_bytes(made.torch()) == sample(dtype, 8)
    in_place = made.torch().data_ptr() == address(made.private) + made.info.offset
    assert in_place == (BITS[dtype] == 8)
    assert made.torch().data_ptr() % made.torch().element_size() == 0


@pytest.mark.parametrize("shift", [2, 4])
def test_alignment_is_that_of_the_element(shift: int, make: Any) -> None:
    for dtype, needs in (("F16", 2), ("F32", 4), ("C64", 4), ("F64", 8)):
        made = make(dtype, (2,), shift=shift)
        in_place = made.torch().data_ptr() == address(made.private) + made.info.offset
        assert in_place == (shift % needs == 0), dtype
        assert torch_bytes(made.torch()) == sample(dtype, 2)


def test_torch_gives_no_warning_and_a_write_stays_here(make: Any) -> None:
    made = make("F32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = made.torch()
    before = made.path.read_bytes()
    tensor.zero_()
    assert not made.torch().any(), "both views are of the one private mapping"
    assert made.numpy().any()
    assert made.path.read_bytes() == before


def test_torch_refuses_a_read_only_mapping(make: Any) -> None:
    made = make("F32")
    with pytest.raises(ValueError, match="private, writable"):
        torch_view(made.shared, made.info)


def test_views_keep_the_mapping(make: Any) -> None:
    made = make("F32")
    array, tensor, info = made.numpy(), made.torch(), made.info
    expected = bytes(made.shared[info.offset :])
    del made
    gc.collect()
    assert array.tobytes() == torch_bytes(tensor) == expected


def test_f4_keeps_its_pairs(make: Any) -> None:
    made = make("F4", (3, 8))
    assert made.numpy().dtype == np.uint8
    assert made.numpy().shape == tuple(made.torch().shape) == (3, 4)
    odd = TensorInfo("odd", "F4", (2, 3), made.info.offset, 3)
    for view, buffer in ((numpy_view, made.shared), (torch_view, made.private)):
        with pytest.raises(TensorUnsupported, match=r"'odd'.*end within a byte.*bytes_view"):
            view(buffer, odd)


@pytest.mark.parametrize("dtype", ["F6_E2M3", "F6_E3M2"])
def test_f6_is_given_as_bytes_only(dtype: str, make: Any) -> None:
    made = make(dtype, (2, 4))
    for read in (made.numpy, made.torch):
        with pytest.raises(TensorUnsupported, match=rf"no dtype for {dtype}.*bytes_view"):
            read()
    with pytest.raises(safetensors.SafetensorError, match="not understood"), safe_open(made.path, "pt") as opened:
        opened.get_tensor("a")
    stored = bytes_view(made.shared, made.info)
    assert (stored.dtype, stored.shape, stored.flags.writeable) == (np.uint8, (6,), False)
    assert stored.tobytes() == sample(dtype, 8)


def test_shapes_that_nobody_can_hold(make: Any) -> None:
    made = make("U8", (1,))
    huge = TensorInfo("huge", "U8", (0, 2**62, 2**62), made.info.offset, 0)
    deep = TensorInfo("deep", "U8", (1,) * 65, made.info.offset, 1)
    with pytest.raises(TensorUnsupported, match=r"'huge' is empty"):
        numpy_view(made.shared, huge)
    with pytest.raises(TensorUnsupported, match=r"'huge' is empty"):
        torch_view(made.private, huge)
    with pytest.raises(TensorUnsupported, match=r"numpy cannot hold tensor 'deep'"):
        numpy_view(made.shared, deep)


def test_a_tensor_beyond_the_buffer_is_refused(make: Any) -> None:
    made = make("F32")
    for view, buffer in ((numpy_view, made.shared), (torch_view, made.private), (bytes_view, made.shared)):
        with pytest.raises(ValueError, match="ends at byte"):
            view(buffer[:-1], made.info)


def test_without_torch_the_error_says_what_to_install(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("F32")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DependencyMissing, match=r"pip install 'weightd\[torch\]'"):
        made.torch()


def test_a_dtype_that_this_torch_lacks(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from weightd.client import views

    views._torch_dtype.cache_clear()
    monkeypatch.delattr(torch, "float8_e8m0fnu")
    with pytest.raises(TensorUnsupported, match=r"has no float8_e8m0fnu, the dtype for F8_E8M0.*newer torch"):
        make("F8_E8M0").torch()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(WHOLE), st.lists(st.integers(0, 3), max_size=4), st.integers(0, 7))
def test_any_shape_anywhere(dtype: str, shape: list[int], shift: int) -> None:
    elements = int(np.prod(shape, dtype=np.int64))
    blob = bytearray(file_of(dtype, tuple(shape), sample(dtype, elements), shift))
    view = memoryview(blob)
    info = read_header(view).tensors["a"]
    assert numpy_view(view, info).shape == tuple(shape) == tuple(torch_view(view, info).shape)
    assert numpy_view(view, info).tobytes() == torch_bytes(torch_view(view, info)) == sample(dtype, elements)


def test_ml_dtypes_are_the_ones_torch_means() -> None:
    view = memoryview(bytearray(file_of("F8_E4M3", (256,), bytes(range(256)))))
    array = numpy_view(view, read_header(view).tensors["a"])
    assert array.dtype == ml_dtypes.float8_e4m3fn
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32).numpy()
    np.testing.assert_array_equal(array.astype(np.float32), theirs)


IMPORTS = """
import sys
import weightd.client.views as views
print(sorted({"numpy", "torch", "ml_dtypes"} & set(sys.modules)))
from weightd.core.safetensors import TensorInfo
views.numpy_view(memoryview(bytes(8)), TensorInfo("a", "F32", (2,), 0, 8))
print(sorted({"numpy", "torch", "ml_dtypes"} & set(sys.modules)))
views.numpy_view(memoryview(bytes(8)), TensorInfo("a", "BF16", (4,), 0, 8))
print(sorted({"numpy", "torch", "ml_dtypes"} & set(sys.modules)))
"""


def test_imports_come_late() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['numpy']", "['ml_dtypes', 'numpy']"]


CRASH = """
import mmap, sys
import numpy as np
from weightd.client.views import numpy_view
from weightd.core.safetensors import read_header
with open(sys.argv[1], "rb") as file:
    view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
array = numpy_view(view, read_header(view).tensors["a"])
np.copyto(np.zeros_like(array), array)
try:
    np.add(array, 1, out=array)
except ValueError as e:
    print(e)
"""


def test_a_write_raises_and_does_not_kill(make: Any) -> None:
    made = make("F32")
    done = subprocess.run([sys.executable, "-c", CRASH, str(made.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "read-only" in done.stdout
