"""Columns on a terminal and in a pipe."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.cli.text import columns, duration, place, printable, process_id, share, shorten, told_apart
from weightd.client.types import Holder

HEADER = ("REF", "REVISION", "SIZE")
ROWS = [("hf://org/" + "name" * 10 + "@main", "0123456789abcdef", "1 B"), ("x", "0123456789abcdef", "10.0 GiB")]


def printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int | None, **options: object
) -> list[str]:
    if width is not None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((width, 24)))
    columns(HEADER, ROWS, right=(2,), **options)  # type: ignore[arg-type]
    return capsys.readouterr().out.splitlines()


def test_a_pipe_gets_all_of_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(capsys, monkeypatch, None, shrink={0: 5}, drop=(1,))
    assert lines[1].split() == [*list(ROWS[0][:2]), "1", "B"]


@pytest.mark.parametrize("width", [76, 60, 45, 37, 36])
def test_a_terminal_gets_what_fits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    lines = printed(capsys, monkeypatch, width, shrink={0: 8})
    assert max(map(len, lines)) == width
    assert all("0123456789abcdef" in line for line in lines[1:])
    assert lines[1].startswith("hf:")
    assert lines[1].split()[0].endswith("main")


def test_a_narrow_terminal_loses_columns_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = printed(capsys, monkeypatch, 40, shrink={0: 12}, drop=(1,))
    assert "REVISION" in wide[0]
    narrow = printed(capsys, monkeypatch, 30, shrink={0: 12}, drop=(1,))
    assert narrow[0].split() == ["REF", "SIZE"]
    assert max(map(len, narrow)) == 30


@given(text=st.text(max_size=80), width=st.integers(0, 90))
def test_what_is_shortened_fits_and_keeps_both_ends(text: str, width: int) -> None:
    short = shorten(text, width)
    assert len(short) <= max(width, 0)
    if len(text) <= width:
        assert short == text
    elif width >= 4:
        assert (short[0], short[-1], len(short)) == (text[0], text[-1], width)


MODELS = [f"https://host.example.org/models/{name}/model.safetensors" for name in ("qwen-7b", "llama-8b", "phi-4")]


def test_what_would_look_the_same_is_told_apart() -> None:
    other = "hf://org/a-rather-long-name-of-a-model@main"
    assert told_apart([*MODELS, MODELS[0], other], 24) == [
        "…qwen-7b…",
        "…llama-8b…",
        "…phi-4/model.safetensors",
        "…qwen-7b…",
        shorten(other, 24),
    ]


@given(texts=st.lists(st.text("ab/…", max_size=40), max_size=6), width=st.integers(0, 40))
def test_nothing_is_longer_than_it_may_be(texts: list[str], width: int) -> None:
    short = told_apart(texts, width)
    assert [len(x) <= width for x in short] == [True] * len(texts)
    assert [x for x, text in zip(short, texts, strict=True) if len(text) <= width and x != text] == []


def test_holders_in_few_characters() -> None:
    said = Holder(pid=7, started=1, command="", cgroup="/a/b.service/", pod="", confirmed=False, uid=0)
    assert (process_id(said), place(said)) == ("7?", "b.service")
    known = Holder(pid=7, started=1, command="", cgroup="/a", pod="ns/p", confirmed=True, uid=0)
    assert (process_id(known), place(known)) == ("7", "ns/p")
    nobody = Holder(pid=0, started=0, command="", cgroup="", pod="", confirmed=False, uid=0)
    assert (process_id(nobody), place(nobody)) == ("?", "")


def test_durations_are_rounded_before_their_unit_is_chosen() -> None:
    assert [duration(x) for x in (0, 59.4, 59.6, 3569, 3571, 86399, 1e6)] == [
        "0 s",
        "59 s",
        "1 min",
        "59 min",
        "1 h",
        "1 d",
        "12 d",
    ]


def test_shares_and_printable_text() -> None:
    assert (share(1, 3), share(0, 0), share(0, 5)) == ("33 %", "", "0 %")
    assert printable("a\x1b[2J\u202eé") == "a [2J é"
