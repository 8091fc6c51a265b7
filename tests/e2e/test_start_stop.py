"""What stops a start, what a client sees of a daemon that is gone, and what a restart remembers."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.host import Ended, assert_refused, daemon, safetensors, weightd
from tests.support.origin import Origin
from weightd import Client
from weightd.core.errors import DaemonUnavailable

CONFIGS = [
    ("unknown key", "[shm]\nbudget = '1GiB'\nbugdet = 1\n", ("line 3", "shm.bugdet")),
    ("unknown section", "[disk]\nbudget = 1\n", ("line 1", "disk")),
    ("wrong type", "[fetch]\nreceivers = 'four'\n", ("line 2", "fetch.receivers")),
    ("out of range", "[fetch]\nreceivers = 0\n", ("line 2", "fetch.receivers")),
    ("not TOML", "[fetch\n", ("line 1",)),
    ("climbing name", "[models.m]\nsource = 'http://h/'\nfiles = ['../x.safetensors']\n", ("'m'", "../x.safetensors")),
    ("absolute name", "[models.m]\nsource = 'http://h/'\nfiles = ['/etc/x']\n", ("'m'", "/etc/x")),
]
MODELS_JSON = [
    ("climbing", {"m": {"source": "http://h/", "files": ["a/../../x"]}}, ("'m'", "a/../../x")),
    ("unknown key", {"m": {"source": "http://h/", "shape": 1}}, ("shape",)),
    ("another name", {"m": {"source": "n"}}, ("'m'", "source")),
]


def refused_start(config: Path, state: Path) -> Ended:
    ended = weightd("serve", "--config", config, "--state-dir", state, "--socket", state.parent / "w.sock")
    assert (ended.code, ended.out) == (3, ""), ended
    assert len(ended.err.splitlines()) == 1, ended.err
    assert ended.err.startswith("weightd: error: "), ended.err
    assert not state.exists()
    return ended


@pytest.mark.parametrize(("text", "words"), [c[1:] for c in CONFIGS], ids=[c[0] for c in CONFIGS])
def test_a_configuration_that_is_wrong(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(text)
    ended = refused_start(config, tmp_path / "state")
    assert all(word in ended.err for word in (str(config), *words)), ended.err


@pytest.mark.parametrize(("models", "words"), [c[1:] for c in MODELS_JSON], ids=[c[0] for c in MODELS_JSON])
def test_a_models_json_that_is_wrong(models: dict[str, object], words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('models = "models.json"\n')
    (tmp_path / "models.json").write_text(json.dumps({"models": models}))
    ended = refused_start(tmp_path / "config.toml", tmp_path / "state")
    assert all(word in ended.err for word in ("models.json", *words)), ended.err


def test_a_second_daemon_on_one_state_directory_names_the_first() -> None:
    with daemon() as host:
        ended = weightd("serve", "--state-dir", host.state_dir, "--socket", host.home / "other.sock")
        assert ended.code == 6, ended
        assert "Traceback" not in ended.err
        assert str(host.state_dir) in ended.err
        assert re.search(rf"\b{host.process.pid}\b", ended.err), ended.err
        assert not (host.home / "other.sock").exists()
        assert host.status()["pid"] == host.process.pid


def test_a_dead_daemon(origin: Origin, good: str) -> None:
    """Killed, its socket still there: every command says so; a lease's tensors outlive it; nothing starts by itself."""
    with daemon() as host:
        with Client(host.socket) as client, client.acquire(good) as lease:
            tensor = lease["t"]
            before = tensor.copy()
            host.stop(signal.SIGKILL)
            np.testing.assert_array_equal(tensor, before)
            with pytest.raises(DaemonUnavailable, match=re.escape(str(host.socket))):
                client.models()
        for args in (("fetch", good), ("ls",), ("status",), ("inspect", good)):
            assert_refused(host.cli(*args, "--json"), 8, "DaemonUnavailable", str(host.socket))
        doctor = host.cli("doctor", "--json")
        assert doctor.code != 0
        assert "Traceback" not in doctor.err
        assert str(host.socket) in doctor.out


def test_no_daemon_at_all(tmp_path: Path) -> None:
    missing = tmp_path / "none.sock"
    assert_refused(weightd("ls", "--json", socket=missing), 8, "DaemonUnavailable", str(missing), "weightd serve")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_after_a_restart_a_model_on_disk_needs_no_origin(ending: signal.Signals) -> None:
    data = safetensors(2 << 20, b"kept")
    with daemon() as first:
        with Origin({"kept.safetensors": data}) as origin:
            ref = origin.url("kept.safetensors")
            first.fetch(ref)
        assert first.stop(ending) == (0 if ending == signal.SIGTERM else -ending)
        first.start_again()
        held = first.held()
        with Client(first.socket) as client, client.acquire(ref) as lease:
            assert lease["t"].tobytes() == data[-(2 << 20) :]
            assert Path(lease.path, "kept.safetensors").read_bytes() == data
        assert {n for n in first.held() - held if os.sep in n} == set()
