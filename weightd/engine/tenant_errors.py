"""What a tenant is told of an error: of its own ref and source everything, of anybody else nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from weightd.core import errors as e

_NOT_HELD: Final = "Fetch it first, by a ref that this socket serves."
"""In place of a name that may be meant, which may be of a model of others."""
_OF_ITS_REF: Final = (e.InvalidArgument, e.NotFound, e.SourceChanged, e.Unavailable, e.Corruption, e.TooSlow)
"""Families whose texts are about what was asked for, and where it comes from."""
_TEXTS: Final[dict[type[e.WeightdError], tuple[str, str]]] = {
    e.ModelLeased: ("workers hold leases on it", "End those workers first."),
    e.ModelPinned: ("it is pinned", "Unpin it first, or ask whoever runs the daemon."),
    e.ModelBusy: ("something under way needs it", "Try again when that has ended."),
    e.Exhausted: ("this host has no room for it now", "End a lease, use a smaller model, or ask whoever runs it."),
    e.WeightdError: ("the daemon could not do it", "Ask whoever runs the daemon, whose log says more."),
}
"""Of all others, as they may name other refs, holders and files: what happened, and what to do."""


def told(error: e.WeightdError) -> e.WeightdError:
    """The same class, with a text for tenants."""
    if isinstance(error, e.ModelNotFound):
        return type(error)(error.message, remedy=_NOT_HELD)
    if isinstance(error, _OF_ITS_REF) or (isinstance(error, e.AccessDenied) and type(error) is not e.AccessDenied):
        return error
    kind = type(error)
    message, remedy = next(_TEXTS[c] for c in kind.__mro__ if c in _TEXTS)
    return kind(message, remedy=remedy)


@contextmanager
def telling(ref: str = "") -> Iterator[None]:
    """Errors that leave this say what a tenant may know, of its own `ref` where they are of one."""
    try:
        yield
    except e.WeightdError as error:
        found = told(error)
        if found is error:
            raise
        raise found.about(ref=ref) from None
