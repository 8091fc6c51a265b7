"""A worker, as a program of its own, by the real client.

    python -m tests.isolation.worker SOCKET

Reads requests as lines of JSON, {"do": name, …}, and answers each with a line: {"answer": …} or {"error": class,
"message": text}. What it leased stays leased until it ends.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weightd import Client
from weightd.client.lease import Lease
from weightd.core.errors import WeightdError


class Worker:
    """One client, and what it leased."""

    def __init__(self, socket: str) -> None:
        self.client = Client(socket)
        self.leases: list[Lease] = []

    def acquire(self, ref: str) -> dict[str, Any]:
        """Where everything is, and what the bytes are by each way to them."""
        lease = self.client.acquire(ref, timeout=30)
        self.leases.append(lease)
        names = sorted(lease.files)
        return {
            "revision": lease.revision,
            "path": str(lease.path),
            "segments": {n: lease.files[n].segment for n in names},
            "mapped": {n: hashlib.sha256(lease.files[n].buffer).hexdigest() for n in names},
            "read": {n: self.read(str(lease.path / n)) for n in names},
        }

    def fetch(self, ref: str, **options: Any) -> dict[str, Any]:
        model = self.client.fetch(ref, **options)
        return {"revision": model.revision, "path": model.directory, "files": {f.path: f.digest for f in model.files}}

    def resolve(self, ref: str) -> dict[str, str]:
        return {f.path: f.digest for f in self.client.resolve(ref).files}

    def list(self) -> list[str]:
        return [m.ref for m in self.client.models()]

    def model(self, ref: str) -> str:
        return self.client.model(ref).revision

    def verify(self, ref: str) -> list[str]:
        return [check.path for check in self.client.verify(ref, quick=True)]

    def status(self) -> dict[str, Any]:
        status = self.client.status()
        return {"models": status.models, "leases": status.leases, "state_directory": status.state_directory}

    def holders(self, ref: str = "") -> list[dict[str, Any]]:
        return [
            {
                "ref": x.ref,
                "confirmed": x.holder.confirmed,
                "uid": x.holder.uid,
                "command": x.holder.command,
                "tenant": x.holder.tenant,
            }
            for x in self.client.leases(ref)
        ]

    def read(self, path: str) -> str:
        """The SHA-256 of a file, or the name of the error."""
        try:
            return hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError as e:
            return type(e).__name__

    def names(self, path: str) -> list[str] | str:
        """In a directory, or the name of the error."""
        try:
            return sorted(p.name for p in Path(path).iterdir())
        except OSError as e:
            return type(e).__name__

    def exists(self, path: str) -> bool | str:
        """As stat(2) says, or the name of the error."""
        try:
            Path(path).stat()
        except FileNotFoundError:
            return False
        except OSError as e:
            return type(e).__name__
        return True

    def release(self) -> int:
        """All."""
        count = len(self.leases)
        for lease in self.leases:
            lease.release()
        self.leases.clear()
        return count


def main(make: Callable[[str], Worker] = Worker) -> None:
    worker = make(sys.argv[1])
    print(json.dumps({"answer": "ready"}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        call: Callable[..., Any] = getattr(worker, asked.pop("do"))
        try:
            reply = {"answer": call(**asked)}
        except WeightdError as e:
            reply = {"error": type(e).__name__, "message": str(e)}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
