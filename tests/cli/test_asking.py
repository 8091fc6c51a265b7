"""`weightd ls`, `status` and `inspect` against a real daemon."""

from __future__ import annotations

import time

import pytest

from tests.cli.conftest import MODEL, Cli
from tests.daemon.process import Served
from tests.support.origin import Origin
from weightd.cli.text import ago, count, duration
from weightd.version import __version__


def test_ls(host: Cli, origin: Origin) -> None:
    ref = origin.url("m/model.safetensors")
    assert host("fetch", ref).code == 0
    lines = host("ls").out.splitlines()
    assert lines[0].split() == [
        *("REF", "REVISION", "STATE", "POLICY", "SIZE", "FILES", "CHECKED", "SHM", "NVME", "LEASES", "USED")
    ]
    (line,) = [x for x in lines if x.startswith(ref)]
    assert "size checked" in line
    assert line.count("resident") == 2
    assert line.split()[2:4] == ["current", "warm"]
    (model,) = [m for m in host("ls", "--json").objects if m["ref"] == ref]
    assert (model["type"], model["size"], model["leases"], model["shm"]) == ("model", len(MODEL), 0, "resident")
    assert (model["current"], model["policy"], model["pinned"]) == (True, "warm", False)
    assert 0 < model["last_verified"] == model["files"][0]["last_verified"] <= time.time()  # type: ignore[operator,index]


def test_status(host: Cli, served: Served) -> None:
    text = host("status").out
    assert text.startswith(f"weightd {__version__}, SERVING, process {served.process.pid}, up ")
    assert str(served.socket) in text
    (status,) = host("status", "--json").objects
    assert (status["type"], status["pid"], status["state"]) == ("status", served.process.pid, "SERVING")
    assert status["state_directory"] == str(served.state_dir)
    assert status["verify"] == {
        "every": 0,
        "oldest": status["verify"]["oldest"],
        "damaged": 0,
        "repaired": 0,
        "lost": 0,
    }
    assert "not verified in the background; oldest verified " in text
    assert set(status["shm"]) == {  # type: ignore[arg-type]
        *("budget", "reserved", "resident", "free", "leased", "pinned", "draining", "kept", "total", "other")
    }


def test_inspect_brings_the_model_and_lists_its_tensors(host: Cli, origin: Origin) -> None:
    ref = origin.url("m/model.safetensors")
    result = host("inspect", ref)
    assert result.code == 0, result.err
    head, _, columns, *rows = result.out.splitlines()
    assert head.startswith(f"{ref} (safetensors, revision ")
    assert "2 tensors in 1 file" in head
    assert columns.split() == ["TENSOR", "DTYPE", "SHAPE", "SIZE", "FILE"]
    assert [r.split() for r in rows] == [
        ["w", "F32", "2×3", "24", "B", "model.safetensors"],
        ["b", "BF16", "scalar", "2", "B", "model.safetensors"],
    ]
    (answer,) = host("inspect", ref, "--json").objects
    assert answer["type"] == "tensors"
    assert [t["name"] for t in answer["tensors"]] == ["w", "b"]  # type: ignore[attr-defined]
    (model,) = [m for m in host("ls", "--json").objects if m["ref"] == ref]
    assert model["shm"] == "resident"


def test_inspect_a_model_without_tensors(host: Cli, origin: Origin) -> None:
    result = host("inspect", origin.url("raw.bin"))
    assert result.code == 0
    assert "0 tensors in 1 file" in result.out
    assert "TENSOR" not in result.out


def test_inspect_what_is_not_there(host: Cli, origin: Origin) -> None:
    result = host("inspect", origin.url("none"), "--json")
    assert result.code == 4
    assert [o["type"] for o in result.objects] == ["error"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3600, "1 h"), (86400 * 3, "3 d")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
    assert ago(1000.0, 1000.0 + seconds) == f"{text} ago"


def test_words() -> None:
    assert ago(0) == "never"
    assert (count(1, "file"), count(0, "file"), count(2, "file")) == ("1 file", "0 files", "2 files")
