"""The S3 clients that are in use: one for each setting, with credentials that may be replaced meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass

import msgspec
from botocore.exceptions import NoCredentialsError

from weightd.core.credentials import Credential
from weightd.core.errors import CredentialsExpired, CredentialsRejected, SourceDenied
from weightd.core.s3 import S3Object
from weightd.core.signed import good_until, renew_at
from weightd.sources import s3_faults as faults
from weightd.sources.receiving import Receiving
from weightd.sources.routes import MOST, Minted
from weightd.sources.s3_session import client_of, open_session
from weightd.sources.s3_settings import S3Options, Secrets, Setting, setting_of
from weightd.sources.s3_store import FAULTS, Store


@dataclass(slots=True)
class _Made:
    """`before`: what it replaced, which somebody may still be asking."""

    secrets: Secrets
    store: Store
    opened: AsyncExitStack
    before: _Made | None = None

    async def close(self) -> None:
        before, self.before = self.before, None
        if before is not None:
            await before.close()
        await self.opened.aclose()


class Clients:
    """On one loop. `close` closes all."""

    def __init__(self, options: S3Options, rules: tuple[Credential, ...], receiving: Receiving) -> None:
        self._options, self._rules, self._receiving = options, rules, receiving
        self._made: dict[Setting, _Made] = {}
        self._making: defaultdict[Setting, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One for each: what gives the credentials of one may be slow."""
        self._minted: dict[str, float] = {}
        """By file: until when its last address is good enough."""
        self._unversioned: set[str] = set()
        """Buckets of whose objects no version may be named."""

    async def of(self, at: S3Object) -> Store:
        """Of the region that the bucket is in, as far as that is known. Raises CredentialsMissing, ConfigError."""
        setting = setting_of(self._options, self._rules, at.url)
        store = await self._of(setting)
        region = store.region_of(at.bucket)
        if not region:
            return store
        there = msgspec.structs.replace(setting.options, region=region)
        return await self._of(msgspec.structs.replace(setting, options=there))

    def were_good(self) -> bool:
        """Whether some credentials were refused that had been taken before: there may be others in their place now."""
        return any(made.store.rejected and made.store.worked for made in self._made.values())

    async def _of(self, setting: Setting) -> Store:
        secrets = Secrets.of(setting)
        async with self._making[setting]:
            made = self._made.get(setting)
            if made is not None and made.secrets == secrets and not made.store.rejected:
                return made.store
            fresh = await self._open(setting, secrets)
            self._made[setting] = fresh
            if made is not None:
                fresh.before, outdated = made, made.before
                made.before = None
                if outdated is not None:
                    await outdated.close()
            return fresh.store

    async def _open(self, setting: Setting, secrets: Secrets) -> _Made:
        http = self._receiving.options
        # Longer than all attempts of one question take, their pauses included.
        limit = (http.connect_timeout + http.read_timeout) * http.attempts + 60.0
        where = setting.options.endpoint or "AWS"
        try:
            async with asyncio.timeout(limit):
                session = open_session(setting, http)
                signs = not setting.options.anonymous and not secrets.id
                credentials = await session.get_credentials() if signs else None
                if signs and credentials is None:
                    raise NoCredentialsError  # And not a client that never has any.
                opened = AsyncExitStack()
                client = await opened.enter_async_context(client_of(session, setting, secrets, http))
        except FAULTS as e:
            raise faults.translated(e, where, where) from None
        return _Made(secrets, Store(client, setting.options, credentials, self._receiving.pool.gates, limit), opened)

    async def address(self, at: S3Object, url: str) -> Minted:
        """Where the file `url` is. Asked again before it had to be, the last address was of no use: then a byte is read
        first, for the error that says why, if there is one."""
        store = await self.of(at)
        at = at._replace(version="") if at.bucket in self._unversioned else at
        if time.time() < self._minted.pop(url, 0.0) or not store.reached(at.bucket):
            at = await self._checked(store, at)
            store = await self.of(at)  # It may have been led to another region, for which the address has to be signed.
        minted = await store.address(at)
        if len(self._minted) >= MOST:
            del self._minted[next(iter(self._minted))]
        now = time.time()
        end = min(minted.until, good_until(minted.address) or minted.until)
        self._minted[url] = renew_at(end, now) - 1.0 if end < float("inf") else end
        return minted

    async def _checked(self, store: Store, at: S3Object) -> S3Object:
        """The object if it can be read; without its version, if only that can: naming one takes a right of its own
        (s3:GetObjectVersion), and what is read is guarded by its ETag in any case."""
        try:
            try:
                await store.check(at)
            except (CredentialsExpired, CredentialsRejected):
                store = await self.of(at)  # With what is in their place now.
                await store.check(at)
        except SourceDenied:
            if not at.version:
                raise
            at = at._replace(version="")
            await store.check(at)
            self._unversioned.add(at.bucket)
        return at

    async def close(self) -> None:
        for made in self._made.values():
            await made.close()
        self._made.clear()
