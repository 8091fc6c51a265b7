"""What an origin allows in a window of time, as its `RateLimit` header tells, and what of it was spent."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from weightd.core.quota import Spent
from weightd.sources.urls import Origin

log = logging.getLogger("weightd.sources")

LONGEST_S = 330.0
"""That one question waits for a quota, at most, before it asks again; windows of the Hub are 300 s."""
_ITEM = re.compile(r'"?([A-Za-z][\w-]*)"?\s*;\s*r\s*=\s*(\d{1,9})\s*;\s*t\s*=\s*(\d{1,6})', re.ASCII)


class Limit(NamedTuple):
    """Requests that are left in the window of a bucket, and the seconds until it ends."""

    bucket: str
    left: int
    reset: float


def parse_limit(headers: Mapping[str, str]) -> Limit | None:
    """Of `RateLimit: "api";r=0;t=55` (draft-ietf-httpapi-ratelimit-headers-09)."""
    match = _ITEM.search(headers.get("ratelimit", ""))
    return None if match is None else Limit(match[1], int(match[2]), float(match[3]))


def bucket_of(path: str) -> str:
    """Whose quota a request costs at the Hub, for those whose answer does not say; "" for none."""
    if "/resolve/" in path:
        return "resolvers"
    if path.startswith("/api/resolve-cache/"):
        return ""
    return "api" if path.startswith("/api/") else ""


@dataclass(slots=True)
class _Bucket:
    requests: int = 0
    left: int = -1
    waits: int = 0
    begins: float = 0.0
    """Of the next window, monotonic."""


@dataclass(slots=True)
class Quotas:
    """Any thread. `clock` is monotonic."""

    clock: Callable[[], float] = time.monotonic
    _buckets: dict[tuple[Origin, str], _Bucket] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, origin: Origin, path: str, headers: Mapping[str, str]) -> None:
        """An answer to a request came."""
        limit = parse_limit(headers)
        name = limit.bucket if limit is not None else bucket_of(path)
        if not name:
            return
        with self._lock:
            bucket = self._buckets.setdefault((origin, name), _Bucket())
            bucket.requests += 1
            if limit is None:
                return
            bucket.left = limit.left
            bucket.begins = self.clock() + limit.reset + 1 if limit.left == 0 else 0.0
            bucket.waits += limit.left == 0
        log.debug("%s: %d requests of %s left for %.0f s", origin.header, limit.left, name, limit.reset)
        if not limit.left:
            log.info("%s: the quota of %s is spent for %.0f s", origin.header, name, limit.reset)

    def wait(self, origin: Origin, path: str) -> float:
        """Seconds until a request of this kind has a quota again."""
        with self._lock:
            bucket = self._buckets.get((origin, bucket_of(path)))
            return 0.0 if bucket is None else max(0.0, bucket.begins - self.clock())

    @staticmethod
    def reset(headers: Mapping[str, str]) -> float | None:
        """Seconds until an origin that refuses because its quota is spent gives another; None where it says no such
        thing."""
        limit = parse_limit(headers)
        return limit.reset if limit is not None and limit.left == 0 else None

    def spent(self) -> list[Spent]:
        """For a metric: counted since the start."""
        with self._lock:
            return [Spent(o.header, n, b.requests, b.left, b.waits) for (o, n), b in self._buckets.items()]
