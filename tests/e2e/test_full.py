"""No room: each a typed error that says how to get some, nothing left behind, and good again once there is room."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.host import Host, assert_refused, daemon, safetensors
from tests.support.origin import Origin
from weightd import Client


@pytest.fixture
def big(origin: Origin, request: pytest.FixtureRequest) -> str:
    """Another model for each test, of 4 MiB and a header."""
    name = re.sub(r"\W+", "-", request.node.name) + ".safetensors"
    origin.put(name, safetensors(4 << 20, name.encode()))
    return origin.url(name)


@pytest.mark.parametrize("tier", ["shm", "nvme"])
def test_a_budget_smaller_than_the_model(tier: str, big: str, good: str) -> None:
    with daemon(f"--{tier}-budget", "4MiB") as host, host.unharmed(good):
        ended = host.cli("fetch", big, "--json")
        assert_refused(ended, 9, "BudgetExceeded", big, f"{tier}.budget", "4.0 MiB")


@pytest.fixture(scope="module")
def namespaced() -> Iterator[Host]:
    """With 16 MiB of disk and 16 MiB of /dev/shm, both its own."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs root and a mount namespace (unshare -m), to fill a disk that nobody else uses")
    mounts = ("mount -t tmpfs -o size=16m tmpfs {home}/state", "mount -t tmpfs -o size=16m tmpfs /dev/shm")
    with daemon("--shm-budget", "12MiB", "--nvme-budget", "12MiB", mounts=mounts) as host:
        yield host


@pytest.mark.parametrize(("place", "kind"), [("state", "DiskFull"), ("shm", "ShmFull")])
def test_a_file_system_that_others_have_filled(place: str, kind: str, namespaced: Host, big: str, good: str) -> None:
    host = namespaced
    with host.unharmed(good):
        root = host.root / ("dev/shm" if place == "shm" else str(host.state_dir)[1:])
        # What is leased does not make room.
        with Client(host.socket) as client, contextlib.ExitStack() as leases:
            for model in client.models():
                leases.enter_context(client.acquire(model.ref))
            with filled(root):
                ended = host.cli("fetch", big, "--json")
        assert_refused(ended, 9, kind, big, "dev/shm" if place == "shm" else str(host.state_dir))
    host.fetch(big)


class filled:
    """A file in `root` that leaves 1 MiB free."""

    def __init__(self, root: Path) -> None:
        self._file, self._root = root / "somebody-elses", root

    def __enter__(self) -> None:
        status = os.statvfs(self._root)
        with self._file.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - (1 << 20))

    def __exit__(self, *_: object) -> None:
        self._file.unlink()
