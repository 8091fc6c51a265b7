"""The origin of the benchmarks: nginx with a configuration and directory of its own, plain or with TLS."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import certificates
from benchmarks.certificates import Certificate
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
    access_log {log};
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
        {listen}
        root {root};
        rewrite ^/as/[^/]+/(.*)$ /$1;  # The same file under as many names as wanted.
        location = /bucket {{ return 200; }}  # HeadBucket, which S3 clients ask for the region.
    }}
}}
"""
TLS = """\
ssl_certificate {chain};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
        ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;  # One for all: clients differ in what they like best."""


class Served(NamedTuple):
    """A file of the origin: its path below the endpoint, its size in bytes, its SHA-256 in hex."""

    key: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]


class Origin(NamedTuple):
    """Files of random bytes at `endpoint`/bucket/…, which is also S3's GetObject without a signature. `ca` is the PEM
    file of the authority to trust, "" for plain HTTP. `source`: "http"; "s3", where only a signature by the key in the
    environment opens it; "hf", where the environment names the Hub that leads to it."""

    endpoint: str
    files: tuple[Served, ...]
    ca: str = ""
    source: str = "http"

    @property
    def url(self) -> str:
        """Of the first file."""
        return f"{self.endpoint}/{self.files[0].key}"

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(f.size for f in self.files)


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


def fill(root: Path, size: int, shards: int = 1) -> tuple[Served, ...]:
    """`size` random bytes below `root`, in one file or in as many as wanted, as equal as can be."""
    (root / BUCKET).mkdir(parents=True)
    names = [KEY] if shards == 1 else [f"model-{n:05}-of-{shards:05}.bin" for n in range(1, shards + 1)]
    each, rest = divmod(size, shards)
    found = []
    for number, name in enumerate(names):
        length = each + (number < rest)
        found.append(Served(f"{BUCKET}/{name}", length, random_file(root / BUCKET / name, length)))
    return tuple(found)


@contextlib.contextmanager
def origin(home: Path, root: Path, size: int, *, shards: int = 1, tls: bool = False) -> Iterator[Origin]:
    """nginx on the loopback serving `root`, which gets the files; `home` is for nginx's own. Raises Unable."""
    files = fill(root, size, shards)
    certificate = certificates.make(home) if tls else None
    port = free_port()
    with serve(home, root, [f"127.0.0.1:{port}"], certificate):
        scheme, ca = ("https", str(certificate.ca)) if certificate else ("http", "")
        yield Origin(f"{scheme}://127.0.0.1:{port}", files, ca)


@contextlib.contextmanager
def serve(
    home: Path,
    root: Path,
    addresses: Sequence[str],
    certificate: Certificate | None = None,
    within: Sequence[str] = (),
    *,
    log: Path | None = None,
) -> Iterator[None]:
    """nginx on `addresses` ("host:port"), as the command line `within` … nginx; a line in `log` for each request.
    Raises Unable if it does not start."""
    binary = need("nginx", "nginx")
    config = home / "nginx.conf"
    listen = "\n        ".join(f"listen {a}{' ssl' if certificate else ''} backlog=1024;" for a in addresses)
    if certificate:
        listen += "\n        " + TLS.format(chain=certificate.chain, key=certificate.key)
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(CONFIG.format(home=home, root=root, listen=listen, user=user, log=log or "off"))
    command = [*within, binary, "-p", str(home), "-c", str(config)]
    process = subprocess.Popen(command, preexec_fn=die_with_parent)
    try:
        _wait(process, home)
        yield
    finally:
        process.terminate()
        process.wait()


def version() -> str:
    """Of nginx, from `nginx -v`."""
    text = subprocess.run([need("nginx", "nginx"), "-v"], capture_output=True, text=True).stderr
    return text.strip().rpartition("/")[2]


def free_port() -> int:
    """Of the loopback, that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], home: Path) -> None:
    """nginx writes its pid file once it listens, whichever network it is in."""
    until, log = time.monotonic() + 10, home / "error.log"
    while not (home / "nginx.pid").exists():
        if process.poll() is not None or time.monotonic() > until:
            raise Unable(f"nginx did not start: {log.read_text() if log.exists() else 'no log'}")
        time.sleep(0.02)
