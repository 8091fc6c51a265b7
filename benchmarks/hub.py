"""The Hugging Face origin of the benchmarks: a Hub of the tests, whose LFS files nginx serves in place of its CDN."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import nginx
from benchmarks.nginx import Origin
from tests.support.hub import Hub
from tests.support.hub_cdn import Cdn
from tests.support.hub_repos import HubFile

REPO = "bench/model"


@contextlib.contextmanager
def origin(home: Path, root: Path, size: int, *, shards: int = 1) -> Iterator[Origin]:
    """A repository of `size` random bytes on the loopback. Who is started meanwhile has the Hub's address in its
    environment, no token and no cache. Raises Unable."""
    with nginx.origin(home, root, size, shards=shards) as found, Hub() as hub, tempfile.TemporaryDirectory() as empty:
        hub.cdn = _Nginx(found, hub.cdn)
        hub.repo(REPO).commit({file.name: root / file.key for file in found.files}, lfs={f.name for f in found.files})
        with environment(
            HF_ENDPOINT=hub.endpoint, HF_HOME=empty, HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_XET="1",
            HF_HUB_DISABLE_PROGRESS_BARS="1", HF_TOKEN=None, HF_HUB_OFFLINE=None,
        ):  # fmt: skip
            yield found._replace(source="hf")


class _Nginx(Cdn):
    """Sends to nginx, with a signature that nobody checks: who checks has a core of the contenders'."""

    def __init__(self, served: Origin, started: Cdn) -> None:
        super().__init__()
        self._served, self._started = served, started

    def sign(self, repo: str, path: str, file: HubFile) -> str:
        signed = super().sign(repo, path, file)
        return f"{self._served.endpoint}/{nginx.BUCKET}/{path}?{signed.partition('?')[2]}"

    def stop(self) -> None:
        super().stop()
        self._started.stop()


@contextlib.contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """These for whoever is started meanwhile; None takes one away."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
