"""As much of DNS as the shaped benchmark needs: one name with several addresses, beginning anywhere each time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address

A, IN = 1, 1
ANSWER, NO_SUCH_NAME = 0x8580, 3
"""Response, authoritative, recursion available; RFC 1035 §4.1.1."""
HEADER = struct.Struct("!6H")


class Names:
    """Answers queries for `name` (RFC 1035); every other name does not exist. `first(n)` says which of the n addresses
    leads an answer: the others follow in turn, as from a server that spreads its clients."""

    def __init__(self, name: str, addresses: Sequence[str], first: Callable[[int], int]) -> None:
        self._name = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
        self._addresses = [IPv4Address(a).packed for a in addresses]
        self._first = first

    def answer(self, query: bytes) -> bytes | None:
        """The response, None for what is no query."""
        if len(query) < HEADER.size:
            return None
        number, flags, questions, *_ = HEADER.unpack_from(query)
        end = query.find(b"\0", HEADER.size)
        if flags & 0x8000 or questions != 1 or end < 0 or len(query) < end + 5:
            return None
        name, question = query[HEADER.size : end + 1], query[HEADER.size : end + 5]
        kind, family = struct.unpack("!2H", question[-4:])
        known = name.lower() == self._name
        addresses = self._rotated() if known and (kind, family) == (A, IN) else []
        head = HEADER.pack(number, ANSWER | (0 if known else NO_SUCH_NAME), 1, len(addresses), 0, 0)
        # 0xC00C points to the name of the question; not to be kept (TTL 0).
        return head + question + b"".join(struct.pack("!3HIH", 0xC00C, A, IN, 0, 4) + a for a in addresses)

    def _rotated(self) -> list[bytes]:
        first = self._first(len(self._addresses))
        return self._addresses[first:] + self._addresses[:first]
