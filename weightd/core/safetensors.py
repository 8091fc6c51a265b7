"""The header of a safetensors file: parsed, checked, and refused with the reason.

The format: 8 bytes, the header's length in bytes, little-endian; the header, a JSON object of tensors by name; data.
A file that the reference library (safetensors 0.8.0, `Metadata::validate` and `read_metadata` in
safetensors/src/tensor.rs) refuses is refused here. What the reference takes is taken, but for these, which the
format's own text forbids or does not know:

- a tensor's name that occurs twice, or an unknown field's in a tensor (the reference silently keeps the last one);
- white space before the `{`;
- a tensor written as a JSON array, a dtype written as a JSON object (accidents of the reference's decoder);
- unknown fields of a tensor, otherwise ignored, of over 64 KiB, or with a number beyond 1e308.

Reading takes 7 to 13 times the header's size in memory while it lasts, up to 44 times for one made to hurt (measured
with tracemalloc); a header has at most 100 MB.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from weightd.core.dtypes import BITS
from weightd.core.errors import FormatError

PREFIX: Final = 8
"""Bytes before the header: its length."""
MAX_HEADER: Final = 100_000_000
"""Bytes; `MAX_HEADER_SIZE` of the reference."""

_U64_MAX: Final = 2**64 - 1
_METADATA: Final = "__metadata__"
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})
_FIELD_NAMES: Final = tuple(f'"{field}"'.encode() for field in _FIELDS)
_Objects = dict[str, dict[str, msgspec.Raw] | None]
_MAX_IGNORED: Final = 64 * 1024
_MAX_NESTING: Final = 125  # serde_json stops at 128 levels, of which the header, the tensor and the value take three
_MAX_NUMBER: Final = 10**308  # serde_json rounds differently from Python just below the largest double
_REMEDY: Final = "The file is damaged or was written by a faulty program; get it again, or from another source"


class TensorInfo(msgspec.Struct, frozen=True, gc=False):
    """Where a tensor lies: `length` bytes from byte `offset` of the file.

    `dtype` is a key of `weightd.core.dtypes.BITS`; `shape` counts elements, also for packed dtypes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


class Header(msgspec.Struct, frozen=True):
    """A whole header. `tensors` is ordered by offset; `data_offset` is the byte of the file where data begins."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_offset: int


def read_header(view: memoryview, *, file: str = "") -> Header:
    """The header of a whole file, mapped or in memory; nothing but the header is read. Raises FormatError."""
    length = header_length(view[:PREFIX], len(view), file=file)
    return parse_header(view[PREFIX : PREFIX + length], len(view), file=file)


def header_length(first8: bytes | memoryview, file_size: int, *, file: str = "") -> int:
    """Bytes of JSON that follow the first 8 of a file of `file_size` bytes. Raises FormatError."""
    if len(first8) < PREFIX or file_size < PREFIX:
        raise _bad(f"the file has {min(file_size, len(first8))} bytes, too few for a header's length", file)
    length = int.from_bytes(first8[:PREFIX], "little")
    if length > MAX_HEADER:
        raise _bad(f"the header is said to have {length} bytes, the format allows {MAX_HEADER}", file)
    if PREFIX + length > file_size:
        raise _bad(f"the header is said to have {length} bytes, the file has {file_size} in all", file)
    return length


def parse_header(raw: bytes | memoryview, file_size: int, *, file: str = "") -> Header:
    """`raw` is the JSON, `file_size` the whole file's bytes. Raises FormatError, which names `file`."""
    raw = bytes(raw)
    objects = _objects(raw, file)
    metadata = _metadata(raw, file) if _METADATA in objects else {}
    objects.pop(_METADATA, None)
    start = PREFIX + len(raw)
    tensors = [_tensor(name, fields, start, file) for name, fields in objects.items()]
    tensors.sort(key=_by_place)
    _check_layout(tensors, start, file_size, file)
    return Header({t.name: t for t in tensors}, metadata, start)


_Size = Annotated[int, msgspec.Meta(ge=0)]
_OBJECTS = msgspec.json.Decoder(_Objects)
_TEXT = msgspec.json.Decoder(str)
_SHAPE = msgspec.json.Decoder(tuple[_Size, ...])
_OFFSETS = msgspec.json.Decoder(tuple[_Size, _Size])


def _objects(raw: bytes, file: str) -> _Objects:
    """The header's objects, their fields not yet decoded: slices of `raw`."""
    if raw[:1] != b"{":
        raise _bad(f"the header does not begin with '{{' but with {raw[:8]!r}", file)
    try:
        str(raw, "utf-8")  # the decoder does not check the strings that it skips
        objects = _OBJECTS.decode(raw)
        if not _surely_unique(raw, objects):
            check = _UniqueKeys(file)
            msgspec.json.Decoder(dict[_Name, dict[_Field, msgspec.Raw] | None], dec_hook=check).decode(raw)
        return objects
    except UnicodeDecodeError as e:
        raise _bad(f"the header is not UTF-8 at byte {e.start}", file) from None
    except msgspec.ValidationError as e:
        raise _bad(f"all tensors and {_METADATA} must be objects: {_reason(e)}", file) from None
    except (msgspec.DecodeError, RecursionError) as e:
        raise _bad(f"the header is not JSON: {e}", file) from None


def _surely_unique(raw: bytes, objects: _Objects) -> bool:
    r"""Whether counting alone proves that no object hides another of its name, and no field another.

    Decoded objects are as many as the text's braces, and nothing stands in an object's place (`null`), so none is
    hidden. Each has the three fields and no other, and the text has each field's name as often as there are tensors;
    to spell it otherwise would take an escape `\u00..`. Braces, nulls, field names and escapes inside of strings only
    add to the counts: then this says no, without proof.
    """
    tensors = len(objects) - (_METADATA in objects)
    return (
        raw.count(b"{") == 1 + len(objects)
        and b"null" not in raw
        and b"\\u00" not in raw
        and all(raw.count(field) == tensors for field in _FIELD_NAMES)
        and all(fields is None or len(fields) == 3 or name == _METADATA for name, fields in objects.items())
    )


class _Name(str):
    """A key of the header, to tell the two kinds apart in `_UniqueKeys`."""

    __slots__ = ()


class _Field(str):
    """A key of a tensor, or of the metadata."""

    __slots__ = ()


class _UniqueKeys:
    """Is shown every key as the decoder reaches it, an object's name before its fields; refuses the second of two.

    Some 7 us a tensor, against 0.1 without.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.name = ""
        self.names: set[str] = set()
        self.fields: set[str] = set()

    def __call__(self, kind: type, key: str) -> str:
        if kind is _Name:
            self._add(self.names, key, "the header")
            self.name = key
            self.fields.clear()
            return _Name(key)
        if self.name != _METADATA:
            self._add(self.fields, key, _where(self.name))
        return _Field(key)

    def _add(self, seen: set[str], key: str, where: str) -> None:
        if key in seen:
            raise _bad(f"{where}: the name {key[:200]!r} occurs twice", self.file)
        seen.add(key)


class _Top(msgspec.Struct):
    metadata: dict[str, str] | None = msgspec.field(default=None, name=_METADATA)


_TOP = msgspec.json.Decoder(_Top)


def _metadata(raw: bytes, file: str) -> dict[str, str]:
    """Decoded from the whole header, so that a value is checked also where a later one of its name hides it."""
    try:
        return _TOP.decode(raw).metadata or {}
    except msgspec.DecodeError as e:
        raise _bad(f"{_METADATA}: {_reason(e)}; it must be an object of strings", file) from None


def _tensor(name: str, fields: dict[str, msgspec.Raw] | None, start: int, file: str) -> TensorInfo:
    """One tensor, its offset absolute. Checks all but its place among the others."""
    try:
        if fields is None:
            raise ValueError("null, not an object")
        dtype, shape, (begin, end) = _decode_fields(fields)
        size = _stored_bytes(dtype, shape)
        if max(begin, end) > _U64_MAX:
            raise ValueError("data_offsets: a number beyond 64 bits")
        if end < begin:
            raise ValueError(f"data_offsets end at {end}, before they begin at {begin}")
        if end - begin != size:
            raise ValueError(f"data_offsets span {end - begin} bytes, {dtype} of shape {_short(shape)} takes {size}")
        return TensorInfo(name, dtype, shape, start + begin, size)
    except ValueError as e:
        raise _bad(f"{_where(name)}: {_reason(e)}", file) from None


def _decode_fields(fields: dict[str, msgspec.Raw]) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    field = ""
    try:
        dtype = _TEXT.decode(fields[field := "dtype"])
        shape = _SHAPE.decode(fields[field := "shape"])
        offsets = _OFFSETS.decode(fields[field := "data_offsets"])
        for field in fields.keys() - _FIELDS if len(fields) > len(_FIELDS) else ():
            _check_ignored(fields[field])
    except KeyError:
        raise ValueError(f"the field {field!r} is missing") from None
    except msgspec.DecodeError as e:
        raise ValueError(f"{field}: {_reason(e)}") from None
    for field, sizes in (("shape", shape), ("data_offsets", offsets)):
        if 0 in sizes and b"-" in bytes(fields[field]):
            raise ValueError(f"{field}: -0 is not a size")
    return dtype, shape, offsets


def _stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of the tensor. Multiplies in the reference's order, so that it overflows where the reference does."""
    bits = BITS.get(dtype)
    if bits is None:
        raise ValueError(f"unknown dtype {dtype[:100]!r}")
    elements = 1
    for dimension in shape:
        elements *= dimension
        if elements > _U64_MAX or dimension > _U64_MAX:
            raise ValueError(f"shape {_short(shape)} overflows 64 bits")
    if elements * bits > _U64_MAX:
        raise ValueError(f"shape {_short(shape)} of {dtype} overflows 64 bits")
    if elements * bits % 8:
        raise ValueError(f"{elements} elements of {dtype} do not fill whole bytes")
    return elements * bits // 8


def _check_ignored(raw: msgspec.Raw) -> None:
    """A field that is not the format's is ignored, if the reference can read it. Raises ValueError."""
    if len(text := bytes(raw)) > _MAX_IGNORED:
        raise ValueError(f"a field unknown to the format has over {_MAX_IGNORED} bytes")
    try:
        _check_value(msgspec.json.decode(text), 0)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _check_value(value: object, depth: int) -> None:
    if depth >= _MAX_NESTING and isinstance(value, (dict, list)):
        raise ValueError("nested too deeply")
    if isinstance(value, (int, float)) and abs(value) > _MAX_NUMBER:
        raise ValueError("a number is out of range")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_value(inner, depth + 1)


def _by_place(tensor: TensorInfo) -> tuple[int, int]:
    return tensor.offset, tensor.length


def _check_layout(tensors: list[TensorInfo], start: int, file_size: int, file: str) -> None:
    """The tensors, in order, fill the file from `start` to its end, each byte once."""
    reached = start
    for tensor in tensors:
        if tensor.offset != reached:
            what = "overlaps the one before" if tensor.offset < reached else "leaves a gap before itself"
            at = f"at byte {tensor.offset - start} of the data, {reached - start} are taken"
            raise _bad(f"{_where(tensor.name)} {what}: it begins {at}", file)
        reached += tensor.length
    if reached != file_size:
        what = "is cut short" if reached > file_size else "goes on after the last tensor"
        raise _bad(f"the file {what}: it has {file_size} bytes, its header accounts for {reached}", file)


def _where(name: str) -> str:
    """Names come from strangers: shortened, and quoted so that control characters show."""
    return name if name == _METADATA else f"tensor {name[:200]!r}"


def _short(shape: tuple[int, ...]) -> str:
    return str(list(shape[:16]))[:200]


def _reason(error: Exception) -> str:
    """The decoder's message, without its path, which does not know the tensor's name."""
    return str(error).partition(" - at `")[0].replace("`", "").replace(" | null", "")


def _bad(reason: str, file: str) -> FormatError:
    return FormatError(f"not a safetensors file: {reason}", file=file, remedy=_REMEDY)
