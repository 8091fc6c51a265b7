"""Tensors by name, over all files of a model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from weightd.client.files import FileHandle
from weightd.core.errors import FormatError, TensorNotFound
from weightd.core.safetensors import TensorInfo, read_header


class LocatedTensor(NamedTuple):
    """`info.offset` counts from the beginning of `file`."""

    info: TensorInfo
    file: FileHandle


def read_tables(files: Iterable[FileHandle]) -> dict[str, LocatedTensor]:
    """Of every .safetensors file, in their order. Raises FormatError, also for a name that two files have."""
    found: dict[str, LocatedTensor] = {}
    for file in files:
        if not file.path.endswith(".safetensors"):
            continue
        for name, info in read_header(file.buffer, file=file.path).tensors.items():
            if name in found:
                raise FormatError(f"tensor {name!r} is in {found[name].file.path} as well", file=file.path)
            found[name] = LocatedTensor(info, file)
    return found


def not_found(name: str, tensors: dict[str, LocatedTensor], ref: str) -> TensorNotFound:
    """Names the nearest that exist."""
    if not tensors:
        return TensorNotFound(
            f"no tensor {name!r}: the model has no .safetensors file", ref=ref, remedy="Read it through lease.files."
        )
    near = difflib.get_close_matches(name, tensors, n=3)
    known = f"Did you mean {', '.join(repr(n) for n in near)}?" if near else "lease.tensors() lists all names."
    return TensorNotFound(f"no tensor {name!r}", ref=ref, remedy=known)
