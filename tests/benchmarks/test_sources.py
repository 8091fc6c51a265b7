"""The origins of S3 and of a Hub: weightd and who comes with it receive the same bytes from them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from benchmarks import contest, hub, peers, weed

SIZE = 40 << 20
needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="nginx is not installed"
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_s3(home: Path, tmp_path: Path) -> None:
    before = dict(os.environ)
    with weed.origin(home, tmp_path / "data", SIZE, shards=3) as origin:
        assert len(contest.receive(origin, {})["sha256"]) == 3
        secret = os.environ["AWS_SECRET_ACCESS_KEY"]
        assert secret
    assert dict(os.environ) == before


@needs_nginx
def test_hub(home: Path, tmp_path: Path) -> None:
    before = dict(os.environ)
    with hub.origin(home, tmp_path / "root", SIZE, shards=3) as origin:
        assert len(contest.receive(origin, {})["sha256"]) == 3
        (tmp_path / "theirs").mkdir()
        goal = peers.goal(origin, tmp_path / "theirs")
        assert contest.get("snapshot_download", goal, origin.files) > 0
    assert dict(os.environ) == before


def test_each_source_has_peers() -> None:
    assert {name for names in peers.SOURCES.values() for name in names} == set(peers.PEERS)
