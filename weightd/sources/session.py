"""The aiohttp session that questions are asked with. Imported when the first one is: that takes 0.2 s."""

from __future__ import annotations

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection

from weightd.sources import safetensors_repo as repo
from weightd.sources.connection import HttpOptions


class _Connector(aiohttp.TCPConnector):
    """aiohttp keeps a connection on which something came while it was idle, and takes that for the next answer: from
    then on every question gets the answer of the one before."""

    async def _get(self, key: ConnectionKey, traces: list[aiohttp.tracing.Trace]) -> Connection | None:
        while (idle := await super()._get(key, traces)) is not None:
            if idle.protocol is not None and not idle.protocol.should_close:
                return idle
            idle.close()
        return None


def open_session(options: HttpOptions) -> aiohttp.ClientSession:
    """Belongs to the running loop; the caller closes it."""
    return aiohttp.ClientSession(
        connector=_Connector(limit_per_host=repo.PROBES, resolver=aiohttp.ThreadedResolver()),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=options.connect_timeout, sock_read=options.read_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
