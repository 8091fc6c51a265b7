"""A really full disk and a really full /dev/shm, on small file systems in a mount namespace of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine import full, full_many
from tests.engine.rig import UNRECORDED

CASES = [(module.__name__, case) for module in (full, full_many) for case in module.CASES]


def namespaces() -> str:
    """Why mounts cannot be made here, or ""."""
    probe = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True, text=True
    )
    return probe.stderr.strip() if probe.returncode else ""


REASON = namespaces()


@pytest.mark.skipif(bool(REASON), reason=f"needs root to mount small file systems: {REASON}")
@pytest.mark.parametrize(("module", "case"), CASES, ids=[case for _, case in CASES])
def test_full(module: str, case: str, tmp_path: Path) -> None:
    run = subprocess.run(
        ["unshare", "--mount", sys.executable, "-W", "error", "-m", module, case, tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout) == (0, "ok\n"), run.stderr
    # A full disk may have no room for the record either; of that it tells, and of nothing else.
    told = {UNRECORDED} if case.startswith("disk") else set[str]()
    assert {text.partition(":")[0] for text in run.stderr.splitlines()} <= told, run.stderr
