"""A daemon that holds a small and a big model, from an nginx that counts what it is asked."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from benchmarks import acquire, nginx
from benchmarks.machine import GIB, MIB
from benchmarks.nginx import BUCKET, KEY, Origin, Served
from benchmarks.residency.host import Host, host
from benchmarks.residency.places import Places, places
from weightd import Client


class Stage(NamedTuple):
    """`refs` of the resident models by their size in words, the small one first; `origin` is of the file that is
    fetched beside; `client` belongs to the daemon's first life. `log`: nginx's, a line for each request."""

    where: Places
    host: Host
    client: Client
    origin: Origin
    refs: dict[str, str]
    sizes: dict[str, int]
    log: Path

    @property
    def small(self) -> str:
        """Its ref."""
        return next(iter(self.refs.values()))

    @property
    def big(self) -> str:
        """Its ref."""
        return next(reversed(self.refs.values()))

    @property
    def big_size(self) -> int:
        """In bytes."""
        return next(reversed(self.sizes.values()))

    def requests(self) -> int:
        """That the origin has answered."""
        return len(self.log.read_text().splitlines())


def words(size: int) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


@contextlib.contextmanager
def stage(args: argparse.Namespace, console: Console, pages: str | None) -> Iterator[Stage]:
    """Both models are resident. Nothing of it stays."""
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(places(args.disk, pages))
        home, root = where.disk / "nginx", where.disk / "root"
        home.mkdir()
        (root / BUCKET).mkdir(parents=True)
        digest = nginx.random_file(root / BUCKET / KEY, args.fetch)
        address = f"127.0.0.1:{nginx.free_port()}"
        log = home / "access.log"
        stack.enter_context(nginx.serve(home, root, [address], log=log))
        origin = Origin(f"http://{address}", (Served(f"{BUCKET}/{KEY}", args.fetch, digest),))
        running = stack.enter_context(host(where))
        client = stack.enter_context(Client(running.socket))
        refs, sizes = {}, {}
        for name, size in (("small", args.small), ("big", args.big)):
            path, label = root / BUCKET / f"{name}.safetensors", f"{name}, {words(size)}"
            # Sparse here; what the daemon makes of it on NVMe is not.
            acquire.synthetic(path, size)
            refs[label], sizes[label] = f"{origin.endpoint}/{BUCKET}/{path.name}", path.stat().st_size
            with console.status(f"making a model of {words(size)} resident"):
                client.fetch(refs[label])
        yield Stage(where, running, client, origin, refs, sizes, log)
