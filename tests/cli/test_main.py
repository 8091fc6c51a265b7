"""Ends of the command: exit codes, one line on stderr, an object for programs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.cli.conftest import Cli
from weightd.cli import main
from weightd.cli.stop import Terminated, sigterm_raises
from weightd.core import errors
from weightd.version import __version__


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").out == f"weightd {__version__}\n"
    text = cli("--help").out
    for name, about in main.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(about)}", text, re.M)
        command = cli(name, "--help")
        assert command.code == 0
        assert command.out.startswith(f"Usage: weightd {name}")


def test_every_family_of_errors_has_its_documented_exit_code(cli: Cli) -> None:
    text = cli("--help").out
    codes = [cls.exit_code for cls in errors.WeightdError.__subclasses__()]
    assert len(set(codes)) == len(codes)
    for code in [0, 1, 2, 130, *codes]:
        assert re.search(rf"(^|  ) *{code}  \w", text, re.M), code


def test_without_a_command_the_help_is_shown(cli: Cli) -> None:
    result = cli()
    assert (result.code, result.out) == (2, "")
    assert "Exit codes:" in result.err


USAGE = {
    "no such command": ("frob",),
    "no such option": ("ls", "--frob"),
    "no ref": ("fetch",),
    "no ref, json": ("fetch", "--json"),
    "sha256 of two": ("fetch", "a", "b", "--sha256", "0" * 64),
    "tier with to": ("fetch", "a", "--to", "d", "--tier", "shm"),
    "config without to": ("fetch", "a", "--config", "c"),
    "log level": ("serve", "--log-level", "loud"),
    "evict nothing": ("evict", "--json"),
    "evict all and one": ("evict", "--all", "a"),
    "no time between": ("top", "--interval", "0"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_ends_with_2(cli: Cli, case: str) -> None:
    result = cli(*USAGE[case])
    assert result.code == 2
    assert result.err.startswith("Usage: weightd")
    assert result.err.splitlines()[-1].startswith("weightd: error: ")
    if "--json" in USAGE[case]:
        assert result.objects[-1]["kind"] == "UsageError"
        assert result.objects[-1]["exit_code"] == 2
    else:
        assert result.out == ""


REFS = {"s3://b/x": 3, "ftp://h/x": 3, "not a ref": 3, "https://": 3}


@pytest.mark.parametrize("ref", REFS)
@pytest.mark.parametrize("command", ["fetch", "load", "inspect", "pin", "unpin", "evict", "rm"])
def test_a_bad_ref_needs_no_daemon_to_be_refused(cli: Cli, command: str, ref: str) -> None:
    result = cli("--socket", "/nonexistent/w.sock", command, ref, "--json")
    assert result.code == 3
    assert len(result.err.splitlines()) == 1
    (error,) = result.objects
    assert error["type"] == "error"
    assert error["kind"] == "RefSyntax"
    assert error["remedy"]


@pytest.mark.parametrize(
    "command",
    [
        *([name] for name in ("ls", "status", "leases", "watch")),
        *([name, "https://h/x"] for name in ("fetch", "load", "inspect", "pin", "unpin", "evict", "rm", "leases")),
        ["evict", "--all"],
    ],
)
def test_without_a_daemon(cli: Cli, tmp_path: Path, command: list[str]) -> None:
    result = cli("--socket", tmp_path / "w.sock", *command, "--json")
    assert result.code == errors.DaemonUnavailable.exit_code == 8
    line = result.err.splitlines()[-1]
    assert line.startswith("weightd: error: no daemon: the socket does not exist")
    assert "weightd serve" in line
    assert result.objects[-1]["kind"] == "DaemonUnavailable"
    assert result.objects[-1]["file"] == str(tmp_path / "w.sock")


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "weightd: error: interrupted"),
        (Terminated(), 143, "weightd: error: ended by SIGTERM"),
        (errors.BudgetExceeded("full", ref="r", remedy="Buy\nmore."), 9, "weightd: error: full (r). Buy more."),
        (RuntimeError("odd"), 1, "weightd: error: internal error: RuntimeError: odd. This is a bug in weightd"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_every_end_has_its_code(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], raised: BaseException, code: int, line: str
) -> None:
    @click.command()
    def broken() -> None:
        raise raised

    monkeypatch.setattr(main.Lazy, "get_command", lambda *_: broken)
    monkeypatch.setattr(main.os, "dup2", lambda *_: 1)
    assert main.run(["ls"]) == code
    err = capfd.readouterr().err
    assert err.startswith(line)
    assert len(err.splitlines()) == bool(line)


def test_debug_shows_where_a_bug_is(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(main.Lazy, "get_command", lambda *_: broken)
    monkeypatch.setenv(main.DEBUG, "1")
    with pytest.raises(RuntimeError):
        main.run(["ls"])


def test_sigterm_is_an_exception_only_inside() -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), sigterm_raises():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


def test_asking_the_daemon_imports_little() -> None:
    code = """
import sys
from weightd.cli.main import run
for command in (["ls"], ["status"], ["leases"], ["watch"], ["pin", "x"], ["evict", "x"], ["rm", "x"]):
    assert run(["--socket", "/nonexistent/w.sock", *command]) == 8
heavy = {"aiohttp", "aiobotocore", "huggingface_hub", "torch", "numpy", "uvloop", "xxhash", "rich", "sqlite3"}
print(sorted(heavy & set(sys.modules)))
"""
    result = python(code)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize("arguments", [["serve"], ["fetch", "https://h/x", "--to", "d"]])
def test_without_the_daemons_libraries(arguments: list[str]) -> None:
    code = f"""
import sys
sys.modules["aiohttp"] = sys.modules["uvloop"] = None
from weightd.cli.main import run
sys.exit(run({arguments!r}))
"""
    result = python(code)
    assert result.returncode == 6
    assert result.stderr.startswith("weightd: error: weightd ")
    assert "needs libraries that are not installed: aiohttp, uvloop" in result.stderr
    assert "pip install 'weightd[daemon]'" in result.stderr


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "weightd", "doctor", "--state-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141
