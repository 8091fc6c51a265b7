"""The pure validator of range answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.errors import SizeMismatch, SourceChanged, SourceUnavailable, WeightdError
from weightd.core.manifest import Validator
from weightd.core.ranges import (
    MAX_RETRY_AFTER,
    ContentRange,
    Probe,
    Wanted,
    asked_to_wait,
    conditions,
    is_transient,
    judge_body,
    judge_probe,
    parse_content_range,
    single,
    status_error,
    validator_of,
)

sizes = st.integers(1, 10**15)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bytes 0-0/1", ContentRange(0, 0, 1)),
        (" BYTES 5-9/10 ", ContentRange(5, 9, 10)),
        ("bytes 5-9/*", ContentRange(5, 9, None)),
        ("bytes */10", ContentRange(None, None, 10)),
        ("bytes */0", ContentRange(None, None, 0)),
    ],
)
def test_content_range(text: str, found: ContentRange) -> None:
    assert parse_content_range(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes */*",
        "bytes 9-5/10",
        "bytes 0-10/10",
        "bytes 0-0/0",
        "bytes=0-0/1",
        "items 0-0/1",
        "bytes -1-0/1",
        "bytes 0-0/1, bytes 2-3/9",
        "bytes ٠-٠/١",
        "bytes 0-0/1\n\n0",
        "bytes 0-" + "9" * 5000 + "/*",
    ],
)
def test_no_content_range(text: str) -> None:
    assert parse_content_range(text) is None


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    parse_content_range(text)
    parse_content_range("bytes " + text)


@given(sizes, st.data())
def test_a_range_as_written_is_read_back(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first, size - 1))
    assert parse_content_range(f"bytes {first}-{last}/{size}") == ContentRange(first, last, size)


@given(sizes, st.data())
def test_only_the_very_range_is_believed(size: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(1, size - offset))
    first = data.draw(st.one_of(st.just(offset), st.integers(0, size - 1)))
    last = data.draw(st.one_of(st.just(offset + length - 1), st.integers(first, size - 1)))
    total = data.draw(st.one_of(st.just(size), sizes))
    wanted = Wanted(offset, length, size, Validator(), ranged=True)
    headers = {"content-range": f"bytes {first}-{last}/{total}", "content-length": str(last - first + 1)}
    if (first, last, total) == (offset, offset + length - 1, size):
        judge_body(wanted, 206, headers, "there")
    else:
        with pytest.raises((SourceUnavailable, SourceChanged)):
            judge_body(wanted, 206, headers, "there")


@given(st.integers(100, 999), st.dictionaries(st.sampled_from(("content-range", "content-length", "etag")), st.text()))
def test_no_answer_breaks_the_judges(status: int, headers: dict[str, str]) -> None:
    wanted = Wanted(5, 5, 20, Validator(etag='"a"'), ranged=True)
    with pytest.raises(WeightdError):
        judge_body(wanted, status, headers, "there")
    try:
        probe = judge_probe(status, headers, "there")
    except WeightdError:
        return
    assert probe is None or probe.size is None or probe.size >= 0


def test_a_total_that_is_not_told_is_no_contradiction() -> None:
    judge_body(Wanted(5, 5, 20, Validator(), True), 206, {"content-range": "bytes 5-9/*"}, "there")


def test_whole_file() -> None:
    whole = Wanted(0, 20, 20, Validator(), ranged=False)
    judge_body(whole, 200, {"content-length": "20"}, "there")
    judge_body(whole, 200, {}, "there")
    judge_body(whole, 200, {"content-length": "7", "transfer-encoding": "chunked"}, "there")
    with pytest.raises(SizeMismatch):
        judge_body(whole, 200, {"content-length": "19"}, "there")


@pytest.mark.parametrize(("offset", "length"), [(0, 19), (1, 19)])
def test_the_whole_is_never_taken_for_a_part(offset: int, length: int) -> None:
    with pytest.raises(SourceUnavailable, match="whole file"):
        judge_body(Wanted(offset, length, 20, Validator(), True), 200, {"content-length": "20"}, "there")


@pytest.mark.parametrize(
    ("etag", "kept"),
    [('"a"', '"a"'), ('""', '""'), ('W/"a"', ""), ("a", ""), ("", ""), ('"a', ""), ('"a"b"', ""), ('"a b"', "")],
)
def test_only_strong_etags_name_a_version(etag: str, kept: str) -> None:
    assert validator_of({"etag": etag}).etag == kept


def test_conditions() -> None:
    assert conditions(Validator('"a"', "then")) == {"If-Match": '"a"'}
    assert conditions(Validator("", "then")) == {"If-Unmodified-Since": "then"}
    assert conditions(Validator()) == {}


def test_an_etag_that_holds_outweighs_a_date_that_moved() -> None:
    wanted = Wanted(0, 5, 20, Validator('"a"', "then"), True)
    headers = {"content-range": "bytes 0-4/20", "etag": '"a"', "last-modified": "now"}
    judge_body(wanted, 206, headers, "there")
    with pytest.raises(SourceChanged):
        judge_body(wanted, 206, headers | {"etag": 'W/"a"'}, "there")


def test_probe() -> None:
    assert judge_probe(206, {"content-range": "bytes 0-0/9", "etag": '"a"'}, "there") == Probe(
        9, True, Validator('"a"')
    )
    assert judge_probe(206, {"content-range": "bytes 0-0/*"}, "there") == Probe(None, True, Validator())
    assert judge_probe(200, {"content-length": "9"}, "there") == Probe(9, False, Validator())
    assert judge_probe(200, {}, "there") == Probe(None, False, Validator())
    assert judge_probe(416, {"content-range": "bytes */0"}, "there") == Probe(0, True, Validator())
    assert judge_probe(416, {}, "there") is None


@pytest.mark.parametrize("status", range(100, 600))
def test_every_status_has_an_error_with_a_remedy(status: int) -> None:
    error = status_error(status, "there")
    assert str(status) in error.message
    assert error.remedy
    if is_transient(status):
        assert type(error) is SourceUnavailable


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ([("ETag", '"a"'), ("etag", '"a"')], '"a"'),
        ([("ETag", '"a"'), ("ETag", '"b"')], ""),
        ([("ETag", '"b"'), ("ETag", '"a"')], ""),
    ],
)
def test_what_is_said_twice_is_believed_when_it_is_the_same(said: list[tuple[str, str]], taken: str) -> None:
    assert validator_of(single(said)).etag == taken


@pytest.mark.parametrize("second", ["bytes 0-4/20", "bytes 5-9/21", "bytes 5-9/20;", ""])
def test_two_ranges_are_none(second: str) -> None:
    headers = single([("Content-Range", "bytes 5-9/20"), ("Content-Range", second)])
    with pytest.raises(SourceUnavailable, match="without one valid Content-Range"):
        judge_body(Wanted(5, 5, 20, Validator(), True), 206, headers, "there")


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"etag": '"b"'}, SourceChanged),
        ({"etag": '"b"', "last-modified": "then"}, SourceChanged),
        ({"last-modified": "now"}, SourceChanged),
        ({"last-modified": "then"}, SourceUnavailable),
        ({"etag": 'W/"a"'}, SourceUnavailable),
        ({}, SourceUnavailable),
    ],
)
def test_only_another_version_is_a_change(headers: dict[str, str], error: type[WeightdError]) -> None:
    """A page that names no version is no proof of one."""
    wanted = Wanted(5, 5, 20, Validator('"a"', "then"), True)
    with pytest.raises(error):
        judge_body(wanted, 206, {"content-range": "bytes 5-9/20", **headers}, "there")


def test_what_was_pinned_by_nothing_may_have_a_name_now() -> None:
    headers = {"content-length": "20", "etag": '"a"', "last-modified": "then"}
    judge_body(Wanted(0, 20, 20, Validator(), False), 200, headers, "there")


@given(
    st.dictionaries(st.sampled_from(("retry-after", "ratelimit", "ratelimit-remaining", "ratelimit-reset")), st.text())
)
def test_any_wait_is_bounded(headers: dict[str, str]) -> None:
    assert 0 <= asked_to_wait(headers, 1000.0) <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    "value",
    [
        "Thu, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Thu, 01 Jan 1970 00:00:00 +99999999999999999999",
        "Thu, 01 Jan 0001 00:00:00 +2359",
        "Thu, 01 Jan 9999 23:59:59 -2359",
    ],
)
def test_dates_beyond_all_calendars(value: str) -> None:
    assert 0 <= asked_to_wait({"retry-after": value}, 1000.0) <= MAX_RETRY_AFTER
