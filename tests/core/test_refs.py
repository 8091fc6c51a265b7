"""Refs from users, and what is shown of them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.core import refs
from weightd.core.errors import RefSyntax
from weightd.core.refs import parse_ref, redact

SECRET = "s3cr3tZ9"


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("https://host/path/model.safetensors", "https"),
        ("HTTP://host:8080/", "http"),
        ("http://[::1]:80/x", "http"),
        ("https://u:p@host/x?y=z", "https"),
        ("s3://bucket", "s3"),
        ("s3://bucket/", "s3"),
        ("s3://Old_bucket.with-dots/a//b", "s3"),
        ("s3://bucket/key.bin?versionId=3sL4kqtJlcpXroDTDmJ", "s3"),
        ("s3://bucket/a%20b/?include=*.gguf&include=*.json&exclude=x*", "s3"),
        ("file:///a/b", "file"),
        ("file://localhost/a/b", "file"),
        ("all-MiniLM-L6-v2", "name"),
        ("org/model", "name"),
        ("a/b/c/d", "name"),
        ("  model  ", "name"),
    ],
)
def test_good_refs(text: str, scheme: str) -> None:
    ref = parse_ref(text)
    assert (ref.scheme, ref.text) == (scheme, text.strip())


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "/absolute/path",
        "./x",
        "../x",
        "-x",
        "a//b",
        "a/../b",
        "a/b/c/d/e",
        "name with space",
        "ftp://host/x",
        "javascript://x",
        "hf://datasets/org/name",
        "s3://",
        "s3:///x",
        "s3://b/x",
        "s3://10.0.0.1/x",
        "s3://bucket:9000/x",
        "s3://bucket..a/x",
        "s3://bucket/x#y",
        "s3://bucket/x y",
        "s3://bucket/%ff",
        "s3://bucket/x?versionId=",
        "s3://bucket/x?versionId=a&versionId=b",
        "s3://bucket/x?version=1",
        "s3://bucket/x?y",
        "s3://bucket/x?include=*",
        "s3://bucket/x/?versionId=1",
        "s3://bucket/x/?include=",
        "s3://bucket/" + "x" * 1025,
        "https://",
        "https:///path",
        "https://user@/path",
        "https://host:port/x",
        "https://host:99999/x",
        "https://[::1/x",
        "https://host/x#fragment",
        "https://host/a b",
        "https://host/a\nb",
        "https://host/a\x7fb",
        "file://host/a",
        "file://relative",
        "file:///a%00b",
        "modèle",
    ],
)
def test_bad_refs(text: str) -> None:
    with pytest.raises(RefSyntax) as e:
        parse_ref(text)
    assert e.value.remedy


@given(st.text(max_size=80))
def test_any_text_is_a_ref_or_a_syntax_error(text: str) -> None:
    for candidate in (
        text,
        f"https://{text}",
        f"file://{text}",
        f"s3://{text}",
        f"s3://bkt/{text}",
        f"https://host/{text}",
    ):
        try:
            ref = parse_ref(candidate)
        except RefSyntax:
            continue
        assert ref.scheme in ("https", "http", "file", "s3", "name")
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,100}", ref.key), ref.key
        assert ref.key not in (".", "..")


plain = st.text("abcXYZ019-._~%/", max_size=20)


@given(plain, plain, plain)
def test_redact_hides_user_password_and_query_values(path: str, name: str, rest: str) -> None:
    shown = redact(f"https://{SECRET}:{SECRET}{name}@host/{path}?{name or 'k'}={SECRET}{rest}&t={SECRET}#{SECRET}")
    assert SECRET not in shown
    assert "host" in shown or ("/" in name and shown == "<malformed URL>")


@given(st.text())
def test_redact_never_raises(text: str) -> None:
    redact(text)
    redact(f"https://{text}")
    redact(f"https://{text}@[::1")


@pytest.mark.parametrize(
    "text",
    [
        f"ftp://u:{SECRET}@host/x",
        f"s3://u:{SECRET}@host/x",
        f"https://u:{SECRET}@host:badport/x",
        f"https://u:{SECRET}@host/a b",
        f"https://u:{SECRET}@host/x#f",
        f"https://u:{SECRET}@/x",
        f"https://u:{SECRET}/more@host/x",
        f"https://u:{SECRET}@ho\u2100st/x",
        f"https:/u:{SECRET}@host/x",
        f"https://host/x?token={SECRET}#f",
        f"file://u:{SECRET}@host/x",
        f"hf://u:{SECRET}@org/name",
        f"hf://org/name?token={SECRET}",
    ],
)
def test_a_syntax_error_never_repeats_a_password(text: str) -> None:
    with pytest.raises(RefSyntax) as e:
        parse_ref(text)
    assert SECRET not in f"{e.value}{e.value!r}{vars(e.value)}"


def test_a_version_and_patterns_are_shown() -> None:
    for text in ("s3://bucket/x?versionId=3sL4", "s3://bucket/x/?include=*.gguf&exclude=y*"):
        assert parse_ref(text).shown == text
    assert redact(f"s3://bucket/x?token={SECRET}&versionId=3") == "s3://bucket/x?token=…&versionId=3"


def test_shown_and_key_hide_secrets_and_tell_refs_apart() -> None:
    one, two = parse_ref(f"https://u:{SECRET}@h/x?t=1{SECRET}"), parse_ref(f"https://u:{SECRET}@h/x?t=2{SECRET}")
    assert SECRET not in one.shown + one.key
    assert one.key != two.key
    assert one.key.startswith("https-h-x-")
    assert parse_ref("mini").key == "mini"
    assert parse_ref("a/b").key != parse_ref("a-b").key


@pytest.mark.parametrize("length", [refs.SHORT, refs.SHORT + 1, 100_000])
def test_what_refs_mean_is_remembered_of_short_ones_alone(length: int) -> None:
    text = "https://user:pw@host/".ljust(length, "a")
    refs._parse_again.cache_clear()
    refs._redact_again.cache_clear()
    for _ in range(2):
        assert parse_ref(f" {text}\n").shown == text.replace("user:pw@", "")
    remembered = refs._parse_again.cache_info().currsize, refs._redact_again.cache_info().currsize
    assert remembered == ((1, 1) if length <= refs.SHORT else (0, 0))


def test_no_more_refs_are_remembered_than_there_may_be() -> None:
    for number in range(refs.REMEMBERED + 5):
        assert parse_ref(f"https://host/{number}").shown == f"https://host/{number}"
    assert refs._parse_again.cache_info().currsize == refs._redact_again.cache_info().currsize == refs.REMEMBERED
