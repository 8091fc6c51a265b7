"""From configuration to bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightd.core.errors import ConfigError
from weightd.daemon.budgets import available_memory, disk_held, nvme_budget, shm_budget, shm_held
from weightd.daemon.sizes import BudgetSpec

AUTO = BudgetSpec()
G = 1 << 30


@pytest.mark.parametrize(
    ("total", "free", "held", "memory", "budget"),
    [
        (100 * G, 100 * G, 0, 1000 * G, 80 * G),
        (100 * G, 30 * G, 0, 1000 * G, 30 * G),
        (100 * G, 30 * G, 20 * G, 1000 * G, 50 * G),
        (100 * G, 100 * G, 0, 10 * G, 9 * G),
        (100 * G, 0, 0, 1000 * G, 0),
    ],
)
def test_auto_for_shared_memory(total: int, free: int, held: int, memory: int, budget: int) -> None:
    assert shm_budget(AUTO, total=total, free=free, held=held, memory=memory) == budget


def test_auto_for_the_disk_counts_what_is_held() -> None:
    assert nvme_budget(AUTO, total=100 * G, free=10 * G, held=5 * G, directory=Path("/d")) == 14 * G


def test_a_share_and_a_size() -> None:
    assert shm_budget(BudgetSpec(percent=50), total=10 * G, free=0, held=0, memory=0) == 5 * G
    assert nvme_budget(BudgetSpec(size=3), total=10, free=0, held=0, directory=Path("/d")) == 3


def test_more_than_there_is() -> None:
    with pytest.raises(ConfigError, match=r"shm.budget: 2.0 GiB is more than .*/dev/shm holds, 1.0 GiB"):
        shm_budget(BudgetSpec(size=2 * G), total=G, free=G, held=0, memory=G)


def test_what_is_held(tmp_path: Path) -> None:
    for name in ("blobs/sha256/ab/x", "ingest/y", "other/z"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(bytes(8192))
    assert disk_held(tmp_path) == 2 * 8192
    (tmp_path / "weightd-own-1").write_bytes(bytes(4096))
    (tmp_path / "weightd-not-1").write_bytes(bytes(4096))
    assert shm_held("weightd-own-", tmp_path) == 4096


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("max", "5", 1024 * 100), ("60000", "20000", 40000), ("9", "20", 0), (None, "", 102400)],
)
def test_memory_within_a_cgroup(tmp_path: Path, limit: str | None, used: str, expected: int) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 200 kB\nMemAvailable:   100 kB\n")
    (tmp_path / "self/cgroup").write_text("0::/system.slice/weightd.service\n")
    if limit is not None:
        group = tmp_path / "cg/system.slice/weightd.service"
        group.mkdir(parents=True)
        (group / "memory.max").write_text(limit + "\n")
        (group / "memory.current").write_text(used + "\n")
    assert available_memory(tmp_path, tmp_path / "cg") == expected
