"""Configuration: every fault names its key and line."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from weightd.core.errors import ConfigError
from weightd.core.period import parse_period
from weightd.daemon import config as config_module
from weightd.daemon import sections as package
from weightd.daemon.config import Config, Overrides, load_config
from weightd.daemon.config_reader import Reader
from weightd.daemon.sizes import BudgetSpec, parse_budget, parse_size
from weightd.daemon.toml import line_of

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"


def read(tmp_path: Path, text: str, overrides: Overrides | None = None) -> Config:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return load_config(file, env={}, uid=0, overrides=overrides)


FAULTS = {
    "unknown section": ("[daemon]\n[shmm]\n", "line 2: shmm: unknown key"),
    "unknown key": ('[shm]\nbudget = "auto"\nbudgets = 1\n', "line 3: shm.budgets: unknown key"),
    "unknown key in models": ('[models.a]\nsource = "https://h/f"\nurl = 1\n', "line 3: models.a.url: unknown key"),
    "wrong type": ('[fetch]\n\nreceivers = "four"\n', "line 3: fetch.receivers: Expected int, got str"),
    "float for int": ("[fetch]\nretries = 1.5\n", "line 2: fetch.retries: Expected int, got float"),
    "section is no table": ('shm = "auto"\n', "line 1: shm: must be a table"),
    "dotted key": ("fetch.retries = true\n", "line 1: fetch.retries: Expected int, got bool"),
    "size without sense": ('[shm]\nbudget = "lots"\n', "line 2: shm.budget: 'lots' is not a size"),
    "unit without sense": ('[nvme]\nbudget = "4 QiB"\n', "line 2: nvme.budget: '4 QiB' is not a size"),
    "zero": ("[nvme]\nbudget = 0\n", "line 2: nvme.budget: 0 is out of range"),
    "over 100 %": ('[shm]\nbudget = "101%"\n', "line 2: shm.budget: '101%' is out of range"),
    "part not aligned": ("[fetch]\npart_size = 1048577\n", "line 2: fetch.part_size: 1048577: a part is"),
    "part too small": ('[fetch]\npart_size = "4KiB"\n', "line 2: fetch.part_size: '4KiB': a part is"),
    "no receivers": ("[fetch]\nreceivers = 0\n", "line 2: fetch.receivers: 0 is out of range"),
    "stall": ("[fetch]\nstall_timeout_s = -1\n", "line 2: fetch.stall_timeout_s: -1 is out of range"),
    "endpoint without host": ('[hf]\nendpoint = "huggingface.co"\n', "line 2: hf.endpoint: not a web address"),
    "endpoint with password": ('[hf]\nendpoint = "https://u:p@h"\n', "line 2: hf.endpoint: not a web address"),
    "token in the file": ('[hf]\ntoken = "hf_x"\n', "line 2: hf.token: no secret may stand in this file"),
    "offline without sense": ('[hf]\noffline = "no"\n', "line 2: hf.offline: Invalid"),
    "not a number": ("[fetch]\nstall_timeout_s = nan\n", "line 2: fetch.stall_timeout_s: nan is out of range"),
    "period without unit": ('[verify]\nevery = "7"\n', "line 2: verify.every: '7' is not a period"),
    "period without sense": ('[verify]\nevery = "often"\n', "line 2: verify.every: 'often' is not a period"),
    "period of months": ('[verify]\n\nevery = "1M2"\n', "line 3: verify.every: '1M2' is not a period"),
    "period too short": ('[verify]\nevery = "0.5s"\n', "line 2: verify.every: '0.5s' is out of range"),
    "period as number": ("[verify]\nevery = 7\n", "line 2: verify.every: Expected str, got int"),
    "snapshots without sense": ("[snapshots]\n\nkeep = -1\n", "line 3: snapshots.keep: -1 is out of range"),
    "allow without sense": (
        '[sources]\nallow = ["https://h/", "ftp://h/"]\n',
        "line 2: sources.allow: 'ftp://h/': a pattern begins with https://",
    ),
    "allow that climbs": (
        '[sources]\nallow = ["https://h/a/../b/"]\n',
        "sources.allow: 'https://h/a/../b/' can",
    ),
    "allow is no list": ('[sources]\nallow = "*"\n', "line 2: sources.allow: Expected array, got str"),
    "rate": ('[verify]\nmax_rate = "1KiB"\n', "line 2: verify.max_rate: '1KiB' is out of range"),
    "unknown key of verify": ('[verify]\nevry = "7d"\n', "line 2: verify.evry: unknown key"),
    "log level": ('[daemon]\nlog_level = "loud"\n', "line 2: daemon.log_level: Invalid enum value 'loud'"),
    "mode": ('[daemon]\nsocket_mode = "rw"\n', "line 2: daemon.socket_mode: 'rw' is not a mode"),
    "group": ('[daemon]\nsocket_group = "no-such-group"\n', "line 2: daemon.socket_group: there is no group"),
    "not TOML": ("[shm\n", "is not valid TOML"),
    "twice": ("[shm]\n[shm]\n", "is not valid TOML"),
    "model without source": ("[models.a]\nfiles = []\n", "line 1: models.a: Object missing required field source"),
    "model climbs": ('[models.a]\nsource = "https://h/d/"\nfiles = ["../x"]\n', "line 1: model 'a': a file name"),
    "model digest": ('[models.a]\nsource = "https://h/f"\nsha256 = "12"\n', "line 1: model 'a': not a SHA-256"),
    "models.json missing": ('models = "none.json"\n', "line 1: models: "),
    "models wrong": ("models = 3\n", "line 1: models: must be the path"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_names_its_key_and_line(tmp_path: Path, case: str) -> None:
    text, expected = FAULTS[case]
    with pytest.raises(ConfigError) as e:
        read(tmp_path, text)
    assert expected in str(e.value)
    assert str(tmp_path / "config.toml") in e.value.message
    assert e.value.exit_code == 3


def test_a_missing_or_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "none.toml", env={}, uid=0)
    (tmp_path / "latin.toml").write_bytes(b'[daemon]\nsocket = "\xe9"\n')
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.toml", env={}, uid=0)


def test_a_fault_of_the_command_line_names_no_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"command line: shm.budget: 'much' is not a size"):
        read(tmp_path, '[shm]\nbudget = "auto"\n', Overrides(shm_budget="much"))


def test_the_example_holds_the_defaults() -> None:
    example = load_config(EXAMPLE, env={}, uid=0)
    assert msgspec.structs.replace(example, file=None) == load_config(None, env={"HOME": "/"}, uid=0)


def sections() -> Iterator[type[msgspec.Struct]]:
    """Every struct of the configuration as it is written."""
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    for module in (config_module, *modules):
        yield from (kind for name, kind in vars(module).items() if name.endswith("Section"))


def test_the_example_names_every_key() -> None:
    text = EXAMPLE.read_text()
    found = list(sections())
    assert {"DaemonSection", "ShmSection", "NvmeSection", "FetchSection", "HttpSection"} <= {
        kind.__name__ for kind in found
    }
    for kind in found:
        for field in msgspec.structs.fields(kind):
            assert f"{field.name} = " in text, f"{kind.__name__}.{field.name}"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    size: int = 0


def test_tables_of_an_array_are_told_apart() -> None:
    def entries(text: str) -> list[Entry]:
        return Reader(text, "c.toml", Path("/")).tables("entries", Entry)

    assert entries("") == []
    assert entries('[[entries]]\nname = "a"\n[[entries]]\nname = "b"\n') == [Entry("a"), Entry("b")]
    faults = {
        '[[entries]]\nname = "a"\n[[entries]]\nname = "b"\nsize = "1"\n': "line 5: entries.1.size: Expected int",
        '[[entries]]\nname = "a"\nsice = 1\n': "line 3: entries.0.sice: unknown key",
        '[[entries]]\nname = "a"\n[[entries]]\n': "line 3: entries.1: Object missing required field name",
        '[entries]\nname = "a"\n': "line 1: entries: must be tables",
    }
    for text, expected in faults.items():
        with pytest.raises(ConfigError) as e:
            entries(text)
        assert expected in str(e.value)


def test_values_are_resolved(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
        [daemon]
        socket = "run/w.sock"
        socket_group = "0"
        socket_mode = "0600"
        [shm]
        budget = "40GiB"
        [nvme]
        budget = "12.5%"
        [fetch]
        part_size = "1MiB"
        [verify]
        every = "1.5 d"
        max_rate = 0
        [models.tiny]
        source = "https://h/d/"
        files = ["a", { path = "b", size = 3 }]
        """,
    )
    assert config.socket == tmp_path / "run/w.sock"
    assert (config.socket_gid, config.socket_mode) == (0, 0o600)
    assert config.shm.budget == BudgetSpec(size=40 << 30)
    assert config.nvme.budget == BudgetSpec(percent=12.5)
    assert config.fetch.part_size == 1 << 20
    assert (config.verify.every, config.verify.max_rate) == (36 * 3600, 0)
    assert [f.path for f in config.models["tiny"].named_files()] == ["a", "b"]


def test_models_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text(json.dumps({"models": {"tiny": {"source": "file:///m/"}}}))
    assert read(tmp_path, 'models = "models.json"\n').models["tiny"].source == "file:///m/"
    (tmp_path / "models.json").write_text(json.dumps({"models": {"tiny": {"sauce": ""}}}))
    with pytest.raises(ConfigError, match=r"models.json: .*unknown field `sauce`"):
        read(tmp_path, 'models = "models.json"\n')


def test_the_command_line_goes_first(tmp_path: Path) -> None:
    given = Overrides(socket="/s", state_dir="/d", log_format="json", shm_budget="1GB", nvme_budget="50%")
    config = read(tmp_path, '[daemon]\nsocket = "/t"\nlog_level = "debug"\n[shm]\nbudget = 5\n', given)
    assert (config.socket, config.state_dir) == (Path("/s"), Path("/d"))
    assert (config.log_level, config.log_format) == ("debug", "json")
    assert (config.shm.budget.size, config.nvme.budget.percent) == (10**9, 50.0)


@pytest.mark.parametrize(
    ("env", "uid", "state", "socket"),
    [
        ({}, 0, "/var/lib/weightd", "/run/weightd/weightd.sock"),
        ({"HOME": "/h"}, 1000, "/h/.local/state/weightd", "/tmp/weightd-1000/weightd.sock"),
        (
            {"HOME": "/h", "XDG_STATE_HOME": "/x", "XDG_RUNTIME_DIR": "/r"},
            1000,
            "/x/weightd",
            "/r/weightd/weightd.sock",
        ),
        ({"STATE_DIRECTORY": "/s", "RUNTIME_DIRECTORY": "/run/w"}, 1000, "/s", "/run/w/weightd.sock"),
        ({"HOME": "/h", "WEIGHTD_SOCKET": "/w.sock"}, 1000, "/h/.local/state/weightd", "/w.sock"),
    ],
)
def test_default_places(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], uid: int, state: str, socket: str
) -> None:
    monkeypatch.setenv("HOME", env.get("HOME", "/nowhere"))
    config = load_config(None, env=env, uid=uid)
    assert (str(config.state_dir), str(config.socket)) == (state, socket)


def test_where_a_configuration_is_looked_for(tmp_path: Path) -> None:
    for place, key in (("conf", "CONFIGURATION_DIRECTORY"), ("xdg", "XDG_CONFIG_HOME")):
        file = tmp_path / place / ("config.toml" if place == "conf" else "weightd/config.toml")
        file.parent.mkdir(parents=True)
        file.write_text("[fetch]\nretries = 9\n")
        assert load_config(None, env={key: str(tmp_path / place)}, uid=1000).file == file
    with pytest.raises(ConfigError):
        load_config(None, env={"WEIGHTD_CONFIG": str(tmp_path / "none")}, uid=1000)


@pytest.mark.parametrize(
    ("text", "size"),
    [("16MiB", 16 << 20), ("1GB", 10**9), ("1.5 gib", 3 << 29), ("42", 42), (42, 42), ("7 B", 7), ("2TiB", 2 << 40)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1 MiB MiB", "0", "1e9", -5, 1 << 60, "0x10", "١MiB MB"])
def test_sizes_that_are_none(text: str | int) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7d", 604800), ("12h", 43200), (" 30 m ", 1800), ("90s", 90), ("2w", 1209600), ("0.5h", 1800), ("", 0), (" ", 0)],
)
def test_periods(text: str, seconds: float) -> None:
    assert parse_period(text) == seconds


@pytest.mark.parametrize("text", ["d", "-7d", "1M", "7", "7 days", "1d12h", "0d", "3651d", "1e3s", "nan s", "inf d"])
def test_periods_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_period(text)


def test_budgets_are_shown_as_written() -> None:
    assert [str(parse_budget(b)) for b in ("auto", "80%", "1KiB")] == ["auto", "80%", "1024"]


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("a = 1\n[b]\nc = 2\n", ("b", "c"), 3),
        ('[models."x/y"]\nsource = 1\n', ("models", "x/y", "source"), 2),
        ("[a.b]\n", ("a",), 1),
        ("[a]\nb = {c = 1}\n", ("a", "b", "c"), 2),
        ("[a] # note\n'b' = 1\n", ("a", "b"), 2),
        ("x = 1\n", ("y",), None),
        ("[[a]]\nb = 1\n[[a]]\nb = 2\n", ("a", "1", "b"), 4),
        ("[[a]]\nb = 1\n", ("a",), 1),
    ],
)
def test_lines(text: str, path: tuple[str, ...], line: int | None) -> None:
    assert line_of(text, path) == line


def test_a_directory_as_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path, env=os.environ, uid=0)
