"""Which credentials are for which refs."""

from __future__ import annotations

import pytest

from weightd.core.credentials import Credential, check_credential, matches, matching


@pytest.mark.parametrize(
    ("pattern", "url", "expected"),
    [
        ("s3://bucket/*", "s3://bucket/a/b.bin", True),
        ("s3://bucket/*", "s3://bucket2/a", False),
        ("s3://bucket", "s3://bucket/a", True),
        ("s3://bucket", "s3://bucket", True),
        ("s3://bucket", "s3://bucket-2/a", False),
        ("s3://bucket/", "s3://bucket/a", True),
        ("s3://bucket/a", "s3://bucket/ab", False),
        ("s3://team-*", "s3://team-a/x", True),
        ("s3://*", "s3://any/x?versionId=1", True),
        ("s3://*", "hf://org/x", False),
        ("s3://bucket/a b/*", "s3://bucket/a%20b/c", True),
        ("s3://bucket/a%20b/*", "s3://bucket/a%20b/c", True),
        ("s3://bucket/x*", "s3://bucket/a?x", False),
        ("hf://org/*", "hf://org/name@main", True),
        ("hf://org/name", "hf://org/name@0123abc/model.safetensors", True),
        ("hf://org/name", "hf://org/name2", False),
    ],
)
def test_what_a_pattern_is_for(pattern: str, url: str, expected: bool) -> None:
    assert matches(pattern, url) is expected


def test_the_most_specific_one_wins_wherever_it_stands() -> None:
    one, two, all_ = Credential("s3://b/x/*"), Credential("s3://b"), Credential("s3://*")
    for order in ([one, two, all_], [all_, two, one]):
        assert matching(order, "s3://b/x/y") is one
        assert matching(order, "s3://b/y") is two
        assert matching(order, "s3://c/y") is all_
        assert matching(order, "hf://c/y") is None


def test_of_two_alike_the_first() -> None:
    first, second = Credential("s3://b/*", region="a"), Credential("s3://b", region="b")
    assert matching([first, second], "s3://b/x") is first


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"match": "bucket"}, "a pattern is"),
        ({"match": "https://host/*"}, "a pattern is"),
        ({"match": "s3://"}, "a pattern is"),
        ({"match": "s3://*/x"}, "at its end"),
        ({"match": "s3://u:p@b/*"}, "neither"),
        ({"match": "s3://b/*", "token_file": "t"}, "token_file does not belong to s3://"),
        ({"match": "hf://o/*", "region": "r"}, "region does not belong to hf://"),
        ({"match": "hf://o/*", "token_file": "t", "credential": "c"}, "only one of token_file and credential"),
        ({"match": "hf://o/*", "token_file": "t", "anonymous": True}, "only one of them can hold"),
        ({"match": "s3://b/*", "access_key_id": "a"}, "access_key_id needs"),
        ({"match": "s3://b/*", "secret_access_key_file": "a"}, "access_key_id needs"),
        ({"match": "s3://b/*", "session_token_file": "a"}, "session_token_file needs"),
        ({"match": "s3://b/*", "profile": "p", "anonymous": True}, "profile and anonymous"),
        ({"match": "s3://b/*", "access_key_id": "a", "credential": "c", "profile": "p"}, "access_key_id and profile"),
    ],
)
def test_what_makes_no_sense(given: dict[str, str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        check_credential(Credential(**given))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        {"match": "s3://b/*", "access_key_id": "a", "credential": "c", "session_token_file": "t"},
        {"match": "s3://b/*", "anonymous": True, "endpoint": "http://h:1", "addressing": "path"},
        {"match": "hf://o/*", "token_file": "t", "endpoint": "https://hub.example.org"},
        {"match": "hf://*", "anonymous": True},
    ],
)
def test_what_does(given: dict[str, str]) -> None:
    check_credential(Credential(**given))  # type: ignore[arg-type]
