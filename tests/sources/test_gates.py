"""Readers of one origin share its gate: no slot is lost, nobody waits who was aborted, a refusal counts for all."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from weightd.core.ranges import asked_to_wait
from weightd.sources import gates
from weightd.sources.gates import Gate, Gates
from weightd.sources.urls import Origin


def never() -> bool:
    return False


def test_no_more_than_the_limit_at_a_time() -> None:
    gate, lock, most = Gate(3), threading.Lock(), [0]

    def one() -> None:
        for _ in range(50):
            assert gate.enter(never)
            with lock:
                most[0] = max(most[0], gate.running)
            gate.moved(1000)
            gate.leave()

    with ThreadPoolExecutor(12) as pool:
        for future in [pool.submit(one) for _ in range(12)]:
            future.result()
    assert (most[0] <= 3, gate.running) == (True, 0)


def test_one_that_was_aborted_does_not_wait() -> None:
    gate, aborted = Gate(1), threading.Event()
    gate.enter(never)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gate.enter, aborted.is_set)
        aborted.set()
        gate.wake()
        assert waiting.result(10) is False
    gate.leave()
    assert gate.running == 0


def test_a_refusal_holds_up_all() -> None:
    gate = Gate(4)
    gate.throttled(0.3)
    assert 0 < gate.delay() <= 0.3
    began = time.monotonic()
    assert gate.enter(never)
    assert time.monotonic() - began >= 0.25


def test_nothing_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "PATIENCE_S", 0.3)
    gate = Gate(1)
    assert gate.enter(never)
    assert gate.enter(never)
    assert gate.running == 2


def test_one_gate_for_each_origin() -> None:
    found, a, b = Gates(4), Origin("http", "a", 80), Origin("https", "a", 443)
    assert found.of(a) is found.of(Origin("http", "a", 80)) is not found.of(b)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "3600"}, 30),
        ({"retry-after": "soon", "ratelimit-remaining": "0", "ratelimit-reset": "5"}, 0),
        ({"ratelimit": '"default";r=0;t=12'}, 12),
        ({"ratelimit": '"default";r=3;t=12'}, 0),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "5"}, 5),
        ({"ratelimit-remaining": "1", "ratelimit-reset": "5"}, 0),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "-1"}, 0),
        ({}, 0),
    ],
)
def test_how_long_an_origin_asks_to_wait(headers: dict[str, str], seconds: float) -> None:
    assert asked_to_wait(headers, 0.0) == seconds
