"""The command line, its configuration and its environment with a proxy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.cli.conftest import Cli
from tests.support.origin import Origin
from tests.support.proxy import Proxy
from weightd.core.errors import ConfigError
from weightd.daemon.config import load_config
from weightd.daemon.options import make_sources
from weightd.daemon.sections.http import HttpSection


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy("u:s3cr3t") as proxy:
        yield proxy


def test_of_the_environment(
    cli: Cli, origin: Origin, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url("u:s3cr3t"))
    assert cli("fetch", origin.url("m/config.json"), "--to", tmp_path).code == 0
    seen = len(proxy.log)
    assert seen >= 2
    monkeypatch.setenv("no_proxy", "127.0.0.0/8")
    assert cli("fetch", origin.url("m/model.safetensors"), "--to", tmp_path).code == 0
    assert len(proxy.log) == seen


def test_of_the_configuration(
    cli: Cli, origin: Origin, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    config = tmp_path / "c.toml"
    config.write_text(f'[http]\nproxy = "{proxy.url("u:s3cr3t")}"\n')
    to = ("--to", tmp_path / "d", "--config", config)
    assert cli("fetch", origin.url("m/config.json"), *to).code == 0
    assert proxy.log
    config.write_text(f'[http]\nproxy = "{proxy.url("u:s3cr3t")}"\nno_proxy = "*"\n')
    proxy.log.clear()
    assert cli("fetch", origin.url("m/model.safetensors"), *to).code == 0
    assert not proxy.log


def test_wrong_credentials(
    cli: Cli, origin: Origin, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url("u:0ther"))
    result = cli("fetch", origin.url("m/config.json"), "--to", tmp_path)
    assert result.code == 5
    assert f"proxy 127.0.0.1 port {proxy.port}" in result.err
    assert "0ther" not in result.err
    assert not origin.requests


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('"socks5://u:s3cr3t@p:1"', "a proxy of the scheme 'socks5' cannot be used"),
        ('"https://u:s3cr3t@p:1"', "a proxy of the scheme 'https' cannot be used"),
        ('"http://u:s3c/r3t@p"', "not the address of a proxy"),
        ("3128", "Expected str, got int"),
    ],
)
def test_a_fault_of_the_configuration(tmp_path: Path, value: str, words: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f"[http]\n\nproxy = {value}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, env={}, uid=0)
    assert f"line 3: http.proxy: {words}" in str(caught.value)
    assert "s3c" not in str(caught.value)


async def test_no_repr_of_a_configuration_tells_a_secret(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[http]\nproxy = "http://u:s3cr3t@p:1"\nno_proxy = "a.test"\n')
    config = load_config(file, env={}, uid=0)
    assert config.http.no_proxy == "a.test"
    sources = make_sources(config)
    assert "s3cr3t" not in repr(config) + repr(vars(sources))
    await sources.close()


def test_doctor(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> dict[str, str]:
        (answer,) = cli("--socket", tmp_path / "none", "doctor", "--json", "--state-dir", tmp_path).objects
        return next(c for c in answer["checks"] if c["name"] == "proxy")  # type: ignore[attr-defined,no-any-return]

    assert check()["found"] == "none"
    monkeypatch.setenv("ALL_PROXY", "http://u:s3cr3t@p.test:3128")
    monkeypatch.setenv("NO_PROXY", "localhost")
    expected = "https: p.test port 3128 (ALL_PROXY), http: p.test port 3128 (ALL_PROXY), not for localhost"
    assert check() == {"name": "proxy", "status": "ok", "found": expected, "fix": ""}
    monkeypatch.setenv("HTTPS_PROXY", "socks5://u:s3cr3t@p.test:1080")
    assert check()["status"] == "failed"
    assert "socks5" in check()["found"]


def test_the_example_names_every_key() -> None:
    text = (Path(__file__).parents[2] / "config.example.toml").read_text()
    for field in msgspec.structs.fields(HttpSection):
        assert f"\n{field.name} = " in text
