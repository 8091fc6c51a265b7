"""The daemon, and `weightd fetch --to`, against some of the lies: one line that says what, nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adversary import lies
from tests.adversary.origin import Liar, Lie, honest
from tests.adversary.world import SECRETS, always, secret
from tests.e2e.host import Host, assert_refused, daemon, safetensors
from tests.engine.rig import pattern
from tests.support.origin import Origin

MIB = 1 << 20
DATA = pattern(3 * MIB)
CONFIG = """
[fetch]
part_size = "1MiB"
retries = 1
stall_timeout_s = 1.0
"""

CASES = [
    (lies.PASSING[0], 8, "SourceUnavailable"),
    (lies.ENDLESS[0], 8, "SourceUnavailable"),
    (lies.ENDLESS[2], 8, "SourceUnavailable"),
    (lies.ENDLESS[6], 8, "SourceUnavailable"),
    (lies.SILENT[2], 8, "SourceUnavailable"),
    (lies.TOO_LONG[0], 10, "SizeMismatch"),
    (lies.CHANGED[1], 7, "SourceChanged"),
    (lies.REFUSED[1], 5, "SourceDenied"),
    (lies.GONE[0], 4, "SourceNotFound"),
]
EACH = pytest.mark.parametrize(("lie", "code", "kind"), CASES, ids=repr)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with daemon(config=CONFIG) as host:
        yield host


@pytest.fixture(scope="module")
def good() -> Iterator[str]:
    with Origin({"good.safetensors": safetensors()}) as origin:
        yield origin.url("good.safetensors")


@EACH
def test_the_daemon(host: Host, good: str, lie: Lie, code: int, kind: str) -> None:
    with Liar(DATA) as liar, host.unharmed(good):
        liar.script = always(lie)
        ended = host.cli("fetch", secret(liar.url("model.bin")), "--json")
        assert_refused(ended, code, kind, liar.url("model.bin"))
        assert not any(s in ended.out + ended.err + host.text() for s in SECRETS)


@EACH
def test_without_a_daemon(tmp_path: Path, lie: Lie, code: int, kind: str) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    with Liar(DATA) as liar:
        liar.script = always(lie)
        ref = secret(liar.url("model.bin"))
        command = [*(sys.executable, "-m", "weightd", "fetch", ref), "--to", "out", "--config", "config.toml"]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert ended.returncode == code, ended.stderr
        *progress, last = ended.stderr.splitlines()
        assert last.startswith("weightd: error: ")
        assert all(line.startswith(liar.url("model.bin")) for line in progress)
        assert not any(s in ended.stdout + ended.stderr for s in SECRETS)
        assert not (tmp_path / "out/model.bin").exists()
        liar.script = honest
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.bin"]
        assert (tmp_path / "out/model.bin").read_bytes() == DATA
