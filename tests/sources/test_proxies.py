"""Proxies on both sides, their faults, who is left out, and that their credentials reach nobody else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.sources.conftest import DATA, Waits
from tests.sources.test_http_reader import read, read_and_close
from tests.sources.test_redirects import every_text
from tests.sources.test_tls import certificate, secure
from tests.support.origin import Fault, Origin
from tests.support.places import free_port
from tests.support.proxy import Proxy
from weightd.core.errors import AccessDenied, ConfigError, SourceUnavailable, WeightdError
from weightd.core.manifest import FileSpec
from weightd.core.refs import parse_ref
from weightd.sources import proxies
from weightd.sources.connection import HttpOptions
from weightd.sources.http import HttpSource
from weightd.sources.http_reader import HttpReader
from weightd.sources.proxies import Proxies, bypassed, environment_proxies, parse_proxy
from weightd.sources.urls import Origin as Address

__all__ = ["certificate", "secure"]
USER = "us%C3%A9r:s3cr3t%40"
BASIC = "usér:s3cr3t@"
SECRETS = ("s3cr3t", "dXPDqXI6czNjcjN0QA")
"""The last one is the base64 of BASIC."""

Make = Callable[..., HttpSource]


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy(BASIC, {"origin.test": "127.0.0.1"}) as proxy:
        yield proxy


@pytest.fixture
async def make(certificate: Path) -> AsyncIterator[Make]:
    """A source that goes through the proxy of this URL."""
    made: list[HttpSource] = []

    def source(url: str, *, no_proxy: str = "", timeout: float = 5, attempts: int = 1) -> HttpSource:
        through = Proxies(parse_proxy(url), no_proxy=no_proxy)
        options = HttpOptions(
            connect_timeout=timeout, read_timeout=timeout, attempts=attempts, ca_file=str(certificate), proxies=through
        )
        made.append(HttpSource(options, sleep=Waits()))
        return made[-1]

    yield source
    for one in made:
        await one.close()


async def pin(source: HttpSource, url: str) -> FileSpec:
    return (await source.resolve(parse_ref(url))).files[0]


async def both_errors(source: HttpSource, url: str) -> list[WeightdError]:
    """Of resolving, and of reading."""
    with pytest.raises(WeightdError) as resolving:
        await pin(source, url)
    with pytest.raises(WeightdError) as reading:
        await asyncio.to_thread(
            read_and_close, source.reader(FileSpec("f.bin", len(DATA), url.replace("u:p@", ""))), 0, 10
        )
    return [resolving.value, reading.value]


async def test_http_goes_in_absolute_form(origin: Origin, proxy: Proxy, make: Make) -> None:
    """The host's name is the proxy's to resolve; what is escaped stays so."""
    source = make(proxy.url(USER))
    origin.put("a%2Fb.bin", DATA)
    file = await pin(source, f"http://origin.test:{origin.port}/a%2Fb.bin?x=%2F")
    reader = source.reader(file)
    assert read(reader, 0, 10) + read(reader, 10, 20) == DATA[:30]
    reader.close()
    assert read_and_close(source.reader(file)) == DATA
    assert {asked.target for asked in proxy.log} == {f"http://origin.test:{origin.port}/a%2Fb.bin?x=%2F"}
    assert {request.headers["host"] for request in origin.requests} == {f"origin.test:{origin.port}"}
    assert len({asked.connection for asked in proxy.log[1:]}) == 1, "readers keep their connection to the proxy"


async def test_https_goes_through_a_tunnel(secure: Origin, proxy: Proxy, make: Make) -> None:
    source = make(proxy.url(USER))
    file = await pin(source, secure.url("f.bin"))
    reader = source.reader(file)
    assert read(reader, 0, 10) + read(reader, 10, 20) == DATA[:30]
    reader.close()
    assert read_and_close(source.reader(file)) == DATA
    assert [(asked.method, asked.target) for asked in proxy.log] == [("CONNECT", f"127.0.0.1:{secure.port}")] * 2
    assert len({request.connection for request in secure.requests[1:]}) == 1


async def test_a_tunnel_serves_one_origin(secure: Origin, proxy: Proxy, make: Make, certificate: Path) -> None:
    """Two origins behind one proxy, one after the other in one reader's redirects."""
    with Origin({"f.bin": DATA}) as plain:
        source = make(proxy.url(USER))
        plain.fault("f.bin", Fault(redirect=secure.url("f.bin")))
        file = await pin(source, plain.url("f.bin"))
        assert file.url == plain.url("f.bin")
        assert read_and_close(source.reader(file)) == DATA
        with Origin({"f.bin": DATA[::-1]}) as other:
            assert read_and_close(source.reader(await pin(source, other.url("f.bin")))) == DATA[::-1]
    connects = [asked.target for asked in proxy.log if asked.method == "CONNECT"]
    assert set(connects) == {f"127.0.0.1:{secure.port}"}


async def test_ipv6_through_a_tunnel(proxy: Proxy, make: Make) -> None:
    proxy.status = 503
    errors = await both_errors(make(proxy.url(USER)), "https://[::1]:4443/f.bin")
    assert {asked.target for asked in proxy.log} == {"[::1]:4443"}
    assert all("[::1]:4443" in str(e) for e in errors)


async def test_credentials_stay_apart(origin: Origin, secure: Origin, proxy: Proxy, make: Make) -> None:
    """Those of the proxy reach no origin, those of the origin reach no proxy that cannot read the request anyway."""
    source = make(proxy.url(USER))
    for place in (origin, secure):
        url = place.url("f.bin").replace("://", "://u:p@")
        read_and_close(source.reader(await pin(source, url)))
        for request in place.requests:
            assert "proxy-authorization" not in request.headers
            assert request.headers["authorization"]
    for asked in proxy.log:
        assert asked.headers["proxy-authorization"]
        assert ("authorization" in asked.headers) == (asked.method == "GET")


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("user", ["", "some:one"])
async def test_407(proxy: Proxy, make: Make, scheme: str, user: str) -> None:
    for error in await both_errors(make(proxy.url(user)), f"{scheme}://origin.test/f.bin"):
        assert type(error) is AccessDenied
        assert "407" in str(error)
        assert f"127.0.0.1 port {proxy.port}" in error.remedy
        assert "http.proxy" in error.remedy
        assert "some" not in str(error).replace("wants some", "")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, AccessDenied), (502, SourceUnavailable), (503, SourceUnavailable), (400, SourceUnavailable)],
)
async def test_connect_refused(proxy: Proxy, make: Make, status: int, kind: type[WeightdError]) -> None:
    proxy.status = status
    for error in await both_errors(make(proxy.url(USER)), "https://u:p@origin.test/f.bin?token=s3cr3t"):
        assert type(error) is kind
        assert f"proxy 127.0.0.1 port {proxy.port}, asked for origin.test, answered {status}" in str(error)
        assert not any(secret in every_text(error) for secret in SECRETS)


async def test_a_tunnel_that_is_refused_for_now_is_asked_for_again(secure: Origin, proxy: Proxy, make: Make) -> None:
    proxy.status = 503
    with pytest.raises(SourceUnavailable):
        await pin(make(proxy.url(USER), attempts=3), secure.url("f.bin"))
    assert len(proxy.log) == 3


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "fault",
    [{"raw": b""}, {"raw": b"SSH-2.0-OpenSSH_9.6\r\n\r\n"}, {"stall": True}],
    ids=["closes", "nonsense", "stalls"],
)
async def test_a_proxy_that_is_none(proxy: Proxy, make: Make, scheme: str, fault: dict[str, object]) -> None:
    vars(proxy).update(fault)
    source = make(proxy.url(USER), timeout=0.3)
    for error in await both_errors(source, f"{scheme}://origin.test/f.bin?token=s3cr3t"):
        assert type(error) is SourceUnavailable
        assert f"proxy 127.0.0.1 port {proxy.port}" in str(error)
        assert not any(secret in every_text(error) for secret in SECRETS)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_no_proxy_there(make: Make, scheme: str) -> None:
    port = free_port()
    for error in await both_errors(make(f"http://{USER}@127.0.0.1:{port}"), f"{scheme}://origin.test/f.bin"):
        assert f"no connection to the proxy 127.0.0.1 port {port}: Connection refused" in str(error)
        assert "HTTPS_PROXY" in error.remedy
        assert not any(secret in every_text(error) for secret in SECRETS)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_without_an_address(make: Make, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    def none(*args: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", none)
    for error in await both_errors(make("http://proxy.test:3128"), f"{scheme}://origin.test/f.bin"):
        assert "no connection to the proxy proxy.test port 3128: its name cannot be resolved" in str(error)


async def test_a_tunnel_that_breaks(secure: Origin, proxy: Proxy, make: Make) -> None:
    source = make(proxy.url(USER))
    file = await pin(source, secure.url("f.bin"))
    proxy.cut_after = 20_000
    with pytest.raises(SourceUnavailable, match=rf"through the proxy 127\.0\.0\.1 port {proxy.port}"):
        read_and_close(source.reader(file))


async def test_an_origin_in_trouble_behind_a_proxy(origin: Origin, proxy: Proxy, make: Make) -> None:
    source = make(proxy.url(USER))
    file = await pin(source, origin.url("f.bin"))
    origin.fault("f.bin", Fault(status=500))
    with pytest.raises(
        SourceUnavailable, match=rf"f\.bin through the proxy 127\.0\.0\.1 port {proxy.port} answered 500"
    ):
        read_and_close(source.reader(file))


async def test_abort_while_the_proxy_stalls(proxy: Proxy, make: Make) -> None:
    proxy.stall = True
    reader = make(proxy.url(USER), timeout=60).reader(FileSpec("f.bin", 10, "https://origin.test/f.bin"))
    task = asyncio.create_task(asyncio.to_thread(reader.start, 0, 10))
    async with asyncio.timeout(10):
        while not proxy.log:  # noqa: ASYNC110 - nothing to await
            await asyncio.sleep(0.005)
        reader.abort()
        with pytest.raises(SourceUnavailable, match="aborted"):
            await task
    reader.close()


async def test_no_proxy_is_obeyed_on_both_sides(origin: Origin, proxy: Proxy, make: Make) -> None:
    source = make(proxy.url(USER), no_proxy="127.0.0.0/8")
    assert read_and_close(source.reader(await pin(source, origin.url("f.bin")))) == DATA
    assert proxy.log == []


def test_no_repr_tells_a_secret() -> None:
    through = Proxies(parse_proxy(f"http://{USER}@p.test:3128"))
    of_environment = Proxies(None, {"https": f"http://{USER}@p.test:3128"})
    options = HttpOptions(proxies=through)
    reader = HttpReader(FileSpec("f", 10, "https://h/f"), HttpSource(options)._pool)
    for one in (through, of_environment, options, reader, parse_proxy(f"{USER}@p"), list(of_environment.shown())):
        assert not any(secret in repr(one) for secret in SECRETS)


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "host", "port", "user", "password"),
        [
            ("http://p.test:3128", "p.test", 3128, "", ""),
            ("http://p.test:3128/", "p.test", 3128, "", ""),
            ("p.test:3128", "p.test", 3128, "", ""),
            ("p.test", "p.test", 80, "", ""),
            (" HTTP://P.test ", "p.test", 80, "", ""),
            ("http://[::1]:3128", "::1", 3128, "", ""),
            ("http://u:p%40%2F@p.test:1", "p.test", 1, "u", "p@/"),
            ("u@p.test", "p.test", 80, "u", ""),
        ],
    )
    def test_good(self, text: str, host: str, port: int, user: str, password: str) -> None:
        found = parse_proxy(text)
        assert (found.host, found.port, found.user, found.password) == (host, port, user, password)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("https://p.test:3128", "scheme 'https'"),
            ("socks5://u:s3cr3t@p.test:1080", "scheme 'socks5'"),
            ("http://", "not the address"),
            ("", "not the address"),
            ("http://u:s3cr3t@", "not the address"),
            ("http://p.test:99999", "not the address"),
            ("http://p.test:0", "not the address"),
            ("http://p.test:x", "not the address"),
            ("http://p.test/s3cr3t", "not the address"),
            ("http://p.test?s3cr3t", "not the address"),
            ("http://u:s3c/r3t@p.test:1", "not the address"),
            ("http://p test:1", "not the address"),
            ("http://[::1:3128", "not the address"),
            ("u:s3cr3t://p:1", "not the address"),
        ],
    )
    def test_bad(self, text: str, words: str) -> None:
        with pytest.raises(ValueError, match=words) as caught:
            parse_proxy(text)
        assert not any(secret in every_text(caught.value) for secret in (*SECRETS, "s3c/r3t"))


HTTPS, HTTP = Address("https", "h.example.org", 443), Address("http", "h.example.org", 80)


class TestEnvironment:
    @pytest.fixture(autouse=True)
    def nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("REQUEST_METHOD", raising=False)

    def names(self) -> list[str | None]:
        found = environment_proxies()
        return [proxy and proxy.host for proxy in (found.of(HTTPS), found.of(HTTP))]

    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            ({}, [None, None]),
            ({"HTTPS_PROXY": "http://a:1"}, ["a", None]),
            ({"http_proxy": "http://a:1"}, [None, "a"]),
            ({"ALL_PROXY": "http://a:1", "http_proxy": "b:1"}, ["a", "b"]),
            ({"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:1"}, ["b", None]),
            ({"HTTPS_PROXY": "http://a:1", "https_proxy": ""}, [None, None]),
            ({"HTTP_PROXY": "http://a:1", "REQUEST_METHOD": "GET"}, [None, None]),
            ({"ALL_PROXY": "http://a:1", "NO_PROXY": "example.org"}, [None, None]),
            ({"ALL_PROXY": "http://a:1", "NO_PROXY": "example.org:443"}, [None, "a"]),
            ({"ALL_PROXY": "http://a:1", "NO_PROXY": "other.org", "no_proxy": "*"}, [None, None]),
            ({"ALL_PROXY": "socks5://a:1", "HTTPS_PROXY": "b:1", "HTTP_PROXY": "c:1"}, ["b", "c"]),
        ],
    )
    def test_which(
        self, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: list[str | None]
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert self.names() == expected

    def test_what_is_configured_goes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://a:1")
        monkeypatch.setenv("NO_PROXY", "example.org")
        mine = parse_proxy("mine:1")
        assert environment_proxies(mine).of(HTTPS) is None
        assert environment_proxies(mine, "other.org").of(HTTPS) == mine
        assert environment_proxies(None, "other.org").of(HTTPS) == parse_proxy("a:1")
        assert environment_proxies(mine, "*").of(HTTP) is None

    @pytest.mark.parametrize("url", ["socks5://u:s3cr3t@p:1", "https://u:s3cr3t@p:1", "http://u:s3c/r3t@p"])
    async def test_one_that_cannot_be_used(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        """Told when it would be used, not before: ALL_PROXY may be meant for other programs."""
        monkeypatch.setenv("ALL_PROXY", url)
        source = HttpSource(HttpOptions(proxies=environment_proxies()))
        for error in await both_errors(source, "https://origin.test/f.bin"):
            assert type(error) is ConfigError
            assert "ALL_PROXY in the environment" in str(error)
            assert "s3c" not in every_text(error)
        await source.close()

    def test_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert list(environment_proxies().shown()) == []
        monkeypatch.setenv("https_proxy", f"http://{USER}@p.test:3128")
        monkeypatch.setenv("no_proxy", "localhost")
        assert list(environment_proxies().shown()) == ["https: p.test port 3128 (HTTPS_PROXY)", "not for localhost"]


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "out"),
    [
        ("", "a.test", 80, False),
        ("*", "a.test", 80, True),
        ("b, *", "a.test", 80, True),
        ("a.test", "a.test", 80, True),
        ("A.Test", "a.test", 80, True),
        (".a.test", "a.test", 80, True),
        ("a.test", "b.a.test", 80, True),
        ("*.a.test", "b.a.test", 80, True),
        ("a.test", "xa.test", 80, False),
        ("x, ,a.test ", "a.test", 80, True),
        ("a.test:80", "a.test", 80, True),
        ("a.test:80", "b.a.test", 80, True),
        ("a.test:80", "a.test", 443, False),
        ("localhost", "127.0.0.1", 80, False),
        ("127.0.0.1", "127.0.0.1", 80, True),
        ("127.0.0.1:80", "127.0.0.1", 81, False),
        ("10.0.0.0/8", "10.1.2.3", 80, True),
        ("10.0.0.0/8", "11.1.2.3", 80, False),
        ("10.1.2.3/8", "10.200.0.1", 80, True),
        ("10.0.0.0/33", "10.0.0.1", 80, False),
        ("10.0.0.0/8", "ten.test", 80, False),
        ("::1", "::1", 80, True),
        ("[::1]", "::1", 80, True),
        ("[::1]:80", "::1", 80, True),
        ("[::1]:81", "::1", 80, False),
        ("0:0:0:0:0:0:0:1", "::1", 80, True),
        ("fd00::/8", "fd12::3", 80, True),
        ("10.0.0.0/8", "::1", 80, False),
        (".", "a.test", 80, False),
    ],
)
def test_who_is_left_out(no_proxy: str, host: str, port: int, out: bool) -> None:
    assert bypassed(no_proxy, Address("http", host, port)) is out


@pytest.mark.parametrize("entry", ["a.test", ".a.test", "a.test:80", "b.a.test", "test", "*", "x,y,a.test", "A.TEST"])
@pytest.mark.parametrize("host", ["a.test", "b.a.test", "xa.test", "test", "b.test"])
def test_names_are_left_out_as_the_standard_library_does(entry: str, host: str) -> None:
    import urllib.request

    theirs = urllib.request.proxy_bypass_environment(f"{host}:80", {"no": entry})
    assert proxies.bypassed(entry, Address("http", host, 80)) == theirs
