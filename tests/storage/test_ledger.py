"""The ledger believes nothing that a crash, a disk or another ledger could have left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightd.core.errors import DiskFull
from weightd.storage.ledger import Ledger, LedgerHeader

HEADER = LedgerHeader(identity="sha256:" + "ab" * 32, size=10 * 4096 + 5, part_size=4096)
RECORD = 28


def checksum(index: int) -> bytes:
    return bytes([index + 1]) * 16


def made(path: Path, *indices: int) -> Ledger:
    ledger = Ledger.create(path, HEADER)
    ledger.append({i: checksum(i) for i in indices})
    return ledger


def read(path: Path) -> dict[int, bytes] | None:
    found = Ledger.read(path)
    return None if found is None else found[1]


def test_records_come_back(tmp_path: Path) -> None:
    made(tmp_path / "l", 3, 0).append({10: checksum(10)})
    found = Ledger.read(tmp_path / "l")
    assert found is not None
    assert found[0].header == HEADER
    assert found[1] == {i: checksum(i) for i in (3, 0, 10)}
    assert (tmp_path / "l").stat().st_mode & 0o777 == 0o600


def test_the_last_record_of_a_part_counts(tmp_path: Path) -> None:
    made(tmp_path / "l", 1).append({1: b"n" * 16})
    assert read(tmp_path / "l") == {1: b"n" * 16}


def test_a_torn_tail_is_cut_and_later_records_hold(tmp_path: Path) -> None:
    path = tmp_path / "l"
    made(path, 0, 1)
    os.truncate(path, path.stat().st_size - 11)
    found = Ledger.read(path)
    assert found is not None
    assert found[1] == {0: checksum(0)}
    found[0].append({5: checksum(5)})
    assert read(path) == {0: checksum(0), 5: checksum(5)}


def test_zeroed_records_cost_their_parts_only(tmp_path: Path) -> None:
    path = tmp_path / "l"
    made(path, 0, 1, 2)
    with path.open("r+b") as file:
        file.seek(-2 * RECORD, os.SEEK_END)
        file.write(bytes(RECORD))
    assert read(path) == {0: checksum(0), 2: checksum(2)}


def test_records_of_another_ledger_are_not_believed(tmp_path: Path) -> None:
    made(tmp_path / "a", 0)
    other = Ledger.create(tmp_path / "b", LedgerHeader("other", HEADER.size, HEADER.part_size))
    other.append({1: checksum(1)})
    with (tmp_path / "a").open("ab") as file:
        file.write((tmp_path / "b").read_bytes()[-RECORD:])
    assert read(tmp_path / "a") == {0: checksum(0)}


def test_an_index_beyond_the_file_is_not_believed(tmp_path: Path) -> None:
    made(tmp_path / "l", 10, 11)
    assert read(tmp_path / "l") == {10: checksum(10)}


@pytest.mark.parametrize("damage", ["missing", "empty", "zeroed", "cut", "directory"])
def test_without_a_header_there_is_no_ledger(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "l"
    if damage == "directory":
        path.mkdir()
    elif damage != "missing":
        made(path, 0)
        size = path.stat().st_size
        os.truncate(path, {"empty": 0, "zeroed": 0, "cut": 30}[damage])
        if damage == "zeroed":
            os.truncate(path, size)
    assert read(path) is None


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 400), bit=st.integers(0, 7), indices=st.sets(st.integers(0, 10), min_size=1))
def test_no_flipped_bit_makes_a_wrong_record(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int, indices: set[int]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "l"
    made(path, *indices)
    raw = bytearray(path.read_bytes())
    raw[at % len(raw)] ^= 1 << bit
    path.write_bytes(raw)
    found = read(path)
    assert found is None or (found.items() <= {(i, checksum(i)) for i in indices} and len(found) >= len(indices) - 1)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    ledger = Ledger(Path("/dev/full"), HEADER)
    with pytest.raises(DiskFull):
        ledger.append({0: checksum(0)})
