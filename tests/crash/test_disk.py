"""The disk becomes read-only in the middle of a fetch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.disk import CASES
from tests.engine.rig import UNRECORDED

PROBE = (
    "truncate -s 8M {0}/probe && mkfs.ext4 -q {0}/probe && mkdir {0}/m && mount -o loop {0}/probe {0}/m"
    " && test -e /sys/fs/ext4/$(basename $(findmnt -no SOURCE {0}/m))/trigger_fs_error"
)
"""Ends with the namespace that it runs in."""


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> None:
    script = PROBE.format(tmp_path_factory.mktemp("probe"))
    probe = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"needs root, a loop device and mkfs.ext4: {probe.stderr.strip()}")


@pytest.mark.parametrize("case", CASES)
def test_read_only_in_mid_fetch(case: str, tmp_path: Path, ext4: None) -> None:
    run = subprocess.run(
        ["unshare", "--mount", sys.executable, "-W", "error", "-m", "tests.crash.disk", case, tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (run.returncode, run.stdout) == (0, "ok\n"), run.stderr
    # Nothing else is logged: an engine tells once what it could not record.
    told = run.stderr.splitlines()
    assert [line.partition(":")[0] for line in told] == [UNRECORDED] * (case != "export"), run.stderr
