from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import contest, fetch, nginx, ours, rounds
from benchmarks.machine import SHM, Unable
from benchmarks.rounds import Contender
from weightd.daemon.config import load_config

needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin") is None or shutil.which("openssl") is None,
    reason="nginx or openssl is not installed",
)
SIZE = 40 << 20


def quiet() -> Console:
    return Console(file=io.StringIO())


def contender(name: str, *seconds: float | str, ours: bool = False, once: bool = False) -> Contender:
    """One number per turn; a text is a reason why it is unable."""
    turns = iter(seconds)

    def run() -> dict[str, float]:
        found = next(turns)
        if isinstance(found, str):
            raise Unable(found)
        return {"transfer": found}

    return Contender(name, run, ours, once)


def test_the_warm_up_does_not_count() -> None:
    results = rounds.take_turns(quiet(), [contender("w", 9, 1, 2, ours=True), contender("p", 9, 4, 4)], 2)
    verdict = rounds.judge(results, 1.7)
    assert (verdict.best, verdict.ratio, verdict.reached) == ("p", 4 / 1.5, True)


def test_a_peer_that_is_unable_is_left_out_with_its_reason() -> None:
    contenders = [contender("w", 1, 1, 1, ours=True), contender("p", 2, 2, 2), contender("q", 0.1, "no TLS")]
    results = rounds.take_turns(quiet(), contenders, 2)
    assert rounds.judge(results, None).best == "p"
    data = rounds.data(results, 1 << 30)
    assert [d for d in data if d["name"] == "q"] == [{"name": "q", "ours": False, "left_out": "no TLS"}]


def test_our_own_failure_is_not_left_out() -> None:
    with pytest.raises(Unable, match="other bytes"):
        rounds.take_turns(quiet(), [contender("w", "other bytes", ours=True), contender("p", 1, 1)], 1)


def test_without_a_peer_there_is_nothing_to_say() -> None:
    with pytest.raises(Unable, match="no peer"):
        rounds.take_turns(quiet(), [contender("w", 1, 1, ours=True), contender("p", "not installed")], 1)


def test_a_baseline_has_one_turn_and_is_nobodys_best() -> None:
    contenders = [contender("w", 1, 1, 1, ours=True), contender("p", 3, 3, 3), contender("b", 0.5, once=True)]
    verdict = rounds.judge(rounds.take_turns(quiet(), contenders, 2), None)
    assert (verdict.best, verdict.reached, verdict.goal) == ("p", None, "no target")


def test_the_first_weightd_is_judged_though_another_be_faster() -> None:
    contenders = [contender("weightd", 4, 4, ours=True), contender("w2", 1, 1, ours=True), contender("p", 2, 2)]
    assert rounds.judge(rounds.take_turns(quiet(), contenders, 1), None).ratio == 0.5


@pytest.mark.parametrize("shards", [1, 3])
def test_the_configuration_is_one_that_the_daemon_reads(tmp_path: Path, shards: int) -> None:
    files = tuple((f"bucket/{n}.bin", 5) for n in range(shards))
    order = ours.Order("https://127.0.0.1:1", files, str(tmp_path / "ca.pem"))
    file = tmp_path / "config.toml"
    file.write_text(ours.configuration({"fetch.receivers": 16, "fetch.part_size": "4MiB"}, order))
    config = load_config(file, env={}, uid=os.geteuid())
    assert (config.fetch.receivers, config.fetch.part_size) == (16, 4 << 20)
    assert config.http.ca_file == tmp_path / "ca.pem"
    assert config.models[ours.MODEL].source == "https://127.0.0.1:1/bucket/"
    assert config.models[ours.MODEL].files == tuple(f"{n}.bin" for n in range(shards))


def test_settings_have_a_name_that_says_them() -> None:
    found = fetch.weightd([[("fetch.receivers", 16), ("http.connections_per_host", 64)]])
    assert list(found) == ["weightd", "weightd, receivers 16, connections_per_host 64"]


@needs_nginx
@pytest.mark.parametrize(("shards", "tls"), [(1, False), (3, True)])
def test_weightd_receives_what_the_origin_serves(tmp_path: Path, shards: int, tls: bool) -> None:
    home, root = tmp_path / "nginx", tmp_path / "root"
    home.mkdir()
    with nginx.origin(home, root, SIZE + 1, shards=shards, tls=tls) as origin:
        assert len(origin.files) == shards
        assert origin.size == SIZE + 1
        found = contest.receive(origin, {"fetch.receivers": 2}, profile=True)
        check_profile(found["profile"], origin.size)
        to = contest.receive(origin, {}, directory=str(tmp_path / "to"))
        assert set(to["sha256"]) == {f.name for f in origin.files}
        wrong = origin._replace(files=(origin.files[0]._replace(sha256="0" * 64), *origin.files[1:]))
        with pytest.raises(Unable, match="other bytes"):
            contest.receive(wrong, {})
        if tls:
            with pytest.raises(Unable, match="certificate"):
                contest.receive(origin._replace(ca=""), {})
    for segment in SHM.glob("weightd-bench[0-9]*"):
        owner = segment.name.removeprefix("weightd-bench").partition("-")[0]
        assert Path(f"/proc/{owner}").exists(), f"{segment} was left"


def check_profile(profile: dict[str, Any], size: int) -> None:
    threads = {t["kind"]: t for t in profile["threads"]}
    steps = {s["step"]: s for t in profile["threads"] for s in t["steps"]}
    assert threads["weightd-receive"]["count"] == 2
    assert steps["xxh3-128 of a part"]["calls"] >= size // (16 << 20)
    assert {"receive", "SHA-256", "prepare memory", "seal: unmap"} <= set(steps)
