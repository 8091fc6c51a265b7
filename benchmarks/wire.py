"""A shaped path between two network namespaces: `python -m benchmarks.wire PLAN` (a Plan as JSON), as root.

Each namespace gets a TUN device. What the kernel of one side sends there is read as IP packets, kept for as long as
the shape says, dropped when it says so, and written into the other side's device. So TCP on both ends is the kernel's
own and meets real delay, loss and queues; only the way between is this process. netem would do the same inside the
kernel, where a kernel has it. Without loss, packets are the segments of up to 64 KiB that the kernel hands over before
it cuts them (TSO); with loss they are cut to MTU size first, so that one is lost at a time.

Prints "ready" once it works, and at SIGTERM a Report as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import heapq
import itertools
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time

import msgspec

from benchmarks.dns import Names
from benchmarks.machine import Unable, need
from benchmarks.shaper import Shape, Shaper

DEVICE = "wire0"
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
"""linux/if_tun.h."""
VNET_HEADER = 10
"""Bytes before each packet: struct virtio_net_hdr, what is still to be cut and summed. Passed on as it is."""
MTU = 1500
CONGESTION = "cubic"
"""Linux's default, and so that of most origins; others differ much in what loss costs them. By the route: a namespace
may not choose its default among all."""
MOST = VNET_HEADER + 65535
BATCH = 64
"""Packets read from one side before the other has its turn."""
CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


class Side(msgspec.Struct, frozen=True):
    """A namespace's name, its addresses on the path, and what they reach there, as `ip route` takes it."""

    namespace: str
    addresses: tuple[str, ...]
    route: str


class Plan(msgspec.Struct, frozen=True):
    """`down` shapes what the server sends, `up` what the client sends. `name` resolves to the server's addresses, for
    those who ask 127.0.0.1 in the client's namespace."""

    client: Side
    server: Side
    down: Shape
    up: Shape
    name: str = ""


class Report(msgspec.Struct):
    """Of the server's direction, but `cpu` (seconds of this process). `late` are seconds behind what the shape said, on
    average and at worst: where they are not small, the path was slower than it should have been."""

    packets: int = 0
    bytes: int = 0
    lost: int = 0
    overflowed: int = 0
    refused: int = 0
    late: float = 0.0
    latest: float = 0.0
    cpu: float = 0.0


class Way:
    """One direction: from the TUN device `source` into `sink`."""

    def __init__(self, source: int, sink: int, shape: Shape, seed: int) -> None:
        self.source, self._sink = source, sink
        self.shaper = Shaper(shape, random.Random(seed).random)
        self._queue: list[tuple[float, int, bytes]] = []
        self._number = itertools.count()
        self.report = Report()

    def take(self) -> None:
        """Read what is there."""
        for _ in range(BATCH):
            try:
                data = os.read(self.source, MOST)
            except BlockingIOError:
                return
            now = time.monotonic()
            packet = memoryview(data)[VNET_HEADER:]
            if packet[0] >> 4 != 4:
                continue  # IPv6 neighbours, which nobody here needs.
            due = self.shaper.due(packet, now)
            if due is None:
                continue
            if due <= now:
                self._send(data)
            else:
                heapq.heappush(self._queue, (due, next(self._number), data))

    def send(self) -> float | None:
        """Write what is due; the time of the next, if there is one."""
        while self._queue:
            now = time.monotonic()
            due = self._queue[0][0]
            if due > now:
                return due
            self.report.late += now - due
            self.report.latest = max(self.report.latest, now - due)
            self._send(heapq.heappop(self._queue)[2])
        return None

    def _send(self, data: bytes) -> None:
        self.report.packets += 1
        self.report.bytes += len(data) - VNET_HEADER
        try:
            os.write(self._sink, data)
        except OSError:
            self.report.refused += 1  # As a packet that is lost.


def attach(side: Side, offload: int) -> int:
    """Enter the namespace for good, and make its end of the path. Returns the device's descriptor."""
    namespace = os.open(f"/run/netns/{side.namespace}", os.O_RDONLY)
    if _LIBC.setns(namespace, CLONE_NEWNET):
        raise Unable(f"setns: {os.strerror(ctypes.get_errno())}")
    os.close(namespace)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(device, TUNSETOFFLOAD, offload)
    for address in side.addresses:
        _ip("address", "add", f"{address}/32", "dev", DEVICE)
    _ip("link", "set", "dev", DEVICE, "mtu", str(MTU), "txqueuelen", "20000", "up")
    _ip("route", "add", side.route, "dev", DEVICE, "src", side.addresses[0], "congctl", CONGESTION)
    return device


def _ip(*arguments: str) -> None:
    result = subprocess.run([need("ip", "iproute2"), *arguments], capture_output=True, text=True)
    if result.returncode:
        raise Unable(f"ip {' '.join(arguments)}: {result.stderr.strip()}")


def run(plan: Plan) -> Report:
    """Until SIGTERM."""
    offload = TUN_F_CSUM | (0 if plan.down.loss or plan.up.loss else TUN_F_TSO4)
    server = attach(plan.server, offload)
    client = attach(plan.client, offload)
    ways = [Way(server, client, plan.down, 1), Way(client, server, plan.up, 2)]
    asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asked.bind(("127.0.0.1", 53))
    asked.setblocking(False)
    names = Names(plan.name, plan.server.addresses, random.Random(3).randrange)
    # A signal ends the select below, and what was queued is of no use to anyone any more.
    with contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        gc.disable()
        print("ready", flush=True)
        forward(ways, asked, names)
    report = ways[0].report
    shaper = ways[0].shaper
    report.lost, report.overflowed, report.cpu = shaper.lost, shaper.overflowed, time.process_time()
    report.late /= max(report.packets, 1)
    return report


def forward(ways: list[Way], asked: socket.socket, names: Names) -> None:
    """For ever. select, not epoll: its timeout has microseconds."""
    sources = [*(w.source for w in ways), asked.fileno()]
    while True:
        dues = [due for due in (way.send() for way in ways) if due is not None]
        wait = max(0.0, min(dues) - time.monotonic()) if dues else None
        readable = select.select(sources, [], [], wait)[0]
        for way in ways:
            if way.source in readable:
                way.take()
        if asked.fileno() in readable:
            query, address = asked.recvfrom(512)
            answer = names.answer(query)
            if answer is not None:
                asked.sendto(answer, address)


def main() -> None:
    os.nice(-10)  # The path goes before those who use it: a late packet is a longer path.
    report = run(msgspec.json.decode(sys.argv[1], type=Plan))
    print(msgspec.json.encode(report).decode(), flush=True)


if __name__ == "__main__":
    main()
