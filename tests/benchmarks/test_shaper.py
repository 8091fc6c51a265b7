from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from benchmarks.dns import Names
from benchmarks.shaper import Shape, Shaper

NO_LOSS: Callable[[], float] = lambda: 0.999  # noqa: E731


def packet(length: int = 1000, *, source: int = 1, port: int = 5000) -> memoryview:
    """IPv4 with TCP, from 10.0.0.`source`."""
    head = struct.pack("!BBHHHBBH4B4B", 0x45, 0, length, 0, 0, 64, 6, 0, 10, 0, 0, source, 10, 0, 0, 99)
    tcp = struct.pack("!HH", 80, port)
    return memoryview((head + tcp).ljust(length, b"\0"))


def test_a_packet_without_a_queue_takes_its_own_time_and_the_delay() -> None:
    shaper = Shaper(Shape(delay=2.0, flow=1000.0), NO_LOSS)
    assert shaper.due(packet(500), 10.0) == 12.5


def test_packets_of_one_connection_wait_for_each_other_and_not_for_those_of_another() -> None:
    shaper = Shaper(Shape(flow=1000.0, queue=60.0), NO_LOSS)
    assert [shaper.due(packet(1000), 0.0) for _ in range(3)] == [1.0, 2.0, 3.0]
    assert shaper.due(packet(1000, port=5001), 0.0) == 1.0
    assert shaper.due(packet(1000), 10.0) == 11.0


def test_all_connections_share_the_link() -> None:
    shaper = Shaper(Shape(link=1000.0, queue=60.0), NO_LOSS)
    assert [shaper.due(packet(1000, port=p), 0.0) for p in (1, 2, 3)] == [1.0, 2.0, 3.0]


def test_a_slow_address_is_slow_alone() -> None:
    shaper = Shaper(Shape(flow=1000.0, slow={"10.0.0.7": 100.0}), NO_LOSS)
    assert shaper.due(packet(1000, source=7), 0.0) == 10.0
    assert shaper.due(packet(1000, source=1), 0.0) == 1.0


@pytest.mark.parametrize("shape", [Shape(flow=1000.0, queue=1.5), Shape(link=1000.0, queue=2.5)])
def test_a_full_queue_drops_and_goes_on_once_it_has_room(shape: Shape) -> None:
    shaper = Shaper(shape, NO_LOSS)
    assert [shaper.due(packet(), 0.0) for _ in range(4)] == [1.0, 2.0, None, None]
    assert shaper.overflowed == 2
    assert shaper.due(packet(), 2.0) == 3.0


def test_loss_is_drawn_for_each_packet_and_costs_no_room_in_the_queues() -> None:
    draws = iter([0.05, 0.2, 0.0])
    shaper = Shaper(Shape(loss=0.1, flow=1000.0), lambda: next(draws))
    assert [shaper.due(packet(), 0.0) for _ in range(3)] == [None, 1.0, None]
    assert shaper.lost == 2


def query(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(p)]) + p.encode() for p in name.split("."))
    return struct.pack("!6H", 77, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


def addresses(answer: bytes | None) -> list[str]:
    assert answer is not None
    count = struct.unpack("!H", answer[6:8])[0]
    return [".".join(map(str, answer[len(answer) - 16 * (count - n) :][12:16])) for n in range(count)]


def test_the_addresses_of_a_name_begin_where_they_are_told() -> None:
    firsts = iter([2, 0])
    names = Names("origin.test", ["10.0.0.1", "10.0.0.2", "10.0.0.3"], lambda count: next(firsts) % count)
    assert addresses(names.answer(query("Origin.test"))) == ["10.0.0.3", "10.0.0.1", "10.0.0.2"]
    assert addresses(names.answer(query("origin.test"))) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_ipv6_and_other_names_have_no_address() -> None:
    names = Names("origin.test", ["10.0.0.1"], lambda _: 0)
    six, other = names.answer(query("origin.test", 28)), names.answer(query("elsewhere.test"))
    assert addresses(six) == addresses(other) == []
    assert [answer[3] & 0x0F for answer in (six, other) if answer] == [0, 3]


@pytest.mark.parametrize("data", [b"", b"\0" * 12, query("a.b")[:-3], b"\0\0\x80" + query("a.b")[3:]])
def test_what_is_no_query_is_not_answered(data: bytes) -> None:
    assert Names("a.b", ["10.0.0.1"], lambda _: 0).answer(data) is None
