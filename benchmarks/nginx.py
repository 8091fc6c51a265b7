"""The origin of the benchmarks: nginx on the loopback, with a configuration and directory of its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import MIB, Unable, die_with_parent, need

BUCKET, KEY = "bucket", "model.bin"
CONFIG = """\
daemon off;
master_process on;
worker_processes auto;
pid {home}/nginx.pid;
error_log {home}/error.log warn;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    sendfile_max_chunk 2m;
    tcp_nopush on;
    keepalive_requests 1000000;
    default_type application/octet-stream;
    client_body_temp_path {home}/t1;
    proxy_temp_path {home}/t2;
    fastcgi_temp_path {home}/t3;
    uwsgi_temp_path {home}/t4;
    scgi_temp_path {home}/t5;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        rewrite ^/as/[^/]+/(.*)$ /$1;  # The same file under as many names as wanted.
        location = /bucket {{ return 200; }}  # HeadBucket, which S3 clients ask for the region.
    }}
}}
"""


class Origin(NamedTuple):
    """One file of random bytes at `url`; also as S3's GetObject without signature at `endpoint`/bucket/model.bin."""

    url: str
    endpoint: str
    size: int
    sha256: str
    version: str


def random_file(path: Path, size: int) -> str:
    """Returns its SHA-256 as hex. Random, so that nothing on the way can compress it."""
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        left = size
        while left:
            block = os.urandom(min(left, 16 * MIB))
            digest.update(block)
            file.write(block)
            left -= len(block)
    return digest.hexdigest()


@contextlib.contextmanager
def origin(home: Path, root: Path, size: int) -> Iterator[Origin]:
    """nginx serving `root`, which gets the file; `home` is for nginx's own. Raises Unable without nginx."""
    binary = need("nginx", "nginx")
    (root / BUCKET).mkdir(parents=True)
    sha256 = random_file(root / BUCKET / KEY, size)
    port = _free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    config = home / "nginx.conf"
    config.write_text(CONFIG.format(home=home, root=root, port=port, user=user))
    process = subprocess.Popen([binary, "-p", str(home), "-c", str(config)], preexec_fn=die_with_parent)
    try:
        _wait(process, port, home / "error.log")
        endpoint = f"http://127.0.0.1:{port}"
        yield Origin(f"{endpoint}/{BUCKET}/{KEY}", endpoint, size, sha256, version())
    finally:
        process.terminate()
        process.wait()


def version() -> str:
    """Of nginx, from `nginx -v`."""
    text = subprocess.run([need("nginx", "nginx"), "-v"], capture_output=True, text=True).stderr
    return text.strip().rpartition("/")[2]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None or time.monotonic() > until:
            raise Unable(f"nginx did not start: {log.read_text() if log.exists() else 'no log'}")
        time.sleep(0.02)
