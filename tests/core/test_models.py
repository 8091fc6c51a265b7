"""models.json: checked at load."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.errors import ConfigError
from weightd.core.models import NamedFile, expected_digest, parse_models, source_ref

HEX = "Ab" * 32
SOURCE = "https://host/m/"


def parse(**model: object) -> object:
    return parse_models(json.dumps({"models": {"m": model}}).encode(), "models.json")["m"]


def test_a_model_in_full() -> None:
    text = {
        "models": {
            "org/mini": {
                "source": SOURCE,
                "files": ["config.json", {"path": "model.safetensors", "size": 5, "sha256": HEX}],
                "size": 7,
                "format": "safetensors",
            }
        }
    }
    model = parse_models(json.dumps(text).encode(), "models.json")["org/mini"]
    assert model.named_files() == (NamedFile("config.json"), NamedFile("model.safetensors", 5, HEX))
    assert source_ref(model).text == SOURCE
    assert [expected_digest(model, f) for f in model.named_files()] == [None, "sha256:" + HEX.lower()]


def test_the_digest_of_the_model_is_that_of_its_only_file() -> None:
    (model,) = parse_models(json.dumps({"models": {"m": {"source": SOURCE, "sha256": HEX}}}).encode(), "x").values()
    assert expected_digest(model, NamedFile("any")) == "sha256:" + HEX.lower()


def test_nothing_configured() -> None:
    assert parse_models(b"{}", "models.json") == {}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({}, "source"),
        ({"source": 5}, "str"),
        ({"source": SOURCE, "sise": 5}, "sise"),
        ({"source": SOURCE, "size": "5"}, "int"),
        ({"source": "other-name"}, "must be a URL"),
        ({"source": "ftp://h/x"}, "ftp"),
        ({"source": SOURCE, "format": "pickle"}, "pickle"),
        ({"source": SOURCE, "sha256": "abc"}, "SHA-256"),
        ({"source": SOURCE, "files": ["a", "b"], "sha256": HEX}, "each of several"),
        ({"source": SOURCE, "files": ["../a"]}, "climbs out"),
        ({"source": SOURCE, "files": ["/a"]}, "absolute"),
        ({"source": SOURCE, "files": [{"path": "a", "size": -1}]}, "negative"),
        ({"source": SOURCE, "files": [{"path": "a", "sha256": "xyz"}]}, "SHA-256"),
        ({"source": SOURCE, "files": [{"size": 1}]}, "path"),
        ({"source": SOURCE, "files": [{"path": "a", "etag": "x"}]}, "etag"),
    ],
)
def test_a_bad_model_is_named(model: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as e:
        parse(**model)
    assert "models.json" in e.value.message


@pytest.mark.parametrize("name", ["https://host/x", "", "a b", "../x"])
def test_a_bad_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"models\.json"):
        parse_models(json.dumps({"models": {name: {"source": SOURCE}}}).encode(), "models.json")


def test_a_password_in_a_bad_source_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as e:
        parse(source="https://u:s3cr3t@host/a b")
    assert "s3cr3t" not in f"{e.value}{vars(e.value)}"


@given(st.binary(max_size=60))
def test_any_bytes_are_models_or_a_configuration_error(text: bytes) -> None:
    for candidate in (text, b'{"models": ' + text + b"}", b'{"models": {"m": {"source": "' + text + b'"}}}'):
        with contextlib.suppress(ConfigError):
            parse_models(candidate, "models.json")


@pytest.mark.parametrize("text", [b"\xff", b'{"models": {"\x80": 1}}', b'{"models": {"m": {"source": "\x80"}}}'])
def test_not_utf8(text: bytes) -> None:
    with pytest.raises(ConfigError, match=r"models\.json"):
        parse_models(text, "models.json")
