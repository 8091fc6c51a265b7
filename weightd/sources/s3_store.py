"""What is asked of one S3 client: plain values in and out, and weightd's errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from weightd.core.crc import CrcAlgorithm
from weightd.core.errors import (
    CredentialsExpired,
    CredentialsMissing,
    CredentialsRejected,
    ManifestError,
    WeightdError,
)
from weightd.core.ranges import THROTTLED, asked_to_wait
from weightd.core.refs import redact
from weightd.core.s3 import S3Object
from weightd.sources import s3_faults as faults
from weightd.sources import urls
from weightd.sources.routes import Minted
from weightd.sources.s3_settings import S3Options
from weightd.sources.shared import SharedGates

LIFE_S: Final = 3600
"""Of a signed address: what is under way when it ends goes on, and what begins later gets another."""
LEAST_LIFE_S: Final = 1
MAX_LISTED: Final = 100_000
"""Objects below one prefix; a model has some thousands at most."""
FAULTS: Final = (ClientError, BotoCoreError, ResponseParserError, OSError, ValueError, RuntimeError)
"""RuntimeError: of credentials that are renewed and expired at once, and of a client that was just closed."""
_NO_CREDENTIALS: Final = (CredentialsExpired, CredentialsMissing, CredentialsRejected)
_PAYS: Final = {"x-amz-request-payer": "requester"}


class Listed(NamedTuple):
    """`path` is relative to the prefix."""

    path: str
    size: int
    etag: str


class StoredPart(NamedTuple):
    """`checksum` in base64, "" for none."""

    size: int
    checksum: str


class Store:
    """One client. On its own loop. `rejected`: its credentials are good no more."""

    def __init__(self, client: Any, options: S3Options, credentials: Any, gates: SharedGates, limit: float) -> None:
        self._client, self._options, self._credentials = client, options, credentials
        self._gates, self._limit = gates, limit
        self._endpoint = redact(str(client.meta.endpoint_url))
        self.rejected = False
        self._reached: set[str] = set()
        self._regions: dict[str, str] = {}
        client.meta.events.register("needs-retry.s3", self._answered)
        client.meta.events.register("before-endpoint-resolution.s3", self._going)
        client.meta.events.register("before-call.s3.HeadBucket", _not_led)

    def reached(self, bucket: str) -> bool:
        """Whether an answer came of it: then it is known where the bucket is."""
        return bucket in self._reached

    @property
    def worked(self) -> bool:
        """Whether its credentials ever were good for anything."""
        return bool(self._reached)

    def region_of(self, bucket: str) -> str:
        """Where the server led, if that is not this client's own region; else ""."""
        return self._regions.get(bucket, "")

    async def head(self, at: S3Object, part: int = 0) -> dict[str, str] | None:
        """Headers of the answer, by name in lower case; None where the object is not there. With `part`, that of its
        stored parts alone, and with no object None too where the server does not know parts."""
        more: dict[str, Any] = {"PartNumber": part} if part else {"ChecksumMode": "ENABLED"}
        for attempt in range(2):
            try:
                async with asyncio.timeout(self._limit):
                    answer = await self._client.head_object(**self._named(at), **more)
                self._reached.add(at.bucket)
                return _headers(answer)
            except ClientError as e:
                if faults.is_missing(e) or part:
                    return None
                if attempt or not 300 <= faults.status_of(e) < 500:
                    raise self._translated(e, at) from None
            except FAULTS as e:
                raise self._translated(e, at) from None
            # An answer without a body does not say why. If this does not raise, it has led to the bucket's region.
            await self.check(at)
        raise AssertionError

    async def check(self, at: S3Object) -> None:
        """Read a byte of it: raises why that cannot be."""
        async with self._asking(at):
            try:
                answer = await self._client.get_object(**self._named(at), Range="bytes=0-0")
                answer["Body"].close()
            except ClientError as e:
                if faults.status_of(e) != 416:  # It could, if there were one.
                    raise

    async def below(self, at: S3Object, first: int = 0) -> list[Listed]:
        """All objects below the prefix, or at least the `first` ones; but those that stand for directories. Raises
        ManifestError for more than MAX_LISTED."""
        found: list[Listed] = []
        more: dict[str, Any] = {}
        while True:
            async with self._asking(at):
                page = await self._client.list_objects_v2(
                    Bucket=at.bucket, Prefix=at.key, MaxKeys=first or 1000, **self._payer(), **more
                )
            for one in page.get("Contents", ()):
                key, size = str(one["Key"]), int(one.get("Size", 0))
                if key.startswith(at.key) and not (key.endswith("/") and not size):
                    found.append(Listed(key[len(at.key) :], size, str(one.get("ETag", ""))))
            if len(found) > MAX_LISTED:
                raise ManifestError(
                    f"{at.shown} has more than {MAX_LISTED} objects below it", remedy="Name the prefix of one model."
                )
            if not page.get("IsTruncated") or 0 < first <= len(found):
                return found
            token = page.get("NextContinuationToken")
            if not token or token == more.get("ContinuationToken"):
                raise ManifestError(
                    f"the list of {at.shown} breaks off: {self._endpoint} does not say how it goes on",
                    remedy="The server has to mend this (ListObjectsV2); objects can be named one by one.",
                )
            more = {"ContinuationToken": token}

    async def parts(self, at: S3Object, algorithm: CrcAlgorithm) -> list[StoredPart]:
        """Of an object that was uploaded in several; none where the server does not say, or the credentials may not ask
        (s3:GetObjectAttributes)."""
        found: list[StoredPart] = []
        marker = 0
        while True:
            try:
                async with asyncio.timeout(self._limit):
                    answer = await self._client.get_object_attributes(
                        **self._named(at), ObjectAttributes=["ObjectParts"], MaxParts=1000, PartNumberMarker=marker
                    )
            except ClientError:
                return []
            except FAULTS as e:
                raise self._translated(e, at) from None
            listed: Mapping[str, Any] = answer.get("ObjectParts", {})
            for one in listed.get("Parts", ()):
                found.append(StoredPart(int(one.get("Size", 0)), str(one.get(f"Checksum{algorithm.value}", ""))))
            following = int(listed.get("NextPartNumberMarker") or 0)
            if not listed.get("IsTruncated") or following <= marker:
                return found
            marker = following

    async def address(self, at: S3Object) -> Minted:
        """A signed address of the object, or the plain one where nothing signs. It is signed for this client's region,
        whatever `region_of` says."""
        try:
            async with asyncio.timeout(self._limit):
                life, until = await self._life()
                url = await self._client.generate_presigned_url("get_object", Params=self._named(at), ExpiresIn=life)
        except FAULTS as e:
            raise self._translated(e, at) from None
        return Minted(urls.encode(url), _signed_headers(url), until)

    async def _life(self) -> tuple[int, float]:
        """Seconds for which to sign, and until when the credentials are good, seconds since the epoch."""
        credentials = self._credentials
        if credentials is None:
            return LIFE_S, float("inf")
        await credentials.get_frozen_credentials()  # Refreshed, if they are to be.
        end = getattr(credentials, "_expiry_time", None)
        if end is None:
            return LIFE_S, float("inf")
        until: float = end.timestamp()
        return max(LEAST_LIFE_S, min(LIFE_S, int(until - time.time()))), until

    def _named(self, at: S3Object) -> dict[str, str]:
        version = {"VersionId": at.version} if at.version else {}
        return {"Bucket": at.bucket, "Key": at.key} | version | self._payer()

    def _payer(self) -> dict[str, str]:
        return {"RequestPayer": "requester"} if self._options.requester_pays else {}

    @asynccontextmanager
    async def _asking(self, at: S3Object) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._limit):
                yield
            self._reached.add(at.bucket)
        except FAULTS as e:
            raise self._translated(e, at) from None

    def _translated(self, e: Exception, at: S3Object) -> WeightdError:
        error = faults.translated(e, at.shown, self._endpoint)
        self.rejected = self.rejected or isinstance(error, _NO_CREDENTIALS)
        return error

    def _answered(self, response: tuple[Any, Any] | None, request_dict: Mapping[str, Any], **_: object) -> None:
        """Before each retry: what the server says of its load counts for the receivers too."""
        if response is None or response[0].status_code not in THROTTLED:
            return
        headers = {str(k).lower(): str(v) for k, v in response[0].headers.items()}
        origin = urls.target(str(request_dict["url"])).origin
        self._gates.of(origin).throttled(asked_to_wait(headers, time.time()))

    def _going(self, builtins: Mapping[str, Any], params: Mapping[str, Any], **_: object) -> None:
        """Before each request, once botocore has put in the region that it was led to."""
        bucket, region = params.get("Bucket"), builtins.get("AWS::Region")
        if bucket and region not in (None, "aws-global", self._client.meta.region_name):
            self._regions[str(bucket)] = str(region)

    def __repr__(self) -> str:
        return f"<Store {self._endpoint}>"


def _not_led(params: Mapping[str, Any], **_: object) -> None:
    """botocore asks for a bucket's region by HeadBucket; where that is led elsewhere too, it would ask for ever."""
    params["context"].setdefault("s3_redirect", {})["redirected"] = True


def _headers(answer: Mapping[str, Any]) -> dict[str, str]:
    return {str(k).lower(): str(v) for k, v in answer["ResponseMetadata"]["HTTPHeaders"].items()}


def _signed_headers(url: str) -> tuple[tuple[str, str], ...]:
    """Those that the signature names have to be sent; Host is, in any case."""
    names = parse_qs(urlsplit(url).query).get("X-Amz-SignedHeaders", [""])[0].split(";")
    return tuple((name, value) for name, value in _PAYS.items() if name in names)
