"""Resolve http and https refs: what files there are, how large, which version, and whether ranges work.

One `GET` with `Range: bytes=0-0` per file tells all of it (a HEAD is refused by signed addresses, and lies about
ranges). The body of an answer that ignores the range is not read. An object store that gives no checksum with a range
is asked for it by one HEAD more, unless the address is signed.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from weightd.core.backoff import full_jitter
from weightd.core.digest import Digest
from weightd.core.errors import ManifestError, SourceUnavailable, WeightdError
from weightd.core.manifest import FileSpec, Manifest, agreed_digest, make_manifest
from weightd.core.ranges import THROTTLED, Probe, asked_to_wait, is_transient, judge_probe, single, status_error
from weightd.core.refs import Ref, redact
from weightd.core.stated import Stated, is_of, stated, worth_asking
from weightd.sources import net, urls
from weightd.sources import safetensors_repo as repo
from weightd.sources.connection import USER_AGENT, HttpOptions
from weightd.sources.protocols import FromOrigin, Reader, Shared
from weightd.sources.proxies import Proxy
from weightd.sources.receiving import Receiving

if TYPE_CHECKING:
    import aiohttp

_SMALL_BODY = 64 << 10
_NONE: frozenset[int] = frozenset()
_ABSENT = frozenset({404, 410})
_ABSENT_OPTIONAL = frozenset({403, 404, 410})
"""S3 answers 403 for a missing key to those who may not list the bucket."""
_ASK = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": USER_AGENT}


class _Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    kept: str
    where: str
    led: str
    """The address that answered; a secret, as `kept` may be."""


class _BrokeOff(Exception):
    """A fault that another attempt may mend; `error` is it, should there be none."""

    def __init__(self, error: WeightdError) -> None:
        self.error = error


class HttpSource(FromOrigin):
    """Implements `weightd.sources.protocols.Source` for http and https. `receiving` is shared with other sources, who
    closes it; by default it has its own, with `processes`. `sleep` and `draw` are for tests."""

    def __init__(
        self,
        options: HttpOptions | None = None,
        receiving: Receiving | None = None,
        *,
        processes: int = 0,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._receiving = receiving or Receiving(options or HttpOptions(), processes)
        self._shared = receiving is not None
        self._options = self._receiving.options
        self._pool = self._receiving.pool
        self._session: aiohttp.ClientSession | None = None
        self._sleep, self._draw = sleep, draw

    async def resolve(self, ref: Ref) -> Manifest:
        try:
            files = await self._files(ref)
            return make_manifest(ref.shown, repo.format_of(f.path for f in files), files)
        except WeightdError as e:
            raise e.about(ref=ref.shown) from None

    async def _files(self, ref: Ref) -> list[FileSpec]:
        url = urls.encode(ref.text)
        kind = urls.shape(url)
        if kind is urls.Shape.FILE:
            return [await self.stat(ref, urls.name(url), url, size=None, digest=None)]
        folder = _Folder(self, ref, urls.directory(url))
        if kind is urls.Shape.DIRECTORY:
            return await repo.whole_directory(folder)
        index = await self.stat(ref, urls.name(url), url, size=None, digest=None)
        return await repo.of_index(folder, index)

    async def stat(self, ref: Ref, path: str, url: str, *, size: int | None, digest: Digest | None) -> FileSpec:
        found = await self.find(ref, path, url, size=size, digest=digest)
        assert found is not None
        return found

    async def find(
        self, ref: Ref, path: str, url: str, *, size: int | None, digest: Digest | None, absent: frozenset[int] = _NONE
    ) -> FileSpec | None:
        """As `stat`, but None when the origin answers one of the statuses in `absent`."""
        try:
            answered = await self._probe(urls.encode(url), absent)
            if answered is None:
                return None
            probe, answer = answered
            where = redact(answer.kept)
            if probe.size is None and size is None:
                raise ManifestError(
                    f"{where} does not tell its size",
                    remedy="Name the model in models.json and give the file's `size` in bytes there.",
                )
            if probe.size is not None:
                repo.check_size(probe.size, size, where, path)
            total = probe.size if probe.size is not None else size
            assert total is not None
            said = await self._said(probe, answer, total, wanted=digest is None)
            digest = agreed_digest(digest, said.digest, path)
        except WeightdError as e:
            raise e.about(ref=ref.shown, file=path) from None
        crc = None if digest else said.crc
        return FileSpec(path, total, answer.kept, digest, probe.validator, probe.ranges, crc)

    def reader(self, file: FileSpec, memory: Shared | None = None) -> Reader:
        return self._receiving.reader(file, memory)

    def width(self, file: FileSpec) -> int:
        return self._receiving.width(file)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        if not self._shared:
            await self._receiving.close()

    async def _said(self, probe: Probe, answer: _Answer, size: int, *, wanted: bool) -> Stated:
        """Of the whole file's bytes. `wanted`: nobody else has said, so that one more question is worth it."""
        said = stated(answer.headers, size=size, partial="content-range" in answer.headers)
        if said != Stated() or not wanted or _signed(answer.led) or not worth_asking(answer.headers):
            return said
        try:
            # S3 leaves checksums out unless asked, and refuses this header with a signature that does not name it.
            head = await self._follow(answer.kept, {"x-amz-checksum-mode": "ENABLED"}, "HEAD")
        except (_BrokeOff, WeightdError):
            return said  # The file can be had without: it is verified less far, and that is said.
        if head.status != 200 or not is_of(head.headers, size=size, validator=probe.validator):
            return said
        return stated(head.headers, size=size, partial="content-range" in head.headers)

    async def _probe(self, url: str, absent: frozenset[int]) -> tuple[Probe, _Answer] | None:
        answer = await self._ask(url, {"Range": "bytes=0-0"})
        if answer.status in absent:
            return None
        probe = judge_probe(answer.status, answer.headers, answer.where)
        if probe is None:
            answer = await self._ask(url, {})
            if answer.status == 416:
                raise status_error(answer.status, answer.where)
            probe = judge_probe(answer.status, answer.headers, answer.where)
            assert probe is not None
        self._pool.routes.learned(answer.kept, answer.led)
        return probe, answer

    async def _ask(self, url: str, extra: dict[str, str]) -> _Answer:
        """Follow redirects, and repeat while the fault may pass; the last answer, or the last fault raised."""
        delay = self._pool.gates.of(urls.target(url).origin).delay()
        if delay > 0:
            await self._sleep(delay)
        for attempt in range(self._options.attempts):
            last = attempt + 1 == self._options.attempts
            wait = full_jitter(attempt, self._draw(), base=self._options.pause)
            try:
                answer = await self._follow(url, extra)
                if last or not is_transient(answer.status):
                    return answer
                wait = max(wait, asked_to_wait(answer.headers, time.time()))
            except _BrokeOff as e:
                if last:
                    raise e.error from None
            await self._sleep(wait)
        raise AssertionError("attempts must be positive")

    async def _follow(self, url: str, extra: dict[str, str], method: str = "GET") -> _Answer:
        trail = urls.Trail(url)
        while True:
            status, headers = await self._get(trail.url, extra, method)
            location = headers.get("location")
            if status not in urls.REDIRECTS or location is None:
                return _Answer(status, headers, trail.kept, self._pool.shown(trail.url), trail.url)
            trail.follow(status, location)

    async def _get(self, url: str, extra: dict[str, str], method: str) -> tuple[int, dict[str, str]]:
        await asyncio.to_thread(importlib.import_module, "aiohttp")  # The first time this takes 0.2 s.
        import aiohttp
        from yarl import URL

        to, where = urls.target(url), self._pool.shown(url)
        proxy = self._options.proxies.of(to.origin)
        headers = _ASK | extra | ({"Authorization": to.authorization} if to.authorization else {})
        if proxy is not None and to.origin.scheme == "http":
            headers |= _authorization(proxy)
        try:
            tls = await asyncio.to_thread(self._pool.context) if to.origin.scheme == "https" else True
            # A head that comes byte by byte, or interim answers without end, are no silence.
            limit = 2 * self._options.connect_timeout + 2 * self._options.read_timeout
            ask = self._open_session().request(
                method,
                URL(to.url, encoded=True),
                headers=headers,
                allow_redirects=False,
                ssl=tls,
                **self._proxied(proxy),
            )
            async with asyncio.timeout(limit), ask as answer:
                length = answer.headers.get("Content-Length", "")
                if length.isdecimal() and int(length) <= _SMALL_BODY:
                    await answer.read()  # Else the connection could not be used again.
                found = single((k.decode("latin-1"), v.decode("latin-1")) for k, v in answer.raw_headers)
                if answer.status in THROTTLED:
                    self._pool.gates.of(to.origin).throttled(asked_to_wait(found, time.time()))
                if answer.status == 407 and proxy is not None:
                    raise net.proxy_denied(proxy.name)
                return answer.status, found
        except (aiohttp.ClientError, OSError, ValueError) as e:
            if proxy is not None and (fault := self._proxy_fault(e, proxy, to.origin)):
                raise fault from None
            raise self._translated(e, to.origin, where) from None

    def _proxied(self, proxy: Proxy | None) -> dict[str, Any]:
        """Arguments of aiohttp's requests."""
        if proxy is None:
            return {}
        import aiohttp
        from yarl import URL

        options = self._options
        return {
            "proxy": URL.build(scheme="http", host=proxy.host, port=proxy.port),
            "proxy_headers": _authorization(proxy),  # Sent with CONNECT only.
            # `sock_connect` ends before the proxy is asked for a tunnel, and `sock_read` begins after it.
            "timeout": aiohttp.ClientTimeout(
                total=None,
                connect=2 * options.connect_timeout,
                sock_connect=options.connect_timeout,
                sock_read=options.read_timeout,
            ),
        }

    def _proxy_fault(self, e: Exception, proxy: Proxy, origin: urls.Origin) -> Exception | None:
        """None for a fault that may as well be the origin's; then its text says through which proxy."""
        import aiohttp

        timeout = self._options.connect_timeout
        match e:
            case aiohttp.ClientHttpProxyError():
                error = net.tunnel_refused(e.status, proxy.name, origin.header)
                return _BrokeOff(error) if is_transient(e.status) else error
            case aiohttp.ConnectionTimeoutError():
                return net.of_proxy_connect(TimeoutError(), proxy.name, timeout)
            case aiohttp.ClientConnectorDNSError() | UnicodeError():
                return net.of_proxy_connect(socket.gaierror(), proxy.name, timeout)
            case aiohttp.ClientProxyConnectionError():
                return net.of_proxy_connect(e.os_error, proxy.name, timeout)
            case _:
                return None

    def _translated(self, e: Exception, origin: urls.Origin, where: str) -> Exception:
        import aiohttp

        host, port = origin.host, origin.port
        match e:
            case aiohttp.ConnectionTimeoutError():
                return net.connect_timeout(host, port, self._options.connect_timeout)
            case aiohttp.ClientConnectorDNSError() | UnicodeError():
                return net.unresolved(host)
            case aiohttp.ClientConnectorCertificateError():
                return net.of_connect(_ssl(e.certificate_error), host, port, 0)
            case aiohttp.ClientConnectorSSLError():
                return net.of_connect(_ssl(e.os_error), host, port, 0)
            case aiohttp.ClientConnectorError():
                return net.of_connect(e.os_error, host, port, self._options.connect_timeout)
            case aiohttp.ServerTimeoutError():
                return _BrokeOff(net.stalled(where, self._options.read_timeout))
            case TimeoutError():
                return _BrokeOff(net.crawled(where, self._options.connect_timeout + 2 * self._options.read_timeout))
            case aiohttp.ClientResponseError() | aiohttp.InvalidURL() | ValueError():
                return net.not_http(where)
            case _:
                return _BrokeOff(net.broke_off(where))

    def _open_session(self) -> aiohttp.ClientSession:
        """Made at first use: it belongs to the running loop."""
        if self._session is None:
            from weightd.sources.session import open_session

            self._session = open_session(self._options)
        return self._session


class _Folder:
    """Implements `safetensors_repo.Folder`."""

    def __init__(self, source: HttpSource, ref: Ref, url: str) -> None:
        self._source, self._ref, self._url = source, ref, url

    async def find(self, path: str, *, optional: bool = False) -> FileSpec | None:
        return await self._source.find(
            self._ref,
            path,
            urls.child(self._url, path),
            size=None,
            digest=None,
            absent=_ABSENT_OPTIONAL if optional else _ABSENT,
        )

    async def read(self, file: FileSpec) -> bytes:
        """Through a Reader; once more on a fault that may pass."""
        try:
            return await repo.read_in_thread(self._source.reader(file), file.size)
        except SourceUnavailable:
            return await repo.read_in_thread(self._source.reader(file), file.size)

    def missing(self, path: str, why: str) -> WeightdError:
        return repo.not_found(redact(self._url), path, why)


def _signed(url: str) -> bool:
    """By its query (AWS Signature 4 and 2, Google Cloud Storage V4 and V2): good for one method, and for no headers
    that it does not name."""
    return any(n.lower().endswith("signature") for n, _ in parse_qsl(urlsplit(url).query))


def _authorization(proxy: Proxy) -> dict[str, str]:
    return {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}


def _ssl(e: BaseException) -> OSError:
    return e if isinstance(e, ssl.SSLError) else ssl.SSLError(1, "TLS failed")
