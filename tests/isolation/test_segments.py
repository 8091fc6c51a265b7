"""Segments as the daemon publishes them, and everybody who may try to alter them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.isolation.maker import CONTENT
from tests.isolation.table import ROWS, WHO, documented
from tests.isolation.users import DAEMON, Become

HARMLESS = ("member", "other")


@dataclass
class Tried:
    """What happened, by row, and the segment that each attempt was made on."""

    results: dict[str, str]
    paths: dict[str, Path]
    before: dict[str, os.stat_result]


@pytest.fixture(scope="module")
def tried(become: Become) -> Iterator[dict[str, Tried]]:
    """Every attempt by everybody, each on a segment of its own."""
    maker = become.start(DAEMON, "-m", "tests.isolation.maker", str(len(ROWS) * len(WHO)))
    assert maker.stdout is not None
    lines = [maker.stdout.readline().strip() for _ in range(len(ROWS) * len(WHO) + 1)]
    pid, paths = lines.pop(), [Path(line) for line in lines]
    try:
        found = {}
        for who, (user, mounts) in WHO.items():
            mine = {row: paths.pop() for row in ROWS}
            before = {row: path.stat() for row, path in mine.items()}
            asked = "".join(f"{ROWS[row].__name__} {path} {pid}\n" for row, path in mine.items())
            out = become.run(user, "-m", "tests.isolation.attempts", mounts=mounts, stdin=asked)
            results = dict(line.split() for line in out.splitlines())
            found[who] = Tried({row: results[ROWS[row].__name__] for row in ROWS}, mine, before)
        yield found
    finally:
        _, err = maker.communicate("", timeout=60)
        for path in paths:
            path.unlink(missing_ok=True)
        for one in found.values():
            for path in one.paths.values():
                path.unlink(missing_ok=True)
    assert maker.returncode == 0, err


def test_every_attempt_is_documented() -> None:
    table = documented()
    assert list(table) == list(WHO)
    assert all(list(column) == list(ROWS) for column in table.values())


@pytest.mark.parametrize("who", WHO)
def test_what_happens_is_what_is_documented(tried: dict[str, Tried], who: str) -> None:
    assert tried[who].results == documented()[who]


@pytest.mark.parametrize("who", HARMLESS)
def test_segments_are_as_they_were(tried: dict[str, Tried], who: str) -> None:
    """Whatever another user tried, in or outside of the group."""
    for row, path in tried[who].paths.items():
        now, before = path.stat(), tried[who].before[row]
        assert path.read_bytes() == CONTENT, row
        assert (now.st_ino, now.st_mode, now.st_uid, now.st_gid) == (
            *(before.st_ino, before.st_mode, before.st_uid, before.st_gid),
        ), row
        assert now.st_mode & 0o7777 == 0o440
        assert (now.st_uid, now.st_gid) == (DAEMON.uid, DAEMON.gid)
        assert now.st_nlink == 1


def test_nothing_is_altered_through_a_read_only_mount(tried: dict[str, Tried]) -> None:
    for who in ("daemon's user, read-only mount", "root, read-only mount"):
        for row, path in tried[who].paths.items():
            assert path.read_bytes() == CONTENT, (who, row)
            assert path.stat().st_mode == tried[who].before[row].st_mode, (who, row)
