"""`weightd fetch`, with and without a daemon."""

from __future__ import annotations

import hashlib
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import MODEL, Cli
from tests.daemon.process import Served
from tests.support.origin import Fault, Origin
from weightd.cli.progress import FileCount, LineReporter
from weightd.core.progress import FileProgress, Phase, Progress

SHA256 = hashlib.sha256(MODEL).hexdigest()


def test_into_a_directory(cli: Cli, origin: Origin, tmp_path: Path) -> None:
    result = cli("fetch", origin.url("m/model.safetensors"), "--to", tmp_path / "d", "--sha256", SHA256)
    assert result.code == 0, result.err
    assert (tmp_path / "d" / "model.safetensors").read_bytes() == MODEL
    assert os.listdir(tmp_path / "d") == ["model.safetensors"]
    assert result.out.startswith(f"{origin.url('m/model.safetensors')}: 1 file, ")
    assert "sha256 verified" in result.out
    assert result.err.splitlines()[0].endswith(": resolving")


def test_without_a_digest_nothing_is_called_verified(cli: Cli, origin: Origin, tmp_path: Path) -> None:
    result = cli("fetch", origin.url("raw.bin"), "--to", tmp_path)
    assert "size checked" in result.out
    assert "verified" not in result.out


def test_as_json_into_a_directory(cli: Cli, origin: Origin, tmp_path: Path) -> None:
    result = cli("fetch", origin.url("m/model.safetensors"), "--to", tmp_path, "--json")
    *progress, model = result.objects
    assert result.err == ""
    assert {p["type"] for p in progress} == {"progress"}
    assert {"phase", "bytes_done", "bytes_total", "bytes_per_second", "seconds_left", "files"} < set(progress[-1])
    assert progress[-1]["bytes_done"] == progress[-1]["bytes_total"] == len(MODEL)
    assert model["type"] == "model"
    assert model["directory"] == str(tmp_path)
    assert model["verification"] == "size"
    (file,) = model["files"]  # type: ignore[misc]
    assert file["digest"] == f"sha256:{SHA256}"


def test_several_refs(cli: Cli, origin: Origin, tmp_path: Path) -> None:
    origin.put("n/config.json", b"[]")
    both = origin.url("m/config.json"), origin.url("n/config.json")
    result = cli("fetch", *both, "--to", tmp_path)
    assert result.code == 3
    assert "has a file of that name too" in result.err
    assert os.listdir(tmp_path) == []
    assert cli("fetch", both[0], origin.url("raw.bin"), "--to", tmp_path).code == 0
    assert sorted(os.listdir(tmp_path)) == ["config.json", "raw.bin"]


def test_a_named_model(cli: Cli, origin: Origin, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[models.tiny]\nsource = "{origin.url("m/")}"\nfiles = ["config.json"]\n')
    result = cli("fetch", "tiny", "--to", tmp_path / "d", "--config", config)
    assert result.code == 0, result.err
    assert (tmp_path / "d" / "config.json").read_bytes() == b"{}"
    assert cli("fetch", "other", "--to", tmp_path / "d", "--config", config).code == 4


FAULTS: dict[str, tuple[Fault | None, tuple[str, ...], int, str]] = {
    "404": (Fault(status=404), (), 4, "SourceNotFound"),
    "403": (Fault(status=403), (), 5, "SourceDenied"),
    "digest": (None, ("--sha256", "0" * 64), 10, "DigestMismatch"),
    "digest syntax": (None, ("--sha256", "12"), 3, "DigestSyntax"),
}


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("way", ["directory", "daemon"])
def test_a_fault_has_its_code_and_leaves_nothing(
    cli: Cli, served: Served, origin: Origin, tmp_path: Path, case: str, way: str
) -> None:
    fault, options, code, kind = FAULTS[case]
    if fault is not None:
        origin.fault("raw.bin", fault)
    ref = origin.url("raw.bin")
    to = ("--to", tmp_path / "d") if way == "directory" else ()
    before = served.segments()
    result = cli("--socket", served.socket, "fetch", ref, *to, *options, "--json")
    assert result.code == code
    error = result.objects[-1]
    assert (error["type"], error["kind"], error["exit_code"]) == ("error", kind, code)
    assert result.err.splitlines()[-1].startswith("weightd: error: ")
    if case != "digest syntax":
        assert error["ref"] == ref
        assert ref in result.err
    assert not (tmp_path / "d").exists()
    assert served.segments() == before


def test_a_fault_of_the_configuration(cli: Cli, origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[fetch]\nretrys = 1\n")
    result = cli("fetch", origin.url("raw.bin"), "--to", tmp_path / "d", "--config", tmp_path / "c.toml")
    assert result.code == 3
    assert "c.toml, line 2: fetch.retrys: unknown key" in result.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("way", ["directory", "daemon"])
def test_a_signal_takes_back_what_was_begun(
    served: Served, origin: Origin, tmp_path: Path, number: signal.Signals, code: int, way: str
) -> None:
    origin.fault("raw.bin", Fault(stall_after=1 << 16))
    to = ["--to", str(tmp_path / "d")] if way == "directory" else []
    with subprocess.Popen(
        [sys.executable, "-m", "weightd", "--socket", str(served.socket), "fetch", origin.url("raw.bin"), *to],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            origin.wait_for(2)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("weightd: error: ")
    assert not (tmp_path / "d").exists()


def test_through_the_daemon(host: Cli, served: Served, origin: Origin) -> None:
    result = host("fetch", origin.url("m/model.safetensors"), "--sha256", SHA256)
    assert result.code == 0, result.err
    assert "1 file" in result.out
    assert "sha256 verified" in result.out
    assert str(served.state_dir) in result.out
    *_, model = host("fetch", origin.url("raw.bin"), "--tier", "nvme", "--json").objects
    assert (model["type"], model["shm"], model["nvme"]) == ("model", "absent", "resident")


def test_bars_on_a_terminal(served: Served, origin: Origin) -> None:
    parent, child = pty.openpty()
    result = subprocess.run(
        [sys.executable, "-m", "weightd", "--socket", str(served.socket), "fetch", origin.url("raw.bin")],
        stdout=subprocess.PIPE,
        stderr=child,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
        check=False,
        timeout=60,
    )
    os.close(child)
    shown = b""
    # A pty says EIO at its end.
    try:
        while block := os.read(parent, 65536):
            shown += block
    except OSError:
        pass
    os.close(parent)
    assert result.returncode == 0
    # The cursor is shown again, and the result is on stdout alone.
    assert b"\x1b[?25h" in shown
    assert b"1 file" in result.stdout


def moved(done: int, total: int, *files: tuple[str, int, int]) -> Progress:
    parts = tuple(FileProgress(*f) for f in files)
    return Progress(Phase.FETCHING, done, total, 1024.0 * 1024, 65.0, parts)


def test_lines_come_at_most_every_two_seconds(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("weightd.cli.progress.time.monotonic", lambda: now[0])
    with LineReporter() as lines:
        for step in range(41):
            now[0] = 100.0 + step / 10
            lines.update("r", moved(step << 20, 100 << 20, ("a", step, 100), ("b", 5, 5)))
            lines.update("s", moved(0, 0))
    shown = capfd.readouterr().err.splitlines()
    assert len(shown) == 6
    assert shown[0] == "r: fetching, 0 B of 100.0 MiB (0 %), 1 of 2 files, 1.0 MiB/s, 1 min left"
    assert shown[2] == "r: fetching, 20.0 MiB of 100.0 MiB (20 %), 1 of 2 files, 1.0 MiB/s, 1 min left"


def test_files_are_counted_though_messages_leave_them_out() -> None:
    count = FileCount()
    assert count.take(moved(0, 3, ("a", 1, 1), ("b", 0, 1), ("c", 0, 1))) == (1, 3)
    assert count.take(moved(0, 3, ("b", 0, 1), ("c", 1, 1))) == (2, 3)
    assert count.take(moved(0, 3, ("b", 1, 1))) == (3, 3)
    assert count.take(moved(0, 3)) == (3, 3)
