"""The sources of the demo: a Hub and an S3 server as its processes, asked by their providers' own clients."""

from __future__ import annotations

import os
import select
import signal
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.session import Session
from huggingface_hub import close_session, snapshot_download

from demo import report, sources
from demo.__main__ import keep_to_ourselves
from demo.processes import Children, Signals, of_session
from demo.s3 import BUCKET, PREFIX, parse_metrics

WEIGHTS = os.urandom(3 << 20)
FILES = {"config.json": b"{}", "1_Pooling/config.json": b'{"a": 1}', "model.safetensors": WEIGHTS}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "model"


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    started = Children(Signals(), tmp_path, dict(os.environ))
    yield started
    assert started.stop() == []


def test_hub(children: Children, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    source = sources.hub(children, model, tmp_path)
    endpoint, token = source.environment["HF_ENDPOINT"], source.environment["HF_TOKEN"]
    assert sources.status(f"{endpoint}/{source.repo}/resolve/main/config.json") == 401
    got = snapshot_download(source.repo, endpoint=endpoint, token=token, cache_dir=tmp_path / "cache")
    close_session()
    assert {str(p.relative_to(got)): p.read_bytes() for p in Path(got).rglob("*") if p.is_file()} == FILES
    sent, told = source.counted()
    assert sent == len(WEIGHTS), "the CDN has the weights and nothing else"
    assert "its CDN 1 times without it" in told


def test_s3(model: Path, tmp_path: Path) -> None:
    children = Children(Signals(), tmp_path, dict(os.environ))
    try:
        source = sources.s3(children, model, tmp_path)
        said = source.environment
        client = Session().create_client(
            "s3",
            "us-east-1",
            endpoint_url=said["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=said["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=said["AWS_SECRET_ACCESS_KEY"],
        )
        for name, data in FILES.items():
            found = client.get_object(Bucket=BUCKET, Key=PREFIX + name, ChecksumMode="ENABLED")
            assert found["Body"].read() == data
            assert "ChecksumCRC64NVME" in found
        client.close()
        until = time.monotonic() + 30
        asked = (sum(map(len, FILES.values())), "It was asked 3 GET")
        while source.counted() != asked and time.monotonic() < until:  # It counts after it has answered.
            time.sleep(0.01)
        assert source.counted() == asked
        assert sources.status(f"{said['AWS_ENDPOINT_URL_S3']}/{BUCKET}/{PREFIX}config.json") == 403
    finally:
        left = children.stop()
    assert left == []
    assert of_session(source.child.pid) == []
    port = int(said["AWS_ENDPOINT_URL_S3"].rpartition(":")[2])
    assert not Path(f"/tmp/seaweedfs-s3-grpc-{port + 10_000}.sock").exists()


def test_metrics_of_the_bucket() -> None:
    text = f"""\
# TYPE SeaweedFS_s3_bucket_traffic_sent_bytes_total counter
SeaweedFS_s3_bucket_traffic_sent_bytes_total{{bucket="{BUCKET}"}} 9.0868376e+07
SeaweedFS_s3_bucket_traffic_sent_bytes_total{{bucket="other"}} 7
SeaweedFS_s3_request_total{{bucket="{BUCKET}",code="206",type="GET"}} 6
SeaweedFS_s3_request_total{{bucket="{BUCKET}",code="200",type="GET"}} 2
SeaweedFS_s3_request_total{{bucket="{BUCKET}",code="200",type="LIST"}} 1
"""
    assert parse_metrics(text) == (90868376, {"GET": 8, "LIST": 1})


def test_what_a_child_leaves_behind_is_told_and_ended(tmp_path: Path) -> None:
    children = Children(Signals(), tmp_path, dict(os.environ))
    child = children.python("parent", ["tests.demo.leaves_a_child"])
    orphan = child.answer()["pid"]
    handle = os.pidfd_open(orphan)
    try:
        assert children.stop() == [f"process {orphan} of parent"]
        assert select.select([handle], [], [], 10)[0], "it is over"
    finally:
        os.close(handle)


def test_a_server_is_killed_and_its_files_go(tmp_path: Path) -> None:
    children = Children(Signals(), tmp_path, dict(os.environ))
    (tmp_path / "left").touch()
    children.remove_at_end([tmp_path / "left", tmp_path / "never there"])
    os.mkfifo(tmp_path / "fifo")
    server = children.server("deaf", ["sh", "-c", "trap '' TERM; read never < fifo"], tmp_path)
    assert children.stop() == []
    assert server.process.returncode == -signal.SIGKILL
    assert not (tmp_path / "left").exists()


def test_nothing_of_the_user_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("AWS_PROFILE", "HF_TOKEN", "HF_HUB_OFFLINE", "https_proxy", "ALL_PROXY", "TRANSFORMERS_CACHE")
    monkeypatch.setattr(os, "environ", dict.fromkeys(names, "the user's") | {"PATH_LIKE": "kept"})
    keep_to_ourselves()
    assert os.environ == {"PATH_LIKE": "kept"}


def test_levels_are_told_of_every_file() -> None:
    told = report.levels({"git": ["a", "b", "c"], "sha256": ["model.safetensors"]})
    assert told == "Checked when they came: model.safetensors by SHA-256, 3 files by git's id (SHA-1)."


def test_the_rate_stands_in_the_configuration() -> None:
    assert tomllib.loads(sources.LIMITED) == {"fetch": {"max_rate": sources.RATE}}
    assert sources.SOURCES.keys() == sources.TITLES.keys()
