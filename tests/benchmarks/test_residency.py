"""`python -m benchmarks.residency --quick` for real: what it says that does not depend on the machine, and that nothing
of it stays."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import SHM, Unable
from benchmarks.residency import __main__ as command
from benchmarks.residency import fio

pytestmark = pytest.mark.skipif(
    not all(shutil.which(c, path="/usr/sbin:/usr/bin") for c in ("nginx", "fio")), reason="needs nginx and fio"
)
RUN = [sys.executable, "-m", "benchmarks.residency", "--quick"]


def check_nothing_left(disk: Path, pid: int) -> None:
    assert list(disk.iterdir()) == []
    assert str(disk) not in Path("/proc/mounts").read_text()
    assert not [p for p in SHM.iterdir() if p.name.endswith(f"-touch-{pid}")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        assert os.fsencode(disk) not in line, f"{process.name} was left: {line!r}"


@pytest.mark.parametrize("only", ["load", "acquire,memory,evict,restart"])
def test_a_quick_run_measures_all_and_leaves_nothing(tmp_path: Path, only: str) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out.json"
    disk.mkdir()
    pages = ["--pages", "2m"] if os.geteuid() == 0 else []
    arguments = [*RUN, "--only", only, "--disk", str(disk), "--json", str(out), *pages]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    found = json.loads(out.read_text())
    assert set(only.split(",")) <= set(found)
    check_load(found["load"]) if only == "load" else check_resident(found)
    check_nothing_left(disk, process.pid)


def check_load(tables: list[dict[str, Any]]) -> None:
    for table in tables:
        assert not [r for r in table["results"] if "left_out" in r]
        assert [r["ours"] for r in table["results"]].count(True) == 1
        # The kernel may have no huge page free, but never gives more than there is.
        assert (0 < table["huge_bytes"] <= table["size"]) if "2 MiB" in table["pages"] else table["huge_bytes"] == 0


def check_resident(found: dict[str, Any]) -> None:
    points = found["acquire"]["points"]
    assert {(p["leases"], p["state"]) for p in points} == {(n, s) for n in (1, 20) for s in ("idle", "while fetching")}
    assert all(len(p["medians"]) == 1 and 0 < p["median"] <= p["p99"] for p in points)
    assert found["memory"]["reached"], "three workers have more than one copy of the model"
    assert found["memory"]["daemon"]["Pss_Shmem"] < found["memory"]["size"]
    assert found["restart"]["requests"] == 0
    assert set(found["restart"]["seconds"]) == {"SIGTERM", "SIGKILL"}
    assert len(found["evict"]["seconds"]["evict"]) == 1


def test_a_run_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*RUN, "--only", "evict", "--disk", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = [process.stdout.readline()]
    while said[-1] and "resident, pages" not in said[-1]:  # The daemon and nginx run.
        said.append(process.stdout.readline())
    assert "resident, pages" in said[-1], "".join(said)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode != 0, "".join(said) + rest
    check_nothing_left(tmp_path, process.pid)


def test_what_needs_more_than_there_is_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for arguments, missing in (
        (["--big", "999999GiB"], "memory"),
        (["--disk", str(tmp_path / "none")], "No such file"),
    ):
        with pytest.raises(Unable, match=missing):
            command.check(command.options(arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "load,unload"])
def test_parts_that_there_are_not_are_named(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="there are load, acquire"):
        command.parse_list(text)


@pytest.mark.parametrize("text", ["", "0", "1,", "-3", "a"])
def test_leases_are_numbers_from_one(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        command.parse_counts(text)


def test_fio_reads_what_is_there_and_says_why_it_cannot(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(4 << 20))
    assert fio.read(file, threads=2, block=1 << 20) > 0
    with pytest.raises(Unable, match="too small"):
        fio.read(file, threads=8, block=1 << 20)
    with pytest.raises(Unable, match="fio failed"):
        fio._run(["fio", "--readonly", "--rw=read", "--name=x", f"--filename={tmp_path / 'none'}", "--size=1m"])
