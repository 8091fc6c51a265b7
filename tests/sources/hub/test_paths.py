"""The way to the Hub: private authorities and proxies are those of all transfers."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.sources.hub.world import CHOSEN, FILES, World
from tests.support.hub import Hub
from tests.support.hub_repos import Repo
from tests.support.proxy import Proxy
from tests.support.tls import make_certificate
from weightd.core.errors import AccessDenied, SourceUnavailable
from weightd.sources.connection import HttpOptions
from weightd.sources.hub_home import Home
from weightd.sources.proxies import Proxies, parse_proxy
from weightd.sources.receiving import Receiving

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the openssl command for a certificate"
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "both.pem")


@pytest.fixture
def secure(certificate: Path) -> Iterator[Hub]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Hub(tls=context) as hub:
        hub.repo("org/name").commit(FILES)
        yield hub


@needs_openssl
async def test_a_private_authority(secure: Hub, certificate: Path, tmp_path: Path) -> None:
    trusting = Receiving(HttpOptions(ca_file=str(certificate)))
    world = World(secure, Home(secure.endpoint, str(tmp_path), False), receiving=trusting)
    assert await world.contents() == {name: FILES[name] for name in CHOSEN}
    await world.close()
    strict = Receiving(HttpOptions(attempts=1))
    world = World(secure, Home(secure.endpoint, str(tmp_path), False), receiving=strict)
    with pytest.raises(SourceUnavailable, match=r"self.signed") as e:
        await world.contents()
    assert "http.ca_file" in e.value.remedy
    await world.close()


@pytest.fixture
async def through(hub: Hub, repo: Repo, tmp_path: Path) -> AsyncIterator[tuple[World, Proxy]]:
    with Proxy("user:s3cr3t") as proxy:
        options = HttpOptions(proxies=Proxies(parse_proxy(f"http://user:s3cr3t@127.0.0.1:{proxy.port}")))
        world = World(hub, Home(hub.endpoint, str(tmp_path), False), receiving=Receiving(options))
        yield world, proxy
        await world.close()


async def test_a_proxy(through: tuple[World, Proxy]) -> None:
    world, proxy = through
    assert await world.contents() == {name: FILES[name] for name in CHOSEN}
    assert not any("proxy-authorization" in r.headers for r in world.hub.requests)
    assert len(proxy.log) >= len(CHOSEN) + 2


async def test_a_proxy_that_refuses(hub: Hub, repo: Repo, tmp_path: Path) -> None:
    with Proxy("user:s3cr3t") as proxy:
        options = HttpOptions(proxies=Proxies(parse_proxy(f"http://user:wr0ng@127.0.0.1:{proxy.port}")))
        world = World(hub, Home(hub.endpoint, str(tmp_path), False), receiving=Receiving(options))
        with pytest.raises(AccessDenied, match="407") as e:
            await world.contents()
        assert "wr0ng" not in str(e.value)
        await world.close()
