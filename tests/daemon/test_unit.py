"""The files for systemd, checked by systemd's own tools."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from weightd.core import errors
from weightd.daemon.config import DaemonSection

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
