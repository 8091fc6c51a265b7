"""Which bytes stand for which refs, and who may read them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import NamedTuple

from weightd.core.digest import Digest
from weightd.core.errors import RefSyntax
from weightd.core.refs import Ref, parse_ref
from weightd.core.tenants import NOBODY, Scope, Tenants, union
from weightd.engine.held import Model


class Left(NamedTuple):
    """That the source of `ref` sent `digests` is forgotten; `heirs`, refs by their digests, count as who did."""

    ref: str
    digests: list[Digest]
    heirs: list[tuple[Digest, str]]


class Rights:
    """By what was delivered: for which refs the bytes of a digest came from their source. On the event loop.

    Decided anew by the present configuration at every question: what is remembered are refs, not tenants.
    """

    def __init__(self, tenants: Tenants) -> None:
        self.tenants = tenants
        self._by: dict[Digest, set[str]] = {}
        self._scopes: dict[Digest, Scope] = {}

    def start(self, deliveries: Iterable[tuple[Digest, str]]) -> None:
        """What is recorded."""
        for digest, ref in deliveries:
            self.delivered(digest, ref)

    def delivered(self, digest: Digest, ref: str) -> None:
        """The source of `ref`, by its text, sent these very bytes."""
        if ref:
            self._by.setdefault(digest, set()).add(ref)
            self._scopes.pop(digest, None)

    def forget(self, digests: Iterable[Digest]) -> None:
        """Nobody holds them any more."""
        for digest in digests:
            self._by.pop(digest, None)
            self._scopes.pop(digest, None)

    def left(self, model: Model, others: Iterable[Model], gone: Collection[Digest]) -> Left:
        """What changes when a snapshot is held no more, and `others` still are: a ref that comes to mean something else
        gives no right to what it once named. Who had a right by it to what it holds itself keeps that."""
        others = list(others)
        same = {d for m in others if m.ref.text == model.ref.text for d in m.digests.values()}
        left = set(model.digests.values()) - set(gone) - same
        held = {(d, m.ref) for m in others if self.who(m.ref) for d in left & set(m.digests.values())}
        return Left(model.ref.text, sorted(left), [(d, ref.text) for d, ref in held if self.stand_for(d, ref)])

    def leave(self, left: Left) -> None:
        """It is recorded."""
        for digest in left.digests:
            self._by.get(digest, set()).discard(left.ref)
            self._scopes.pop(digest, None)
        self.start(left.heirs)

    def who(self, ref: Ref) -> Scope:
        """May see it."""
        return self.tenants.who(ref)

    def of(self, digest: Digest) -> Scope:
        """May have the bytes."""
        if not self.tenants:
            return NOBODY
        if (known := self._scopes.get(digest)) is None:
            known = self._scopes[digest] = union(map(self._scope, self._by.get(digest, ())))
        return known

    def _scope(self, ref: str) -> Scope:
        try:
            return self.tenants.who(parse_ref(ref))
        except RefSyntax:
            return NOBODY  # Of a version that read more refs.

    def stand_for(self, digest: Digest, ref: Ref) -> bool:
        """Whether these bytes, which are here, may be used as what `ref` names. See `core.tenants.covered`."""
        return not self.tenants or self.who(ref) <= self.of(digest)

    def entitled(self, model: Model) -> bool:
        """Whether all bytes of a snapshot stand for its ref. Once they do, they do for as long as it is held: it is
        another configuration that ends it, and that takes a start."""
        if not model.entitled:
            model.entitled = all(self.stand_for(d, model.ref) for d in set(model.digests.values()))
        return model.entitled

    def readers(self, model: Model) -> Scope:
        """Tenants that are shown the snapshot's files."""
        who = self.who(model.ref)
        return who if who and self.entitled(model) else NOBODY

    def label(self, ref: Ref) -> str:
        """Under which what was left of a fetch of `ref` is found again: for refs that a tenant may see, only by that
        very ref, as part of the bytes may be of a source that another one cannot reach; "" for all others."""
        return hashlib.sha256(ref.text.encode()).hexdigest()[:32] if self.who(ref) else ""

    def __repr__(self) -> str:
        return f"<Rights to {len(self._by)} blobs, {self.tenants!r}>"
