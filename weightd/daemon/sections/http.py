"""`[http]`"""

from __future__ import annotations

from pathlib import Path

import msgspec

from weightd.daemon.config_reader import Reader, between, whole
from weightd.sources.proxies import Proxy, parse_proxy


class HttpSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[http]` as it is written."""

    connections_per_host: int = 16
    connect_timeout_s: float = 10.0
    ca_file: str = ""
    proxy: str = ""
    no_proxy: str = ""


class HttpConfig(msgspec.Struct, frozen=True):
    """`connections_per_host`: requests under way at one origin, at most. `ca_file`: PEM, None for the system's.
    `proxy` None and `no_proxy` "" leave it to the environment."""

    connections_per_host: int
    connect_timeout_s: float
    ca_file: Path | None
    proxy: Proxy | None
    no_proxy: str


def read_http(reader: Reader) -> HttpConfig:
    """Raises ConfigError."""
    section = reader.section("http", HttpSection)
    return HttpConfig(
        connections_per_host=reader.value(
            ("http", "connections_per_host"), whole(1, 1024), section.connections_per_host
        ),
        connect_timeout_s=reader.value(("http", "connect_timeout_s"), between(0.1, 600.0), section.connect_timeout_s),
        ca_file=reader.path(section.ca_file),
        proxy=reader.value(("http", "proxy"), parse_proxy, section.proxy) if section.proxy else None,
        no_proxy=section.no_proxy,
    )
