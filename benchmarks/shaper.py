"""What a shaped path does to a packet, decided purely: dropped, or sent on at a certain time. Times in seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address

import msgspec

TCP, UDP = 6, 17


class Shape(msgspec.Struct, frozen=True):
    """Of one direction. Rates in bytes per second, 0 for no limit; headers count.

    `delay` is added to every packet, `loss` is a probability. `link` is the rate of all connections together; `flow`
    that of each, or what `slow` has for its source address. A packet that would wait in a queue for more than `queue`
    seconds is dropped, as by a router whose buffer is full.
    """

    delay: float = 0.0
    loss: float = 0.0
    link: float = 0.0
    flow: float = 0.0
    slow: Mapping[str, float] = {}
    queue: float = 0.1


class Shaper:
    """`draw` is uniform in [0, 1)."""

    def __init__(self, shape: Shape, draw: Callable[[], float]) -> None:
        self.shape, self._draw = shape, draw
        self._slow = {IPv4Address(address).packed: rate for address, rate in shape.slow.items()}
        self._link_free = 0.0
        self._flow_free: dict[bytes, float] = {}
        self.lost = self.overflowed = 0

    def due(self, packet: memoryview, now: float) -> float | None:
        """When an IPv4 packet comes out at the other end; None when it does not. Call in the order of arrival."""
        shape = self.shape
        if shape.loss and self._draw() < shape.loss:
            self.lost += 1
            return None
        out = now
        if shape.link:
            out = max(out, self._link_free) + len(packet) / shape.link
            if out - now > shape.queue:
                self.overflowed += 1
                return None
        if shape.flow:
            flow, rate = _flow(packet), self._slow.get(bytes(packet[12:16]), shape.flow)
            waited = max(0.0, self._flow_free.get(flow, 0.0) - out)
            if waited > shape.queue:
                self.overflowed += 1
                return None
            out = self._flow_free[flow] = out + waited + len(packet) / rate
        if shape.link:
            self._link_free = max(now, self._link_free) + len(packet) / shape.link
        return out + shape.delay


def _flow(packet: memoryview) -> bytes:
    """Addresses, and the ports of TCP and UDP (RFC 791 §3.1, RFC 9293 §3.1)."""
    header = (packet[0] & 0x0F) * 4
    ports = packet[header : header + 4] if packet[9] in (TCP, UDP) else b""
    return bytes(packet[12:20]) + bytes(ports)
