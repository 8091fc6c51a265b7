"""Whatever stands in a head: a decision or a typed error, and no other exception."""

from __future__ import annotations

import contextlib

from hypothesis import example, given
from hypothesis import strategies as st

from weightd.core.errors import WeightdError
from weightd.core.manifest import Validator
from weightd.core.ranges import MAX_RETRY_AFTER, Wanted, asked_to_wait, conditions, judge_body, judge_probe, single
from weightd.sources.urls import Trail, target

NAMES = (
    *("content-range", "content-length", "content-encoding", "transfer-encoding", "content-type"),
    *("etag", "last-modified", "retry-after", "ratelimit", "ratelimit-remaining", "ratelimit-reset"),
)
LATIN = st.text(st.characters(max_codepoint=255))
NEARLY = st.sampled_from(
    [
        *("bytes 5-9/20", "bytes 0-0/20", "bytes */0", "bytes 5-9/*", "5", "-5", "+5", "5_0", "\xb25", "0x5", ""),
        *('"a"', 'W/"a"', '"a', "chunked", "Chunked", "chunked ", "identity", "gzip", "then", "0", "r=0;t=1", "r=;t="),
    ]
)
HEADERS = st.lists(st.tuples(st.sampled_from(NAMES), NEARLY | LATIN), max_size=12)


@given(st.integers(100, 999), HEADERS)
def test_any_head(status: int, said: list[tuple[str, str]]) -> None:
    headers = single(said)
    assert 0 <= asked_to_wait(headers, 1e9) <= MAX_RETRY_AFTER
    probe = None
    with contextlib.suppress(WeightdError):
        probe = judge_probe(status, headers, "there")
    if probe is not None:
        for value in conditions(probe.validator).values():
            assert value.encode("latin-1")
            assert not {"\r", "\n", "\0"} & set(value)
    for wanted in (Wanted(5, 5, 20, Validator('"a"', "then"), True), Wanted(0, 20, 20, Validator(), False)):
        with contextlib.suppress(WeightdError):
            judge_body(wanted, status, headers, "there")


@given(LATIN | st.builds("{}{}{}".format, st.sampled_from(("http://", "//", "https://u@", "/", "?")), LATIN, LATIN))
@example("http://[")
@example("http://h:99999999999999999999/")
@example("//\xe4\xe4/")
@example("http:///x")
@example("http://xn--a/")
@example("http://" + "a" * 300 + "/")
@example("\x00")
@example("http://a\u3002b/")
def test_any_location(location: str) -> None:
    trail, said = Trail("http://u:s3cr3t@127.0.0.1:1/m?sig=tok3n"), ""
    try:
        trail.follow(302, location)
    except WeightdError as e:
        said = str(e)
    assert not [s for s in ("s3cr3t", "tok3n") if s in said]
    if said:
        return
    to = target(trail.url)
    assert to.url.isascii()
    assert to.path.startswith("/")
    assert not {" ", "\r", "\n", "\0"} & set(to.url)
    assert ("s3cr3t" in trail.url) <= (to.origin == target("http://127.0.0.1:1/").origin)
