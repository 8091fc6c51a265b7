"""HTTPS with a real certificate, made here by the openssl command."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources.conftest import DATA
from tests.sources.test_http_reader import read_and_close
from tests.support.origin import Fault, Origin
from tests.support.tls import make_certificate
from weightd.core.errors import ConfigError, SourceDenied, SourceUnavailable
from weightd.core.manifest import FileSpec
from weightd.core.refs import parse_ref
from weightd.sources.connection import HttpOptions
from weightd.sources.http import HttpSource

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command for a certificate")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate for 127.0.0.1 in one file."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "both.pem")


@pytest.fixture
def secure(certificate: Path) -> Iterator[Origin]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Origin({"f.bin": DATA}, tls=context) as origin:
        yield origin


async def pin(source: HttpSource, origin: Origin) -> FileSpec:
    return (await source.resolve(parse_ref(origin.url("f.bin")))).files[0]


async def test_https(secure: Origin, certificate: Path) -> None:
    source = HttpSource(HttpOptions(ca_file=str(certificate)))
    file = await pin(source, secure)
    assert read_and_close(source.reader(file)) == DATA
    secure.fault("f.bin", Fault(short=500), times=1)
    with pytest.raises(SourceUnavailable, match=r"ended after 500 of|broke off"):
        read_and_close(source.reader(file), 0, 1000)
    await source.close()


async def test_an_unknown_authority(secure: Origin, certificate: Path) -> None:
    trusting = HttpSource(HttpOptions(ca_file=str(certificate)))
    file = await pin(trusting, secure)
    await trusting.close()
    source = HttpSource()
    with pytest.raises(SourceUnavailable, match=r"self.signed") as e:
        await pin(source, secure)
    assert "SSL_CERT_FILE" in e.value.remedy
    with pytest.raises(SourceUnavailable, match=r"self.signed"):
        read_and_close(source.reader(file))
    await source.close()


async def test_no_tls_on_the_port() -> None:
    def plain(listener: socket.socket) -> None:
        for _ in range(2):
            sock, _ = listener.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(b"HTTP/1.1 400 This is plain HTTP\r\n\r\n")

    source = HttpSource(HttpOptions(attempts=1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/f.bin"
        thread = threading.Thread(target=plain, args=(listener,))
        thread.start()
        with pytest.raises(SourceUnavailable, match="no secure connection"):
            await source.resolve(parse_ref(url))
        with pytest.raises(SourceUnavailable, match="no secure connection"):
            read_and_close(source.reader(FileSpec("f.bin", 10, url)), 0, 10)
        thread.join()
    await source.close()


async def test_a_downgrade_on_the_way(secure: Origin, origin: Origin, certificate: Path) -> None:
    source = HttpSource(HttpOptions(ca_file=str(certificate)))
    file = await pin(source, secure)
    secure.fault("f.bin", Fault(redirect=origin.url("f.bin")))
    with pytest.raises(SourceDenied, match="https to http"):
        await pin(source, secure)
    with pytest.raises(SourceDenied, match="https to http"):
        read_and_close(source.reader(file))
    assert origin.requests == []
    await source.close()


async def test_abort_never_lets_ciphertext_through(secure: Origin, certificate: Path) -> None:
    source = HttpSource(HttpOptions(ca_file=str(certificate), read_timeout=60))
    file = await pin(source, secure)
    secure.fault("f.bin", Fault(stall_after=1000))
    reader = source.reader(file)
    data = bytearray(len(DATA))
    caught: list[Exception] = []

    started = threading.Event()

    def work() -> None:
        try:
            reader.start(0, len(DATA))
            started.set()
            while True:
                reader.readinto(memoryview(data))
        except SourceUnavailable as e:
            caught.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(20)
    reader.abort()
    thread.join(20)
    assert not thread.is_alive()
    assert "aborted" in str(caught[0])
    assert bytes(data).strip(b"\0") in DATA
    reader.close()
    await source.close()


@pytest.mark.parametrize("text", [None, b"not a certificate"])
async def test_a_useless_ca_file(tmp_path: Path, text: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_bytes(text)
    source = HttpSource(HttpOptions(ca_file=str(path)))
    with pytest.raises(ConfigError, match="ca_file"):
        await source.resolve(parse_ref("https://127.0.0.1:9/f.bin"))
    await source.close()


async def test_authorities_of_the_environment(
    secure: Origin, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSL_CERT_FILE is OpenSSL's own; what belongs to other programs is not read; the configuration goes first."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(certificate))
    source = HttpSource()
    with pytest.raises(SourceUnavailable, match=r"self.signed") as caught:
        await pin(source, secure)
    assert "http.ca_file or SSL_CERT_FILE" in caught.value.remedy
    await source.close()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    source = HttpSource()
    assert read_and_close(source.reader(await pin(source, secure))) == DATA
    await source.close()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    source = HttpSource(HttpOptions(ca_file=str(certificate)))
    await pin(source, secure)
    await source.close()
    source = HttpSource()
    with pytest.raises(ConfigError, match=r"SSL_CERT_FILE .*none\.pem' cannot be used: No such file"):
        await pin(source, secure)
    await source.close()
