"""`[[credentials]]` of the configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from weightd.core.errors import ConfigError
from weightd.daemon.config import Config, load_config

ENV = {"CREDENTIALS_DIRECTORY": "/run/credentials/weightd.service"}


def read(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> Config:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return load_config(file, env=env or {}, uid=0)


def test_their_files_are_absolute_and_are_not_read(tmp_path: Path) -> None:
    text = """
        [[credentials]]
        match = "s3://bucket/*"
        access_key_id = "AKIA"
        secret_access_key_file = "keys/secret"
        session_token_file = "/run/token"
        [[credentials]]
        match = "s3://other"
        access_key_id = "AKIB"
        credential = "s3-other"
        [[credentials]]
        match = "hf://org/*"
        credential = "hf-token"
    """
    first, second, third = read(tmp_path, text, ENV).credentials
    assert first.secret_access_key_file == str(tmp_path / "keys/secret")
    assert first.session_token_file == "/run/token"
    assert second.secret_access_key_file == "/run/credentials/weightd.service/s3-other"
    assert third.token_file == "/run/credentials/weightd.service/hf-token"
    assert first.token_file == second.credential == third.secret_access_key_file == ""


FAULTS = {
    "secret": ('match = "s3://b/*"\naccess_key_id = "a"\nsecret_access_key = "s3cr3t"', "secret_access_key: no secret"),
    "token": ('match = "hf://o/*"\ntoken = "s3cr3t"', "line 3: credentials.0.token: no secret may stand in this file"),
    "no match": ('profile = "x"', "line 1: credentials.0: Object missing required field match"),
    "pattern": ('match = "bucket"', "line 2: credentials.0.match: a pattern is"),
    "addressing": (
        'match = "s3://b"\naddressing = "dns"',
        "line 3: credentials.0.addressing: Invalid enum value",
    ),
    "unknown": ('match = "s3://b"\nkey = "x"', "line 3: credentials.0.key: unknown key"),
    "twice": ('match = "s3://b"\n[[credentials]]\nmatch = "s3://b"', "line 4: credentials.1.match: 's3://b' stands"),
    "endpoint": ('match = "s3://b"\nendpoint = "h:1"', "line 3: credentials.0.endpoint: not an address"),
    "region": ('match = "s3://b"\nregion = "a b"', "line 3: credentials.0.region: 'a b' is no name"),
    "no systemd": ('match = "hf://o/*"\ncredential = "c"', "line 3: credentials.0.credential: $CREDENTIALS_DIRECTORY"),
    "climbs": ('match = "hf://o/*"\ncredential = "../c"', "line 3: credentials.0.credential: '../c' is no name"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_names_its_key_and_line_and_no_secret(tmp_path: Path, case: str) -> None:
    text, expected = FAULTS[case]
    with pytest.raises(ConfigError) as e:
        read(tmp_path, "[[credentials]]\n" + text)
    assert expected in str(e.value)
    assert "s3cr3t" not in str(e.value)


def test_the_examples_of_the_documentation(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/sources.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 3
    found = [read(tmp_path, block, ENV) for block in blocks]
    assert any(config.s3.endpoint for config in found)
    assert any(one.scheme == "s3" for config in found for one in config.credentials)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('endpoint = "minio:9000"', "line 2: s3.endpoint: not an address"),
        ('endpoint = "https://u:s3cr3t@h"', "line 2: s3.endpoint: not an address without credentials"),
        ('region = "eu west"', "line 2: s3.region: 'eu west' is no name"),
        ('addressing = "dns"', "line 2: s3.addressing: Invalid enum value"),
        ('anonymous = true\nprofile = "x"', "line 2: s3.anonymous: anonymous, and a profile"),
        ('secret_access_key = "s3cr3t"', "line 2: s3.secret_access_key: unknown key"),
    ],
)
def test_a_fault_of_s3_names_its_key_and_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as e:
        read(tmp_path, "[s3]\n" + text)
    assert expected in str(e.value)
    assert "s3cr3t" not in str(e.value)
