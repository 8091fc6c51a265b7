"""Who may see which refs: tenants, each behind a socket of its own.

The rule of bytes: they are for whoever may see a ref whose source delivered them. So bytes that are here already may
stand for what a ref names without being fetched again only where everybody who may see that ref may see one for which
they were fetched; a digest, which anybody can write down, gives no right to bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from weightd.core.allow import AllowList
from weightd.core.errors import AccessDenied, RefNotAllowed
from weightd.core.refs import Ref

Scope = frozenset[str]
"""Names of tenants. Whoever connects to the daemon's own socket sees everything, and is in none."""
NOBODY: Final[Scope] = frozenset()
REMEMBERED: Final = 4096
"""Refs whose scopes are kept: what is asked for again and again is matched once."""


class Tenant(NamedTuple):
    """`name` of its socket, `gid` of the group that may connect to it. `operate`: it may also pin, evict, remove and
    verify what it sees."""

    name: str
    gid: int
    allow: AllowList
    operate: bool = False

    def sees(self, ref: Ref) -> bool:
        return self.allow.allows(ref) and not personal(ref)

    def check(self, ref: Ref) -> None:
        """Raises RefNotAllowed, with the same text whether the ref is held or not."""
        if personal(ref):
            raise RefNotAllowed(
                "this socket serves no refs with a password or a query",
                ref=ref.shown,
                remedy="Ask whoever runs the daemon for credentials in its configuration, or a name for the model.",
            )
        if not self.allow.allows(ref):
            raise RefNotAllowed(
                "this socket does not serve the ref",
                ref=ref.shown,
                remedy="Whoever runs the daemon may add it to `allow` of this socket in its configuration.",
            )

    def check_operator(self) -> None:
        """Raises AccessDenied."""
        if not self.operate:
            raise AccessDenied(
                "this socket is for using models, not for pinning, evicting, removing or verifying them",
                remedy="Ask whoever runs the daemon, who may set `operate` for this socket.",
            )


def personal(ref: Ref) -> bool:
    """Whether an address of the web has more in it than a place: a password, or a query, as signed addresses have. Who
    knows it has a right that no list of places tells, and others who may see the place do not."""
    if ref.scheme not in ("http", "https"):
        return False
    url = urlsplit(ref.text)
    return bool(url.query) or "@" in url.netloc


class Tenants:
    """All that are configured. Immutable."""

    def __init__(self, tenants: Iterable[Tenant] = ()) -> None:
        self._tenants = {t.name: t for t in tenants}
        self._who = lru_cache(maxsize=REMEMBERED)(self._matching)

    def who(self, ref: Ref) -> Scope:
        """Those that may see it."""
        return self._who(ref) if self._tenants else NOBODY

    def _matching(self, ref: Ref) -> Scope:
        return frozenset(t.name for t in self if t.sees(ref))

    def gids(self, scope: Scope) -> frozenset[int]:
        """Their groups."""
        return frozenset(self._tenants[name].gid for name in scope)

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants.values())

    def __len__(self) -> int:
        return len(self._tenants)

    def __repr__(self) -> str:
        return f"<Tenants {', '.join(self._tenants) or 'none'}>"


def union(scopes: Iterable[Scope]) -> Scope:
    """Who is in any of them."""
    return NOBODY.union(*scopes)


def covered(wanted: Scope, delivered: Iterable[Scope]) -> bool:
    """Whether bytes that came for refs of the scopes `delivered` may stand for a ref of the scope `wanted`: each who
    may see it may see one of those, and so gets nothing by it that he could not get by that one."""
    return wanted <= union(delivered)
