"""Frames of `weightd top`: they fit any terminal, tell the truth, and say when they do not know."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tests.cli import scene
from weightd.cli.top_bars import KINDS, cells, parts
from weightd.cli.top_frame import CURVE, Page, fair, frame
from weightd.cli.top_sample import NEWS_S, History, Rates
from weightd.cli.top_table import Column, fitted, widths
from weightd.client.types import TierInfo
from weightd.core.lifecycle import Residency

HOSTILE = "a\x1b[2J\x9b31m\u202e\tb漢字" * 20


def shown(history: History, page: Page) -> list[str]:
    return [line.plain for line in frame(history, page)]


@pytest.mark.parametrize("colours", [True, False])
@pytest.mark.parametrize("width", [1, 7, 20, 40, 79, 80, 109, 110, 140, 250])
@pytest.mark.parametrize("height", [1, 2, 9, 24, 40, 100, None])
def test_a_frame_fits_any_terminal(width: int, height: int | None, colours: bool) -> None:
    lines = shown(scene.history(), scene.page(width, height, colours=colours))
    assert height is None or len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)
    assert all(line.isprintable() for line in lines)


def test_a_frame_of_24_lines_shows_something_of_everything() -> None:
    lines = shown(scene.history(), scene.page(80, 24))
    text = "\n".join(lines)
    assert len(lines) == 24
    assert lines[0].startswith(" weightd 0.2.0  SERVING   process 4711, up 3 d")
    for word in ("TRANSFERS", "MODELS", "LEASES", "leased", "draining", "others", "more", "waits", "hf://meta-ll…"):
        assert word in text
    assert "shm: of 135.0 GiB left only 96.0 GiB are free, others use 31.0 GiB" in text


def test_a_frame_of_12_lines_shows_a_line_of_everything() -> None:
    lines = shown(scene.history(), scene.page(60, 12))
    assert len(lines) == 12
    assert "" not in lines
    headings = [i for i, line in enumerate(lines) if line.split()[0] in ("TRANSFERS", "MODELS", "LEASES")]
    assert len(headings) == 3
    assert all(i + 1 not in headings for i in headings)
    assert headings[-1] < 11


def test_no_number_of_the_rates_is_cut() -> None:
    """What does not fit is left out."""
    history = scene.history()
    line = "fetch 1.4 GiB/s load 12.0 GiB/s acquires 40.0/s 98 % at once evicted 12"
    whole = line.split()
    for width in range(17, 200):
        (line,) = [x for x in shown(history, scene.page(width, 40)) if x.startswith(" fetch")]
        words = "".join(c for c in line if c not in CURVE).split()
        assert words == whole[: len(words)]
        assert words[-1] in ("GiB/s", "40.0/s", "once", "12")
    assert words == whole


def test_a_wide_frame_names_everything() -> None:
    text = "\n".join(shown(scene.history(), scene.page(140, 50)))
    for model in scene.MODELS:
        assert model.ref in text
    assert "s3://acme-models/finetunes/support-bot/2026-11-12/ (old)" in text
    assert "warm, pinned" in text
    assert text.count(" filling ") == 2
    for lease in scene.LEASES:
        assert f" {lease.holder.pid}{'' if lease.holder.confirmed else '?'} " in text
    assert "more" not in text
    assert "embedder.service" in text


def test_rates_are_of_the_last_seconds() -> None:
    history = scene.history()
    assert history.rates.fetched == pytest.approx(1.4 * scene.GIB)
    assert history.rates.acquires == pytest.approx(40)
    text = "\n".join(shown(history, scene.page(140, 50)))
    assert "fetch 1.4 GiB/s" in text
    assert "acquires 40.0/s" in text
    assert "98 % at once" in text


def test_one_look_has_no_rates() -> None:
    history = scene.history(1)
    assert history.rates == Rates()
    assert "fetch –" in "\n".join(shown(history, scene.page(80, 24, now=0.0)))


def test_a_daemon_that_was_started_again_is_told_for_a_while_and_begins_anew() -> None:
    history = scene.history(10)
    history.fail("no daemon: nobody listens on the socket")
    title, trouble = shown(history, scene.page(80, 24, now=12.0))[:2]
    assert trouble == " no answer for 3 s: no daemon: nobody listens on the socket"
    assert ("NO ANSWER" in title, "SERVING" in title) == (True, False)
    history.add(scene.sample(20.0, pid=4800, uptime=-19.0))
    assert history.rates == Rates()
    assert "started again: process 4711 → 4800" in "\n".join(shown(history, scene.page(80, 24, now=21.0)))
    later = shown(history, scene.page(80, 24, now=20.0 + NEWS_S + 1))
    assert "started again" not in "\n".join(later)
    history.add(scene.sample(21.0, pid=4800, uptime=-19.0))
    assert (history.rates.acquires or 0) > 0


def test_the_same_process_id_after_a_restart_is_a_restart() -> None:
    history = scene.history(3)
    history.add(scene.sample(4.0, uptime=-3.0))
    assert "4711 → 4711" in history.news(4.0)


def test_a_daemon_that_is_silent_is_told() -> None:
    history = scene.history(10)
    assert "no answer" not in "\n".join(shown(history, scene.page(80, 24, now=12.0)))
    assert " no answer for 11 s; below is what was before" in shown(history, scene.page(80, 24, now=20.0))[1]


def test_nothing_that_anybody_says_moves_the_cursor() -> None:
    sample = scene.sample()
    holder = scene.lease(HOSTILE, 1, HOSTILE, 3.0, pod=HOSTILE)
    history = History()
    history.add(sample._replace(models=[scene.model(HOSTILE, 1.0)], leases=[holder]))
    history.fail(HOSTILE)
    for line in shown(history, scene.page(80, 24)):
        assert line.isprintable()
        assert cell_len(line) <= 80


def test_an_empty_host_has_no_tables() -> None:
    sample = scene.sample()
    status = scene.status()
    empty = TierInfo(0, 0, 0, 0)
    quiet = msgspec.structs.replace(status, shm=empty, nvme=empty, under_way=(), models=0, leases=0, transfers=0)
    history = History()
    history.add(sample._replace(status=quiet, models=[], leases=[]))
    text = "\n".join(shown(history, scene.page(80, 24, colours=False)))
    assert "MODELS" not in text
    assert "0 models  0 leases" in text


def test_the_parts_of_a_tier_are_its_budget() -> None:
    amounts = {kind.name: n for kind, n in parts(scene.SHM, scene.MODELS, lambda f: f.shm)}
    assert [kind.name for kind in KINDS] == list(amounts)
    assert sum(amounts.values()) == scene.SHM.budget
    in_gib = {name: n // scene.GIB for name, n in amounts.items()}
    assert in_gib == {
        "leased": 190,
        "pinned": 15,
        "idle": 0,
        "filling": 45,
        "draining": 15,
        "kept": 0,
        "others": 39,
        "left": 96,
    }


tiers = st.builds(
    TierInfo, *[st.integers(0, 1 << 45)] * 4, **{n: st.integers(0, 1 << 45) for n in ("leased", "pinned", "total")}
)


@given(tier=tiers, width=st.integers(0, 200))
def test_no_part_of_a_tier_is_negative_and_bars_are_full(tier: TierInfo, width: int) -> None:
    amounts = [n for _, n in parts(tier, scene.MODELS, lambda f: f.shm)]
    assert all(n >= 0 for n in amounts)
    sizes = cells(amounts, width)
    assert all(n >= 0 for n in sizes)
    assert sum(sizes) == (width if sum(amounts) else 0)
    there = [n > 0 for n in amounts]
    if width >= sum(there):
        assert [n > 0 for n in sizes] == there


@given(wanted=st.lists(st.integers(0, 50), max_size=5), room=st.integers(-5, 100))
def test_lines_are_shared_fairly(wanted: list[int], room: int) -> None:
    given_ = fair(wanted, room)
    assert sum(given_) == min(max(0, room), sum(wanted))
    least = min((g for g, w in zip(given_, wanted, strict=True) if g < w), default=None)
    assert all(g <= w and (least is None or g <= least + 1) for g, w in zip(given_, wanted, strict=True))


@given(text=st.text(max_size=60), size=st.integers(0, 40), right=st.booleans())
def test_a_cell_has_its_size(text: str, size: int, right: bool) -> None:
    cell = fitted(text, size, right=right)
    assert cell_len(cell) == size
    assert cell.isprintable()


def test_columns_fill_the_room() -> None:
    columns = (Column("a", 5, weight=2), Column("b", 4), Column("c", 3, weight=3))
    for room in range(16, 60):
        assert sum(widths(columns, room)) + 4 == room
    assert widths(columns, 3) == [5, 4, 3]


def test_every_residency_has_its_sign() -> None:
    for state in Residency:
        history = History()
        history.add(scene.sample()._replace(models=[scene.model("m", 1.0, shm=state)]))
        for width in (80, 140):
            assert any(" m " in line for line in shown(history, scene.page(width, 24)))
