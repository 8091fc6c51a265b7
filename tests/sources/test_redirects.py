"""Redirects on both sides, and that credentials never leave their origin or show in a text."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import pytest

from tests.sources.conftest import DATA
from tests.sources.test_http_reader import read_and_close
from tests.support.origin import Fault, Origin
from weightd.core.errors import SourceDenied, SourceNotFound, SourceUnavailable, WeightdError
from weightd.core.manifest import FileSpec
from weightd.core.refs import parse_ref
from weightd.sources.http import HttpSource
from weightd.sources.urls import Trail

SECRETS = ("s3cr3t", "p%40ss", "p@ss", "tok3n", "dTpwQHNz")
"""The last one is the base64 of "u:p@ss"."""


@pytest.fixture
def other() -> Iterator[Origin]:
    with Origin({"f.bin": DATA}) as origin:
        yield origin


def with_user(url: str) -> str:
    return url.replace("http://", "http://u:p%40ss@")


async def pin(source: HttpSource, url: str) -> FileSpec:
    return (await source.resolve(parse_ref(url))).files[0]


def authorizations(origin: Origin) -> list[str]:
    return [r.headers.get("authorization", "") for r in origin.requests]


async def test_credentials_of_the_url_are_sent(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(basic="u:p@ss"))
    with pytest.raises(SourceDenied):
        await pin(http, origin.url("f.bin"))
    file = await pin(http, with_user(origin.url("f.bin")))
    assert read_and_close(http.reader(file), 7, 9) == DATA[7:16]


async def test_an_escaped_slash_stays_escaped(origin: Origin, http: HttpSource) -> None:
    place = "a%2Fb/f.bin?sig=x%2Fy%2B"
    origin.put("a%2Fb/f.bin", DATA)
    origin.fault("f.bin", Fault(redirect=f"/{place}"))
    file = await pin(http, origin.url("f.bin"))
    assert read_and_close(http.reader(file), 0, 9) == DATA[:9]
    assert {r.target for r in origin.requests} == {"/f.bin", f"/{place}"}


async def test_a_permanent_redirect_is_remembered(origin: Origin, other: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(redirect=other.url("f.bin"), status=308))
    file = await pin(http, origin.url("f.bin"))
    assert file.url == other.url("f.bin")


async def test_a_temporary_redirect_is_followed_anew_when_its_address_is_refused(
    origin: Origin, other: Origin, http: HttpSource
) -> None:
    origin.fault("f.bin", Fault(redirect=other.url("f.bin?expires=1")))
    file = await pin(http, origin.url("f.bin"))
    assert file.url == origin.url("f.bin")
    reader = http.reader(file)
    for _ in range(2):
        reader.start(0, 5)
        reader.readinto(memoryview(bytearray(5)))
        reader.finish()
    assert len(origin.requests) == 1, "parts go straight to where the redirect led when the file was resolved"
    # The signed address expires; the next redirect leads to a fresh one.
    origin.mend()
    origin.fault("f.bin", Fault(redirect=other.url("f.bin?expires=2")))
    other.fault("f.bin", Fault(status=403), times=1)
    reader.start(0, 5)
    assert other.requests[-1].target == "/f.bin?expires=2"
    reader.close()


async def test_credentials_stay_with_their_origin(origin: Origin, other: Origin, http: HttpSource) -> None:
    origin.fault("here", Fault(redirect="/f.bin"))
    origin.fault("f.bin", Fault(redirect=other.url("back")))
    other.fault("back", Fault(redirect=origin.url("end")))
    origin.put("end", DATA)
    file = await pin(http, with_user(origin.url("here")))
    read_and_close(http.reader(file), 0, 5)
    sent = {r.path: bool(r.headers.get("authorization")) for r in origin.requests}
    assert sent == {"/here": True, "/f.bin": True, "/end": False}
    assert not any(authorizations(other))


async def test_credentials_in_a_location_are_dropped(origin: Origin, other: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(redirect=other.url("f.bin").replace("http://", "http://evil:x@")))
    await pin(http, origin.url("f.bin"))
    assert authorizations(other) == [""]


async def test_a_circle_is_refused(origin: Origin, http: HttpSource) -> None:
    origin.fault("a", Fault(redirect="/b"))
    origin.fault("b", Fault(redirect="/a"))
    with pytest.raises(SourceUnavailable, match="circle"):
        await pin(http, origin.url("a"))
    assert len(origin.requests) == 2


async def test_ten_redirects_and_not_eleven(origin: Origin, http: HttpSource) -> None:
    for i in range(11):
        origin.fault(f"r{i}", Fault(redirect=f"/r{i + 1}"))
    origin.put("r11", DATA)
    with pytest.raises(SourceUnavailable, match="more than 10"):
        await pin(http, origin.url("r0"))
    assert (await pin(http, origin.url("r1"))).size == len(DATA)


async def test_the_reader_follows_the_same_rules(origin: Origin, http: HttpSource) -> None:
    file = await pin(http, origin.url("f.bin"))
    origin.fault("f.bin", Fault(redirect="/f.bin"))
    with pytest.raises(SourceUnavailable, match="circle"):
        read_and_close(http.reader(file), 0, 5)


async def test_a_directory_named_as_a_file(origin: Origin, http: HttpSource) -> None:
    origin.fault("models", Fault(redirect="/models/", status=301))
    with pytest.raises(SourceNotFound, match="directory") as e:
        await pin(http, origin.url("models"))
    assert "'/'" in e.value.remedy


@pytest.mark.parametrize("location", ["ftp://x/y", "file:///etc/passwd", "http://[::1/x", "http://h:99999/"])
async def test_redirects_to_nowhere(origin: Origin, http: HttpSource, location: str) -> None:
    origin.fault("f.bin", Fault(redirect=location))
    with pytest.raises(SourceUnavailable, match="no web address"):
        await pin(http, origin.url("f.bin"))


def test_https_to_http_is_refused() -> None:
    trail = Trail("https://u:p%40ss@host.test/a")
    with pytest.raises(SourceDenied, match="https to http"):
        trail.follow(302, "http://host.test/a")


def test_http_to_https_is_another_origin() -> None:
    trail = Trail("http://u:p%40ss@host.test/a")
    trail.follow(302, "https://host.test/a")
    assert trail.url == "https://host.test/a"


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("b", "http://host.test/x/b"),
        ("../b?c=d%2F#e", "http://host.test/b?c=d%2F"),
        ("//other.test/y", "http://other.test/y"),
        ("http://HOST.test:80/z", "http://HOST.test:80/z"),
        ("/ä b", "http://host.test/%C3%A4%20b"),
        ("http://bücher.test/", "http://xn--bcher-kva.test/"),
    ],
)
def test_locations(location: str, url: str) -> None:
    trail = Trail("http://host.test/x/a")
    trail.follow(302, location)
    assert trail.url == url


def every_text(e: BaseException) -> str:
    """All that a log could show of an error: its text, repr and traceback with causes and contexts."""
    return f"{e!s} {e!r} {vars(e)} {''.join(traceback.format_exception(e))}"


FAULTS = [
    Fault(status=401),
    Fault(status=403),
    Fault(status=404),
    Fault(status=500),
    Fault(status=412),
    Fault(hang_up=True),
    Fault(stall_head=True),
    Fault(raw=b"garbage\r\n\r\n"),
    Fault(gzipped=True),
    Fault(content_range="bytes 1-1/1"),
    Fault(no_ranges=True, no_length=True),
    Fault(redirect="/f.bin?token=s3cr3t"),
    Fault(redirect="gopher://s3cr3t@x/"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_no_error_tells_a_secret(origin: Origin, http: HttpSource, impatient: HttpSource, fault: Fault) -> None:
    url = with_user(origin.url("f.bin?token=s3cr3t&sig=tok3n"))
    file = await pin(http, url)
    origin.fault("f.bin", fault)
    with pytest.raises(WeightdError) as resolving:
        await pin(impatient, url)
    with pytest.raises(WeightdError) as reading:
        read_and_close(impatient.reader(file), 5, 100)
    for e in (resolving.value, reading.value):
        text = every_text(e)
        assert not any(secret in text for secret in SECRETS), text


async def test_no_repr_tells_a_secret(origin: Origin, http: HttpSource) -> None:
    file = await pin(http, with_user(origin.url("f.bin?token=s3cr3t")))
    assert not any(secret in repr(http.reader(file)) for secret in SECRETS)


async def test_the_manifest_of_a_secret_ref_does_not_repeat_it(origin: Origin, http: HttpSource) -> None:
    manifest = await http.resolve(parse_ref(with_user(origin.url("f.bin?token=s3cr3t"))))
    assert not any(secret in manifest.ref for secret in SECRETS)
    assert not any(secret in manifest.revision for secret in SECRETS)
