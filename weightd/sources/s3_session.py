"""A botocore client for one setting: who signs, where it asks, through which proxy and trusting whom."""

from __future__ import annotations

import functools
import logging
import os
import ssl
from typing import Any
from urllib.parse import quote, urlsplit

from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore import UNSIGNED
from botocore.httpsession import ProxyConfiguration
from botocore.loaders import Loader, create_loader

from weightd.core.errors import ConfigError
from weightd.sources import safetensors_repo as repo
from weightd.sources.connection import USER_AGENT, HttpOptions
from weightd.sources.proxies import Proxies
from weightd.sources.s3_settings import Secrets, Setting
from weightd.sources.urls import Origin

DEFAULT_REGION = "us-east-1"
"""Where nothing names one: AWS leads from there to any other, and other servers mostly do not care."""
for _name in ("botocore", "aiobotocore"):
    # Their lines hold signatures, headers, and what providers of credentials answer; and whoever asked gets the error.
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class _Proxied(ProxyConfiguration):  # type: ignore[misc]
    """By the rules of `weightd.sources.proxies`, those of the receive path."""

    def __init__(self, proxies: Proxies) -> None:
        super().__init__()
        self._rules = proxies

    def proxy_url_for(self, url: str) -> str | None:
        to = urlsplit(url)
        port = to.port or (443 if to.scheme == "https" else 80)
        proxy = self._rules.of(Origin(to.scheme, to.hostname or "", port))
        if proxy is None:
            return None
        user = f"{quote(proxy.user, safe='')}:{quote(proxy.password, safe='')}@" if proxy.authorization else ""
        host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
        return f"http://{user}{host}:{proxy.port}"

    def proxy_headers_for(self, proxy_url: str) -> dict[str, str]:
        return {}


class _NotLed:
    """A session of aiohttp that follows no redirect, as botocore's own does not: what is signed for one server, and the
    token with it, is for no other."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, method: str, **more: Any) -> Any:
        return await self._session.request(method, **more, allow_redirects=False)


def _session_class(proxies: Proxies) -> type[AIOHTTPSession]:
    class Session(AIOHTTPSession):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._proxy_config = _Proxied(proxies)

        async def _get_session(self, proxy_url: str | None) -> _NotLed:
            return _NotLed(await super()._get_session(proxy_url))

    return Session


def open_session(setting: Setting, http: HttpOptions) -> AioSession:
    """Finds credentials where botocore does. Raises what botocore does."""
    session = AioSession(profile=setting.options.profile or None)
    session.register_component("data_loader", _descriptions(session.get_config_variable("data_path")))
    region = setting.options.region or session.get_config_variable("region") or os.environ.get("AWS_REGION")
    session.set_config_variable("region", region or DEFAULT_REGION)
    # Also of the clients that it makes for itself, to be given a role.
    session.set_default_client_config(_config(setting, http))
    if authorities := http.ca_file or ssl.get_default_verify_paths().cafile:
        session.set_config_variable("ca_bundle", authorities)
    return session


def client_of(session: AioSession, setting: Setting, secrets: Secrets, http: HttpOptions) -> Any:
    """A context manager of an S3 client. Blocks while it reads botocore's descriptions of the services."""
    options = setting.options
    _check_endpoint(options.endpoint)
    config = AioConfig(
        signature_version=UNSIGNED if options.anonymous else "s3v4",
        s3={"addressing_style": options.addressing},
    )
    return session.create_client(
        "s3",
        endpoint_url=options.endpoint or None,
        aws_access_key_id=secrets.id or None,
        aws_secret_access_key=secrets.secret or None,
        aws_session_token=secrets.token or None,
        config=config,
    )


@functools.cache
def _descriptions(data_path: str | None) -> Loader:
    """Botocore's descriptions of services, read once for all clients: a client takes 12 ms with them, 120 without."""
    return create_loader(data_path)


def _config(setting: Setting, http: HttpOptions) -> AioConfig:
    return AioConfig(
        connect_timeout=http.connect_timeout,
        read_timeout=http.read_timeout,
        max_pool_connections=repo.PROBES,
        retries={"mode": "standard", "total_max_attempts": http.attempts},
        user_agent_extra=USER_AGENT,
        # Otherwise it signs a header that asks for checksums into every address, which other servers refuse.
        response_checksum_validation="when_required",
        request_checksum_calculation="when_required",
        http_session_cls=_session_class(http.proxies),
    )


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if endpoint and (parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query):
        raise ConfigError("s3.endpoint is no address", remedy="Write https://host or http://host:port.")
