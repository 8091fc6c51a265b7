"""Tokens as huggingface_hub gives them, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightd.core.errors import SourceDenied, TokenRefused
from weightd.sources.hub_home import token


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_OIDC_ID_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", False)


def test_from_the_environment_before_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert token() == ""
    (tmp_path / "token").write_text("hf_file\n")
    assert token() == "hf_file"
    monkeypatch.setenv("HF_TOKEN", " hf_environment\r\n")
    assert token() == "hf_environment"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert token() == ""


@pytest.mark.parametrize("text", ["hf_two words", "hf_schlüssel", "hf_\u2026", "hf_\x7f"])
def test_what_no_header_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """And not sent, nor repeated."""
    monkeypatch.setenv("HF_TOKEN", text)
    with pytest.raises(TokenRefused) as e:
        token()
    assert e.value.remedy
    assert text not in f"{e.value}{e.value!r}"


def test_a_login_of_a_ci_system_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_OIDC_RESOURCE outside of one: huggingface_hub raises an error of its own."""
    for name in ("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_OIDC_RESOURCE", "org/name")
    with pytest.raises(SourceDenied, match="OIDCError") as e:
        token()
    assert e.value.remedy
