"""Which proxy a request goes through: the configured one, else that of the environment, as curl and Go read it."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import msgspec

from weightd.core.errors import ConfigError
from weightd.sources.urls import Origin

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")


@dataclass(frozen=True, slots=True, repr=False)
class Proxy:
    """Spoken to in plain HTTP. `user` and `password` go to it and nowhere else; its repr and `name` have none."""

    host: str
    port: int
    user: str = ""
    password: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.host} port {self.port}"

    @property
    def authorization(self) -> str:
        """The value of Proxy-Authorization, or ""; a secret."""
        if not self.user and not self.password:
            return ""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode("ascii")

    def __repr__(self) -> str:
        return f"<Proxy {self.name}>"


def parse_proxy(text: str) -> Proxy:
    """From `http://user:password@host:port` or `host:port`; the port is 80 where none is given.

    Raises ValueError, whose text repeats no credentials.
    """
    text = text.strip()
    scheme = _SCHEME.match(text)
    if scheme and scheme[1].lower() != "http":
        raise ValueError(f"a proxy of the scheme {scheme[1][:20]!r} cannot be used; write http://host:port")
    try:
        parts = urlsplit(text if scheme else f"http://{text}")
        host, port = parts.hostname or "", 80 if parts.port is None else parts.port
        if not _HOST.fullmatch(host) or not port or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError
    except ValueError:
        # Its text may repeat a part of a password.
        raise ValueError(
            "not the address of a proxy; write http://host:port, and '/' or '@' in a password as %2F, %40"
        ) from None
    return Proxy(host, port, unquote(parts.username or ""), unquote(parts.password or ""))


class Proxies(msgspec.Struct, frozen=True):
    """`configured` is for all origins; without it, `others` has the addresses by scheme, as `getproxies_environment`
    gives them: "http", "https", "all". None is used for what `no_proxy` names."""

    configured: Proxy | None = None
    others: dict[str, str] = {}
    no_proxy: str = ""

    def of(self, origin: Origin) -> Proxy | None:
        """For requests to `origin`. Raises ConfigError for an address in the environment that cannot be used."""
        if bypassed(self.no_proxy, origin):
            return None
        return self._of_scheme(origin.scheme)

    def shown(self) -> Iterator[str]:
        """For people: what is used for what. Raises ConfigError as `of` does."""
        for scheme in ("https", "http"):
            if (proxy := self._of_scheme(scheme)) is not None:
                where = "http.proxy" if self.configured else f"{self._variable(scheme).upper()}_PROXY"
                yield f"{scheme}: {proxy.name} ({where})"
        if self.no_proxy:
            yield f"not for {self.no_proxy}"

    def _of_scheme(self, scheme: str) -> Proxy | None:
        if self.configured is not None:
            return self.configured
        variable = self._variable(scheme)
        text = self.others.get(variable)
        if not text:
            return None
        try:
            return parse_proxy(text)
        except ValueError as e:
            raise ConfigError(
                f"{variable.upper()}_PROXY in the environment: {e}",
                remedy="Correct it, or give another proxy as http.proxy in the configuration.",
            ) from None

    def _variable(self, scheme: str) -> str:
        return scheme if self.others.get(scheme) else "all"

    def __repr__(self) -> str:
        return f"<Proxies {self.configured or sorted(self.others)}>"


def environment_proxies(configured: Proxy | None = None, no_proxy: str = "") -> Proxies:
    """What is configured goes before HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY (or in lower case, which goes
    before upper case) of this process's environment, each for itself."""
    import urllib.request  # It takes 60 ms, and commands that reach no origin load this module too.

    found = urllib.request.getproxies_environment()
    return Proxies(configured, found, no_proxy or found.get("no", ""))


def bypassed(no_proxy: str, origin: Origin) -> bool:
    """Whether `no_proxy` names `origin`: entries between commas are host names that stand for their subdomains too
    (".host" and "*.host" mean the same), addresses, networks such as 10.0.0.0/8, or "*" for all; each but the last two
    may have ":port". So do curl, Go and Python's urllib between them. No name is looked up to see its network."""
    entries = [entry.strip().lower().removeprefix("*.") for entry in no_proxy.split(",")]
    if "*" in entries:
        return True
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    for name in (host, f"{host}:{origin.port}"):
        if any(name == entry or name.endswith(f".{entry}") for e in entries if (entry := e.lstrip("."))):
            return True
    try:
        address = ipaddress.ip_address(origin.host)
    except ValueError:
        return False
    return any(address in network for network in _networks(entries))


def _networks(entries: list[str]) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Single addresses too: in IPv6 one is written in many ways."""
    for entry in entries:
        try:
            yield ipaddress.ip_network(entry.strip("[]"), strict=False)
        except ValueError:
            pass  # A name.
