"""The files for systemd, checked by systemd's own tools."""

from __future__ import annotations

import configparser
import os
import platform
import pwd
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tmpfs import mounted
from weightd.core import errors
from weightd.daemon.config import DaemonSection
from weightd.storage.segment_files import DirectorySegmentStore

SYSTEMD = Path(__file__).parents[2] / "systemd"


def test_the_unit_is_valid(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # It wants the command to exist; where it is installed is the host's affair.
    text = (SYSTEMD / "weightd.service").read_text().replace("/opt/weightd/bin/weightd", sys.executable)
    (tmp_path / "weightd.service").write_text(text)
    result = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "weightd.service")], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_the_mount_is_valid_and_says_what_the_store_asks_for(tmp_path: Path) -> None:
    text = (SYSTEMD / "run-weightd-shm.mount").read_text()
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read_string(text)
    options = unit["Mount"]["Options"].split(",")
    assert unit["Mount"]["Where"] == "/run/weightd/shm"
    assert {"size=80%%", "mode=0750", "uid=weightd", "gid=weightd", "noswap", "huge=within_size"} <= set(options)
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    (tmp_path / "run-weightd-shm.mount").write_text(text)
    result = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "run-weightd-shm.mount")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_the_mounts_options_are_the_kernels(tmp_path: Path) -> None:
    """Mounted as systemd would, by mount(8), for a user that this host has."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(SYSTEMD / "run-weightd-shm.mount")
    options = unit["Mount"]["Options"].replace("%%", "%").replace("=weightd", "=daemon").replace("80%", "1%")
    if tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (6, 4):
        options = options.replace("noswap,", "")
    with mounted(tmp_path / "shm", options) as directory:
        status = directory.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o750, pwd.getpwnam("daemon").pw_uid)
        os.chown(directory, os.geteuid(), -1)
        store = DirectorySegmentStore(directory, "t")
        assert store._place.huge == "within_size"
        store.close()


def test_the_user_can_be_made() -> None:
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("systemd-sysusers is not installed")
    result = subprocess.run(
        ["systemd-sysusers", "--dry-run", str(SYSTEMD / "weightd.sysusers")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_what_the_daemon_relies_on() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(SYSTEMD / "weightd.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["User"] == "weightd"
    assert service["RemoveIPC"] == "no"
    assert float(service["TimeoutStopSec"]) > DaemonSection().stop_timeout_s
    for key in ("RuntimeDirectory", "StateDirectory", "ConfigurationDirectory"):
        assert service[key] == "weightd"
    lasting = {2, errors.ConfigError.exit_code, errors.AccessDenied.exit_code, errors.AlreadyRunning.exit_code}
    assert {int(c) for c in service["RestartPreventExitStatus"].split()} == lasting
