"""Which refs are allowed, and what does not get around it."""

from __future__ import annotations

import fnmatch
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.allow import AllowList, matches
from weightd.core.errors import AccessDenied, RefNotAllowed, RefSyntax
from weightd.core.refs import Ref, parse_ref

SECRET = "s3cr3tZ9"


def ref(text: str) -> Ref:
    """Also of schemes that this version may not read yet."""
    scheme = text.partition("://")[0].lower() if "://" in text else "name"
    return Ref(scheme, text)


def allowed(text: str, *patterns: str, configured: tuple[str, ...] = ()) -> bool:
    return AllowList(patterns, configured).allows(ref(text))


ALLOWED = [
    ("https://h/p/", "https://h/p/x"),
    ("https://h/p/", "https://h/p/x/y/model.safetensors"),
    ("https://h/p/", "https://h/p/"),
    ("https://h/p/", "HTTPS://H:443/p/x"),
    ("https://H:443/p/", "https://h/p/x"),
    ("https://h/p/", "https://user:word@h/p/x"),
    ("https://h/p/", "https://h/p/x?sig=1&a=/../b"),
    ("https://h/p/", "https://h/%70/x"),
    ("https://h/a%20b/", "https://h/a%20b/x"),
    ("https://h/é/", "https://h/%C3%A9/x"),
    ("https://h", "https://h/anything/below"),
    ("https://h:8443/", "https://h:08443/x"),
    ("http://h:*/", "http://h:81/x"),
    ("https://h/model.bin", "https://h/model.bin"),
    ("https://h/*.bin", "https://h/a/b.bin"),
    ("https://h/get?id=*", "https://h/get?id=7"),
    ("https://*.example.org/m/", "https://a.b.example.org/m/x"),
    ("http://[::1]:80/", "http://[::1]/x"),
    ("hf://org/*", "hf://org/name"),
    ("hf://org/*", "hf://org/name@refs/pr/1"),
    ("hf://org/", "hf://org/name@main"),
    ("hf://org/*", "hf://models/org/name@main"),
    ("hf://models/org/*", "hf://org/name"),
    ("hf://org/name@v*", "hf://org/name@v1.2"),
    ("hf://org/*", "hf://org/name@a%2Fb"),
    ("hf://org/*", "hf://org/name?include=*.gguf&exclude=x"),
    ("hf://org/*", "hf://models/org/name/deep/x.json"),
    ("hf://org/name", "hf://org/name@v1/deep/x.json"),
    ("hf://org/name", "hf://org/name/deep/?include=*"),
    ("hf://org/name/deep/", "hf://org/name/deep/x.json"),
    ("hf://org/name@v1", "hf://org/name@v1/x.json?include=*"),
    ("hf://org/name@main", "hf://org/name"),
    ("hf://org/name@refs/pr/*", "hf://org/name@refs%2Fpr%2F1"),
    ("hf://org/name?include=*.gguf", "hf://org/name?include=*.gguf"),
    ("hf://gpt2", "hf://gpt2@main/x.json"),
    ("hf://*", "hf://gpt2"),
    ("s3://bucket/models/", "s3://bucket/models/a/"),
    ("s3://bucket/models/", "s3://bucket/models/a%20b/"),
    ("s3://bucket", "s3://bucket/key"),
    ("s3://bucket/k?versionId=*", "s3://bucket/k?versionId=abc"),
    ("file:///srv/m/", "file:///srv/m/x"),
    ("file:///srv/m/", "FILE://localhost/srv/m/x"),
    ("name", "name"),
    ("team/*", "team/a/b"),
    ("*", "https://anything/../at%252e/all"),
    ("*", "some-name"),
]


@pytest.mark.parametrize(("pattern", "text"), ALLOWED)
def test_allowed(pattern: str, text: str) -> None:
    assert allowed(text, pattern)


ATTACKS = {
    # other places
    "https://h/p/": [
        "https://h/q/x",
        "https://h/p",
        "https://h/pp/x",
        "https://h/P/x",
        "http://h/p/x",
        "https://h:8443/p/x",
        "https://hh/p/x",
        "https://h.evil/p/x",
        "https://evil.h/p/x",
        "https://h./p/x",
        "file:///p/x",
        "s3://h/p/x",
        # user, query and fragment
        "https://h@evil/p/x",
        "https://h:443@evil/p/x",
        "https://h%2fp%2f@evil/x",
        "https://evil/?https://h/p/x",
        "https://evil/#https://h/p/x",
        "https://evil#@h/p/x",
        "https://evil?@h/p/x",
        "https://evil\\@h/p/x",
        "https://h\\.evil/p/x",
        "https://h/q?/p/x",
        "https://h/p/x#y",
        # parts that climb
        "https://h/p/../q",
        "https://h/p/%2e%2e/q",
        "https://h/p/.%2E/q",
        "https://h/p/%252e%252e/q",
        "https://h/p/%25252e%25252e/q",
        "https://h/p/..%2fq",
        "https://h/p/..%5cq",
        "https://h/p/..\\q",
        "https://h/p/%2e%2e%2fq",
        "https://h/p/..;/q",
        "https://h/p/..;a=b/q",
        "https://h/p/%2e%2e%3b/q",
        "https://h/p/..%20/q",
        "https://h/p/.../q",
        "https://h/p/./x",
        "https://h/p//x",
        "https://h//p/x",
        "https://h/p/;/x",
        "https://h/p/..",
        "https://h/p/x/..%00/q",
        "https://h/p/%c0%ae%c0%ae/q",
        "https://h/p/%EF%BC%8E%EF%BC%8E/q",
        "https://h/p/..%EF%BC%8Fq",
        "https://h/p/%EF%BC%85%32e/q",
        "https://h/%2570/x",
        # hosts in disguise
        "https://ⓗ/p/x",
        "https://\u212a/p/x",
        "https://h:0443\u0660/p/x",
        "https://h:443:443/p/x",
        "https://h:-443/p/x",
        "https://h:000000443/p/x",
        "https:///p/x",
        "https://h /p/x",
        "https://h\t/p/x",
        "https://h/p/x\n",
        "https://[h]/p/x",
    ],
    "https://k/": ["https://\u212a/x", "https://\uff4b/x"],
    "https://*.example.org/": [
        "https://example.org/x",
        "https://evil.com/.example.org/x",
        "https://evil.com?.example.org/",
        "https://a.example.org.evil.com/",
        "https://a.example.org:81/",
        "https://evil.com@example.org/",
        "https://a.example.org@evil.com/",
    ],
    "https://h/model.bin": ["https://h/model.bin/x", "https://h/model.bin2", "https://h/Model.bin"],
    "https://h/get?id=7": ["https://h/get", "https://h/get?id=8", "https://h/get?id=7&id=8", "https://h/get?x&id=7"],
    "hf://org/*": [
        "hf://Org/name",
        "hf://org2/name",
        "hf://user@org/name",
        "hf://org/../other/name",
        "hf://org/name@../../other/main",
        "hf://org/name@%2e%2e%2fother",
        "hf://org/name?x=1",
        "hf://other/org/name",
        "hf://org",
        "hf://org@main/name",
        "hf://models/other/org/name",
        "hf://org@org/name",
        "hf://org:80/name",
        "https://org/name",
    ],
    "hf://org/name@v1": ["hf://org/name", "hf://org/name@v2", "hf://org/name@main", "hf://org/name@v1@v2"],
    "hf://*/public-*": ["hf://models/public-org/secret", "hf://models//public-org/secret", "hf://models"],
    "hf://public-org/*": ["hf://models/models/public-org/secret"],
    "hf://org/a%20b": ["hf://org/a b"],
    "hf://org/name": ["hf://org/name2", "hf://org/other/name", "hf://org/other?include=name", "hf://org/name/../x?y"],
    "hf://org/name/deep/": ["hf://org/name", "hf://org/name/x", "hf://org/name/deep/../x", "hf://org/name/deeper/x"],
    "hf://org/name?include=*.gguf": ["hf://org/name", "hf://org/name?include=*"],
    "hf://gpt2": ["hf://gpt"],
    "s3://bucket/models/": [
        "s3://bucket/models",
        "s3://bucket/other/models/",
        "s3://Bucket/models/x",
        "s3://bucket/mod%65ls/x",
        "s3://bucket/models/../other/",
        "s3://bucket/models//x",
        "s3://key@bucket/models/x",
        "s3://bucket/models/x?endpoint=https://evil/",
        "s3://bucket.evil/models/x",
    ],
    "file:///srv/m/": [
        "file:///srv/m",
        "file:///srv/m/../../etc/passwd",
        "file:///srv/m/%2e%2e/%2e%2e/etc/passwd",
        "file:///srv/m/x/%2e%2e/%2E%2e/y",
        "file:////srv/m/x",
        "file:///srv//m/x",
        "file://evil/srv/m/x",
        "file:///srv/m/%ff",
        "file:///etc/passwd#/srv/m/",
        "file:///etc/passwd?/srv/m/",
        "file:///%73rv/m/x",
    ],
    "team/*": ["team", "teams/a", "other", "https://team/a", "file:///team/a"],
}


@pytest.mark.parametrize(("pattern", "text"), [(p, t) for p, texts in ATTACKS.items() for t in texts])
def test_attacks(pattern: str, text: str) -> None:
    assert not allowed(text, pattern)
    assert allowed(text, pattern, "*")


def test_configured_models_are_allowed_by_being_configured() -> None:
    assert allowed("tiny", configured=("tiny",))
    assert not allowed("other", configured=("tiny",))
    assert not allowed("tin*", configured=("tiny",))
    assert not allowed("https://tiny/", configured=("tiny",))


def test_nothing_is_allowed_by_an_empty_list() -> None:
    assert not any(allowed(text) for _, text in ALLOWED)
    assert all(AllowList().allows(ref(text)) for _, text in ALLOWED)


def test_the_error_tells_no_secret() -> None:
    with pytest.raises(RefNotAllowed) as e:
        AllowList(["https://h/"]).check(ref(f"https://u:{SECRET}@evil/x?sig={SECRET}"))
    assert SECRET not in str(e.value)
    assert "evil/x" in str(e.value)
    assert isinstance(e.value, AccessDenied)


@pytest.mark.parametrize(
    "pattern",
    [
        *("ftp://h/", "h://", "https://", "https:///x", "https://h/a/../b/", "https://h/a//b/", "https://h/#x"),
        *("https://h/%252e/", "https://h /", "file://host/x", "s3://a:b/", "", "a b", "name@x", "https:/h/"),
        *(f"https://u:{SECRET}@h/", "hf://u@org/x"),
    ],
)
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError) as e:
        AllowList([pattern])
    assert SECRET not in str(e.value)


GLOB = st.text("ab*", max_size=8)
TEXT = st.text("ab*", max_size=8)


@given(GLOB, TEXT)
def test_stars(pattern: str, text: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None
    assert matches(pattern, text) is expected
    assert fnmatch.fnmatchcase(text, pattern) is expected


def test_many_stars_take_no_time() -> None:
    assert not matches("*a" * 200 + "b", "a" * 5000)


SEGMENT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=6)


@given(st.lists(st.sampled_from(["..", ".", "a", "p", "%2e%2e", "%2E.", "", "..;x", "b"]), max_size=7))
def test_no_path_leads_out(parts: list[str]) -> None:
    """Against a server that decodes once and then resolves the path."""
    text = "https://h/p/" + "/".join(parts)
    resolved: list[str] = []
    for part in ["p", *parts]:
        plain = part.replace("%2e", ".").replace("%2E", ".").partition(";")[0]
        if plain == ".." and resolved:
            resolved.pop()
        elif plain not in ("", ".", ".."):
            resolved.append(plain)
    if allowed(text, "https://h/p/"):
        assert resolved[:1] == ["p"]


@given(st.lists(SEGMENT, min_size=1, max_size=4))
def test_ordinary_names_are_matched_encoded_or_not(parts: list[str]) -> None:
    text = "https://h/p/" + "/".join(quote(p, safe="") for p in parts)
    plain = all(p.isalnum() for p in parts)
    assert allowed(text, "https://h/p/") or not plain


@given(st.text(max_size=60))
def test_whatever_is_asked_for_gets_an_answer(text: str) -> None:
    try:
        parsed = parse_ref(text)
    except RefSyntax:
        return
    assert AllowList(["https://h/", "file:///srv/"]).allows(parsed) in (True, False)
