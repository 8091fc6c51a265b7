"""Our parser beside the reference library: what it refuses we refuse, what it takes we take, but for a short list."""

from __future__ import annotations

import json
import math
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from weightd.core.dtypes import BITS
from weightd.core.errors import FormatError
from weightd.core.safetensors import MAX_HEADER, Header, header_length, parse_header, read_header

ONE = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'


def pack(header: str | bytes, data: bytes = b"") -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + data


def field(name: str, value: str) -> str:
    """The header of one byte of data, `value` in the place of one field."""
    fields = {"dtype": '"U8"', "shape": "[1]", "data_offsets": "[0,1]", name: value}
    return '{"a":{' + ",".join(f'"{k}":{v}' for k, v in fields.items()) + "}}"


def reference(blob: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """What the reference reads, or None where it refuses."""
    try:
        return {k: (v["dtype"], tuple(v["shape"]), bytes(v["data"])) for k, v in deserialize(blob)}
    except SafetensorError:
        return None


def ours(blob: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    try:
        header = read_header(memoryview(blob))
    except FormatError:
        return None
    return {t.name: (t.dtype, t.shape, blob[t.offset : t.offset + t.length]) for t in header.tensors.values()}


@pytest.mark.parametrize("dtype", BITS)
def test_every_dtype_has_the_size_that_the_reference_gives_it(dtype: str) -> None:
    size = 8 * BITS[dtype] // 8
    good = pack(json.dumps({"a": {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, size]}}), bytes(range(size)))
    assert ours(good) == reference(good) == {"a": (dtype, (2, 4), bytes(range(size)))}
    for wrong in (size - 1, size + 1):
        bad = pack(json.dumps({"a": {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, wrong]}}), bytes(wrong))
        assert ours(bad) is reference(bad) is None


def test_the_table_has_all_dtypes_of_the_reference() -> None:
    with pytest.raises(SafetensorError) as refused:
        deserialize(pack(field("dtype", '"none"'), b"x"))
    assert set(str(refused.value).split("`")[3::2]) == set(BITS)


def test_what_a_header_says() -> None:
    blob = pack(
        '{"b":{"dtype":"U8","shape":[],"data_offsets":[4,5]},"__metadata__":{"format":"pt"},'
        '"a":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]}}   ',
        b"12345",
    )
    header = read_header(memoryview(blob))
    assert list(header.tensors) == ["a", "b"], "in the order of the data"
    assert header.metadata == {"format": "pt"}
    assert header.data_offset == len(blob) - 5
    a = header.tensors["a"]
    assert (a.name, a.dtype, a.shape, a.offset, a.length) == ("a", "F16", (2, 1), header.data_offset, 4)
    assert header.tensors["b"].offset == header.data_offset + 4


def test_a_header_can_be_read_before_the_data_is_there() -> None:
    blob = pack('{"a":' + ONE + "}", b"x")
    length = header_length(blob[:8], len(blob))
    assert parse_header(blob[8 : 8 + length], len(blob)) == read_header(memoryview(blob))


BAD: dict[str, tuple[str | bytes, bytes, str]] = {
    "empty": ("", b"", "does not begin with '{'"),
    "an array": ("[]", b"", "does not begin with '{'"),
    "null": ("null", b"", "does not begin with '{'"),
    "a byte order mark": ("\ufeff{}", b"", "does not begin with '{'"),
    "not UTF-8, in a name": (b'{"\xff":' + ONE.encode() + b"}", b"x", "not UTF-8 at byte 2"),
    "not UTF-8, in an ignored field": (b'{"a":{"x":"\xff",' + ONE[1:].encode() + b"}", b"x", "not UTF-8 at byte 11"),
    "an encoded surrogate": (b'{"\xed\xa0\x80":' + ONE.encode() + b"}", b"x", "not UTF-8"),
    "cut short": ('{"a":', b"", "not JSON"),
    "a trailing comma": ('{"a":' + ONE + ",}", b"x", "not JSON: .*trailing comma"),
    "zeros as padding": ("{}\0\0", b"", "not JSON: .*trailing characters"),
    "something behind it": ("{}{}", b"", "not JSON: .*trailing characters"),
    "a control character": ('{"a\x01":' + ONE + "}", b"x", "not JSON: .*invalid character"),
    "half a surrogate pair": ('{"\\ud800":' + ONE + "}", b"x", "not JSON: .*surrogate"),
    "the other half": ('{"\\udc00":' + ONE + "}", b"x", "not JSON: .*surrogate"),
    "NaN": (field("x", "NaN"), b"x", "not JSON"),
    "a leading zero": (field("shape", "[01]"), b"x", "not JSON: .*invalid number"),
    "a tensor that is a number": ('{"a":' + ONE + ',"b":1}', b"x", "must be objects: Expected object"),
    "a tensor that is null": ('{"a":null}', b"", "tensor 'a': null"),
    "dtype missing": ('{"a":{"shape":[1],"data_offsets":[0,1]}}', b"x", "tensor 'a': the field 'dtype' is missing"),
    "shape missing": ('{"a":{"dtype":"U8","data_offsets":[0,1]}}', b"x", "the field 'shape' is missing"),
    "offsets missing": ('{"a":{"dtype":"U8","shape":[1]}}', b"x", "the field 'data_offsets' is missing"),
    "unknown dtype": (field("dtype", '"F3"'), b"x", "tensor 'a': unknown dtype 'F3'"),
    "dtype in small letters": (field("dtype", '"u8"'), b"x", "unknown dtype 'u8'"),
    "dtype a number": (field("dtype", "0"), b"x", "dtype: Expected str, got int"),
    "shape null": (field("shape", "null"), b"x", "shape: Expected array, got null"),
    "a float in shape": (field("shape", "[1.0]"), b"x", "shape: Expected int, got float"),
    "a string in shape": (field("shape", '["1"]'), b"x", "shape: Expected int, got str"),
    "a bool in shape": (field("shape", "[true]"), b"x", "shape: Expected int, got bool"),
    "a negative size": (field("shape", "[-1]"), b"x", "shape: Expected int >= 0"),
    "minus zero": (
        '{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}',
        b"",
        "shape: -0 is not a size",
    ),
    "one offset": (field("data_offsets", "[0]"), b"x", "data_offsets: Expected array of length 2"),
    "three offsets": (field("data_offsets", "[0,1,1]"), b"x", "data_offsets: Expected array of length 2"),
    "offsets backwards": (field("data_offsets", "[1,0]"), b"x", "data_offsets end at 0, before they begin at 1"),
    "shape and offsets disagree": (field("shape", "[2]"), b"x", r"span 1 bytes, U8 of shape \[2\] takes 2"),
    "a size beyond 64 bits": (field("shape", f"[0,{2**64}]"), b"x", "overflows 64 bits"),
    "a size of thousands of digits": (field("shape", f"[{'9' * 5000}]"), b"x", "shape: Integer value out of range"),
    "a product beyond 64 bits": (field("shape", f"[{2**63},2]"), b"x", "overflows 64 bits"),
    "a product beyond, then zero": (field("shape", f"[{2**63},2,0]"), b"x", "overflows 64 bits"),
    "bits beyond 64 bits": (field("shape", f"[{2**61}]"), b"x", "of U8 overflows 64 bits"),
    "an offset beyond 64 bits": (field("data_offsets", f"[0,{2**64}]"), b"x", "data_offsets: a number beyond 64"),
    "half a byte": (
        '{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}',
        b"x",
        "3 elements of F4 do not fill whole",
    ),
    "a gap before the first": (field("data_offsets", "[1,2]"), b"xx", "tensor 'a' leaves a gap .* byte 1 .* 0 are"),
    "a gap between": (
        '{"a":' + ONE + ',"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}',
        b"xxx",
        "tensor 'b' leaves a gap",
    ),
    "an overlap": (
        '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}',
        b"xxx",
        "tensor 'b' overlaps the one before",
    ),
    "the same bytes twice": ('{"a":' + ONE + ',"b":' + ONE + "}", b"x", "tensor 'b' overlaps"),
    "data cut short": ('{"a":' + ONE + "}", b"", "is cut short: it has .* bytes, its header accounts for"),
    "data too long": ('{"a":' + ONE + "}", b"xx", "goes on after the last tensor"),
    "data and no tensors": ("{}", b"x", "goes on after the last tensor"),
    "metadata a list": ('{"__metadata__":[]}', b"", "must be objects: Expected object, got array"),
    "metadata of numbers": ('{"__metadata__":{"a":1}}', b"", "__metadata__: Expected str, got int"),
    "metadata of nulls": ('{"__metadata__":{"a":null}}', b"", "__metadata__: Expected str, got null"),
    "metadata of numbers, hidden": ('{"__metadata__":{"a":1,"a":"1"}}', b"", "__metadata__: Expected str, got int"),
    "metadata twice": ('{"__metadata__":{},"__metadata__":{}}', b"", "the name '__metadata__' occurs twice"),
    "metadata twice, once null": ('{"__metadata__":null,"__metadata__":{}}', b"", "'__metadata__' occurs twice"),
    "dtype twice": ('{"a":{"dtype":"U8",' + ONE[1:] + "}", b"x", "tensor 'a': the name 'dtype' occurs twice"),
    "dtype twice, in disguise": ('{"a":{"d\\u0074ype":"U8",' + ONE[1:] + "}", b"x", "the name 'dtype' occurs twice"),
    "a hidden null": ('{"a":null,"a":' + ONE + "}", b"x", "the name 'a' occurs twice"),
    "a hidden empty object": ('{"a":{},"a":' + ONE + "}", b"x", "the name 'a' occurs twice"),
    "an ignored number out of range": (field("x", "1e999"), b"x", "Number out of range"),
    "an ignored integer out of range": (field("x", "9" * 400), b"x", "a number is out of range"),
    "an ignored value too deep": (field("x", "[" * 126 + "]" * 126), b"x", "nested too deeply"),
    "an ignored value far too deep": (field("x", "[" * 90_000 + "]" * 90_000), b"x", "deep|recursion"),
    "an ignored half surrogate": (field("x", '"\\udc00"'), b"x", "not JSON: .*surrogate"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_header_is_refused_with_the_reason(case: str) -> None:
    header, data, reason = BAD[case]
    blob = pack(header, data)
    with pytest.raises(FormatError, match=reason) as refused:
        read_header(memoryview(blob), file="model.safetensors")
    assert refused.value.file == "model.safetensors"
    assert refused.value.remedy
    assert len(str(refused.value)) < 1000
    assert reference(blob) is None


STRICTER: dict[str, tuple[str, bytes, str]] = {
    "a name twice": ('{"a":' + ONE + ',"a":' + ONE + "}", b"x", "the header: the name 'a' occurs twice"),
    "a name twice, in disguise": ('{"a":' + ONE + ',"\\u0061":' + ONE + "}", b"x", "the name 'a' occurs twice"),
    "a name twice, the first absurd": (
        '{"a":{"dtype":"U8","shape":[7],"data_offsets":[5,6]},"a":' + ONE + "}",
        b"x",
        "the name 'a' occurs twice",
    ),
    "the name of a field twice": ('{"dtype":' + ONE + ',"dtype":' + ONE + "}", b"x", "the name 'dtype' occurs twice"),
    "an ignored field twice": ('{"a":{"x":1,"x":2,' + ONE[1:] + "}", b"x", "tensor 'a': the name 'x' occurs twice"),
    "white space first": (' {"a":' + ONE + "}", b"x", "does not begin with '{'"),
    "a tensor as an array": ('{"a":["U8",[1],[0,1]]}', b"x", "Expected object, got array"),
    "a dtype as an object": (field("dtype", '{"U8":null}'), b"x", "dtype: Expected str, got object"),
    "an ignored field of 64 KiB": (field("x", '"' + "x" * 65536 + '"'), b"x", "over 65536 bytes"),
}


@pytest.mark.parametrize("case", STRICTER)
def test_where_we_are_stricter_than_the_reference(case: str) -> None:
    header, data, reason = STRICTER[case]
    assert reference(pack(header, data)) is not None, "no longer stricter: correct the module's text"
    with pytest.raises(FormatError, match=reason):
        read_header(memoryview(pack(header, data)))


GOOD: dict[str, tuple[str, bytes]] = {
    "no tensors": ("{}", b""),
    "padding": ('{"a":' + ONE + "} \n\t\r  ", b"x"),
    "white space inside": ('{ "a" :\n' + ONE.replace(",", " ,\t") + " }", b"x"),
    "an empty name": ('{"":' + ONE + "}", b"x"),
    "a name of a field": ('{"shape":' + ONE + "}", b"x"),
    "a name with braces and escapes": ('{"{\\"dtype\\"}\\u0000\\ud83d\\ude00":' + ONE + "}", b"x"),
    "a dtype with an escape": (field("dtype", '"\\u00558"'), b"x"),
    "metadata null": ('{"__metadata__":null,"a":' + ONE + "}", b"x"),
    "metadata with the fields' names": ('{"__metadata__":{"dtype":"{}","shape":"null"},"a":' + ONE + "}", b"x"),
    "metadata's name in disguise": ('{"\\u005f_metadata__":{"a":"b"},"a":' + ONE + "}", b"x"),
    "a metadata key twice": ('{"__metadata__":{"a":"b","a":"c"},"a":' + ONE + "}", b"x"),
    "an ignored field": (field("x", '[{"a":[1,-2.5e3,null,true,"\\n"]},"null"]'), b"x"),
    "an ignored value, deep": (field("x", "[" * 125 + "]" * 125), b"x"),
    "an ignored long integer": (field("x", "9" * 300), b"x"),
    "nothing, of a huge shape": ('{"a":{"dtype":"U8","shape":[0,18446744073709551615,7],"data_offsets":[0,0]}}', b""),
    "empty tensors between": (
        '{"a":' + ONE + ',"z":{"dtype":"F32","shape":[0],"data_offsets":[1,1]},'
        '"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"y":{"dtype":"F32","shape":[3,0],"data_offsets":[0,0]}}',
        b"xy",
    ),
    "packed": ('{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}', b"xyz"),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_the_reference_takes_we_take(case: str) -> None:
    blob = pack(*GOOD[case])
    assert ours(blob) is not None
    assert ours(blob) == reference(blob)


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"", "has 0 bytes, too few"),
        (b"1234567", "has 7 bytes, too few"),
        (bytes(8), "does not begin"),
        (struct.pack("<Q", 3) + b"{}", "said to have 3 bytes, the file has 10 in all"),
        (struct.pack("<Q", MAX_HEADER + 1) + b"{}", "the format allows 100000000"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "the format allows 100000000"),
    ],
)
def test_a_bad_length_is_refused(blob: bytes, reason: str) -> None:
    assert reference(blob) is None
    with pytest.raises(FormatError, match=reason):
        read_header(memoryview(blob))


def test_the_largest_header_is_taken_and_a_larger_one_refused() -> None:
    assert header_length(struct.pack("<Q", MAX_HEADER), MAX_HEADER + 8) == MAX_HEADER
    with pytest.raises(FormatError, match="allows 100000000"):
        header_length(struct.pack("<Q", MAX_HEADER + 1), 10**12)


def test_a_hostile_header_does_not_take_much_memory() -> None:
    blob = pack(field("x", "[" + "[]," * 2_000_000 + "[]]"), b"x")
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="over 65536 bytes"):
            read_header(memoryview(blob))
        assert tracemalloc.get_traced_memory()[1] < 4 * len(blob)
    finally:
        tracemalloc.stop()


def test_many_tensors_and_their_duplicates() -> None:
    """The proof by counting and the slow check agree on a large header."""
    entries = [f'"layer.{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(20_000)]
    blob = pack("{" + ",".join(entries) + "}", bytes(20_000))
    assert len(read_header(memoryview(blob)).tensors) == 20_000
    twice = pack("{" + ",".join([*entries, entries[7]]) + "}", bytes(20_000))
    with pytest.raises(FormatError, match=r"the name 'layer\.7' occurs twice"):
        read_header(memoryview(twice))


# --- generated files ---------------------------------------------------------------------------------------------

Entries = dict[str, dict[str, Any]]
names = st.one_of(
    st.sampled_from(["a", "dtype", "shape", "é", "{"]), st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
)


@st.composite
def entries(draw: st.DrawFn) -> Entries:
    """Tensors that fill their data, in any order, empty and scalar ones among them."""
    made: Entries = {}
    reached = 0
    for name in draw(st.lists(names.filter(lambda n: n != "__metadata__"), unique=True, max_size=5)):
        dtype = draw(st.sampled_from(sorted(BITS)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        if math.prod(shape) * BITS[dtype] % 8:
            shape.append(4)
        size = math.prod(shape) * BITS[dtype] // 8
        made[name] = {"dtype": dtype, "shape": shape, "data_offsets": [reached, reached + size]}
        reached += size
    return dict(draw(st.permutations(list(made.items()))))


def data_size(tensors: Entries) -> int:
    return max((t["data_offsets"][1] for t in tensors.values()), default=0)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    tensors = draw(entries())
    header: dict[str, Any] = dict(tensors)
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.none() | st.dictionaries(names, names, max_size=2))
    text = json.dumps(header, ensure_ascii=draw(st.booleans())) + " " * draw(st.integers(0, 8))
    return pack(text, draw(st.binary(min_size=data_size(tensors), max_size=data_size(tensors))))


@settings(max_examples=150, deadline=None)
@given(files())
def test_valid_files_are_read_as_the_reference_reads_them(blob: bytes) -> None:
    assert reference(blob) is not None
    assert ours(blob) == reference(blob)


def agree(blob: bytes) -> None:
    """Same verdict, or ours is stricter in one of the ways that the module states."""
    theirs, mine = reference(blob), ours(blob)
    if mine is None and theirs is not None:
        with pytest.raises(FormatError, match=r"occurs twice|does not begin with|got array|got object|out of range"):
            read_header(memoryview(blob))
        return
    assert mine == theirs


ALPHABET = b'{}[],:"\\ 01.-eE\x00\x1f\x7f\x80\xffnulltrue"dtype""shape"'


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_get_the_verdict_of_the_reference(data: st.DataObject) -> None:
    blob = bytearray(data.draw(files()))
    stop = 8 + int.from_bytes(blob[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(8, stop - 1) if stop > 8 else st.just(0))
        blob[at] = data.draw(st.sampled_from(ALPHABET) | st.integers(0, 255))
    agree(bytes(blob))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_file_cut_or_grown_gets_the_verdict_of_the_reference(data: st.DataObject) -> None:
    blob = data.draw(files())
    at = data.draw(st.integers(0, len(blob)))
    cut = data.draw(st.sampled_from([blob[:at], blob + bytes(at % 3), blob[:at] + b" " + blob[at:], blob[at:]]))
    agree(cut)


SIZES = st.integers(0, 9) | st.sampled_from([-1, 2**31, 2**61, 2**63, 2**64 - 1, 2**64, 1.0, True, None, "1"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=5,
)
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "shape": st.lists(SIZES, max_size=3) | JSON,
    "data_offsets": st.lists(SIZES, min_size=1, max_size=3) | JSON,
    "dtype": st.sampled_from([*sorted(BITS), "f32", "F6", ""]) | JSON,
    "extra": JSON,
}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_fields_get_the_verdict_of_the_reference(data: st.DataObject) -> None:
    tensors = data.draw(entries())
    size = data_size(tensors)
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2) if tensors else st.just([])):
        key = data.draw(st.sampled_from(sorted(CHANGES)))
        tensors[name] = tensors[name] | {key: data.draw(CHANGES[key])}
    if tensors and data.draw(st.booleans()):
        del tensors[data.draw(st.sampled_from(sorted(tensors)))]
    header: dict[str, Any] = {**tensors, "__metadata__": data.draw(st.none() | st.just({}) | JSON)}
    agree(pack(json.dumps(header), bytes(data.draw(st.sampled_from([size, data_size_now(tensors)])))))


def data_size_now(tensors: Entries) -> int:
    ends = [
        t["data_offsets"][-1] for t in tensors.values() if isinstance(t["data_offsets"], list) and t["data_offsets"]
    ]
    return max((e for e in ends if isinstance(e, int) and 0 <= e < 10_000), default=0)


@st.composite
def members(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Members of an object, names and fields repeated and hidden at will."""
    value = st.sampled_from([ONE, "null", "{}", ONE.replace("U8", "XX"), ONE.replace("[0,1]", "[3,4]")])
    inner = st.sampled_from(
        ['"dtype":"U8"', '"shape":[1]', '"data_offsets":[0,1]', '"dtype":"XX"', '"x":1e999', '"x":"null"']
    )
    spelled = st.lists(inner, min_size=3, max_size=4).map(lambda f: "{" + ",".join(f) + "}")
    key = st.sampled_from(["a", "\\u0061", "__metadata__", "dtype"])
    return draw(st.lists(st.tuples(key, value | spelled | st.just('{"a":"b"}')), min_size=1, max_size=3))


@settings(max_examples=250, deadline=None)
@given(members())
def test_nothing_hides_behind_a_name(made: list[tuple[str, str]]) -> None:
    blob = pack("{" + ",".join(f'"{key}":{value}' for key, value in made) + "}", b"x")
    agree(blob)
    keys = [json.loads(f'"{key}"') for key, _ in made]
    if len(set(keys)) < len(keys):
        assert ours(blob) is None


@pytest.mark.parametrize("read", [parse_header, lambda raw, size: read_header(memoryview(pack(raw, b"x")))])
def test_safe_open_agrees(read: Callable[[bytes, int], Header], tmp_path: Path) -> None:
    """The other door of the reference, over a file."""
    raw = ('{"a":' + ONE + ',"__metadata__":{"k":"v"}}').encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack(raw, b"x"))
    header = read(raw, len(raw) + 9)
    with safetensors.safe_open(path, "numpy") as opened:
        assert opened.metadata() == header.metadata
        assert list(opened.keys()) == list(header.tensors)
