"""An S3 server with the files of one directory in a bucket, each with the CRC64NVME of the whole: SeaweedFS."""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import Unable
from benchmarks.weed import prepare
from demo.processes import Child, Children, DemoError

BUCKET = "models"
PREFIX = "minilm/"
START_S = 60.0


def start(
    children: Children, model: Path, home: Path, key: str, secret: str
) -> tuple[Child, str, str, Callable[[], tuple[int, str]]]:
    """The server, which has this key and the files of `model`; its endpoint, the model's ref, and its counters.

    Raises DemoError.
    """
    place = home / "s3"
    place.mkdir()
    try:
        weed = prepare(place, place / "volumes", key, secret)
    except Unable as e:
        raise DemoError(str(e)) from None
    metrics = _free_port()
    children.remove_at_end(weed.sockets)
    child = children.server("S3 server", [*weed.command, f"-metricsPort={metrics}"], place)
    client = _client(weed.endpoint, key, secret)
    try:
        _create_bucket(client, child)
        upload(client, model)
    finally:
        client.close()
    return child, weed.endpoint, f"s3://{BUCKET}/{PREFIX}", lambda: _counted(f"http://127.0.0.1:{metrics}/metrics")


def upload(client: Any, model: Path) -> None:
    for path in sorted(p for p in model.rglob("*") if p.is_file()):
        key = PREFIX + path.relative_to(model).as_posix()
        with path.open("rb") as body:
            client.put_object(Bucket=BUCKET, Key=key, Body=body, ChecksumAlgorithm="CRC64NVME")


def parse_metrics(text: str) -> tuple[int, dict[str, int]]:
    """Bytes that were sent from the bucket, and requests by method, in the text of its /metrics."""
    sent, requests = 0, {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if f'bucket="{BUCKET}"' not in name:
            continue
        if name.startswith("SeaweedFS_s3_bucket_traffic_sent_bytes_total{"):
            sent = int(float(value))
        elif name.startswith("SeaweedFS_s3_request_total{"):
            method = name.partition('type="')[2].partition('"')[0]
            requests[method] = requests.get(method, 0) + int(float(value))
    return sent, requests


def _counted(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        sent, requests = parse_metrics(answer.read().decode())
    told = ", ".join(f"{count} {method}" for method, count in sorted(requests.items()) if method != "PUT")
    return sent, f"It was asked {told}"


def _create_bucket(client: Any, child: Child) -> None:
    """Until it is ready: its parts find each other one after the other. Raises DemoError."""
    from botocore.exceptions import BotoCoreError, ClientError

    until = time.monotonic() + START_S
    while True:
        if child.process.poll() is not None:
            raise child.died()
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyExists):
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
            return
        except (BotoCoreError, ClientError) as e:
            if time.monotonic() > until:
                raise DemoError(f"the S3 server did not start: {e}{child.last_words()}") from None
        time.sleep(0.1)


def _client(endpoint: str, key: str, secret: str) -> Any:
    import botocore.session
    from botocore.config import Config

    config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1})
    return botocore.session.Session().create_client(
        "s3",
        "us-east-1",
        endpoint_url=endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=config,
    )


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
