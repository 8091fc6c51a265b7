from __future__ import annotations

from weightd.core.progress import FileProgress, Phase, Progress
from weightd.rpc.pace import INTERVAL, Pace


def step(done: int, *files: tuple[str, int], phase: Phase = Phase.FETCHING) -> Progress:
    return Progress(phase, done, 100, files=tuple(FileProgress(path, at, 10) for path, at in files))


def test_the_first_is_sent_and_the_next_within_the_interval_is_not() -> None:
    pace = Pace()
    assert pace.take(step(1), 100.0) == step(1)
    assert pace.take(step(2), 100.0 + INTERVAL / 2) is None
    assert pace.take(step(3), 100.0 + INTERVAL) == step(3)


def test_ten_a_second_at_most() -> None:
    pace = Pace()
    sent = [s for i in range(1000) if (s := pace.take(step(i), i / 1000))]
    assert 10 <= len(sent) <= 12


def test_a_new_phase_is_sent_at_once() -> None:
    pace = Pace()
    pace.take(step(1), 0.0)
    verifying = step(2, phase=Phase.VERIFYING)
    assert pace.take(verifying, 0.001) == verifying


def test_a_file_that_completed_in_a_message_left_out_is_told_with_the_next() -> None:
    pace = Pace()
    pace.take(step(1, ("a", 1), ("b", 0)), 0.0)
    assert pace.take(step(10, ("a", 10), ("b", 1)), 0.01) is None
    assert pace.take(step(15, ("b", 5)), 1.0) == step(15, ("a", 10), ("b", 5))
    assert pace.take(step(16, ("b", 6)), 2.0) == step(16, ("b", 6))


def test_the_last_is_not_lost() -> None:
    pace = Pace()
    pace.take(step(1), 0.0)
    assert pace.rest() is None
    pace.take(step(100), 0.01)
    assert pace.rest() == step(100)
    assert pace.rest() is None
