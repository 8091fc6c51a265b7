"""How all sources whose bytes come over HTTP receive them: one pool of connections, with one gate for each origin."""

from __future__ import annotations

import asyncio

from weightd.core.manifest import FileSpec
from weightd.core.pace import START
from weightd.sources import urls
from weightd.sources.connection import ConnectionPool, HttpOptions
from weightd.sources.http_reader import HttpReader
from weightd.sources.process_reader import ProcessReader
from weightd.sources.processes import Processes
from weightd.sources.protocols import Reader, Shared
from weightd.sources.routes import Routes


class Receiving:
    """`processes` receive what has shared memory to go to; 0: the threads that ask do. A source whose files have
    URLs of another scheme tells `routes` how their addresses are made."""

    def __init__(self, options: HttpOptions, processes: int = 0) -> None:
        self.options = options
        self.routes = Routes(options.connect_timeout + options.read_timeout)
        self.pool = ConnectionPool(options, routes=self.routes)
        self._processes = Processes(processes, self.pool) if processes else None

    def reader(self, file: FileSpec, memory: Shared | None = None) -> Reader:
        """As Source.reader."""
        if memory is not None and self._processes is not None:
            return ProcessReader(file, memory, self._processes)
        return HttpReader(file, self.pool)

    def width(self, file: FileSpec) -> int:
        """As Source.width."""
        where = self.routes.where(file.url)
        if not where.startswith(("http://", "https://")):
            return START  # Nobody has asked for its address yet.
        return self.pool.gates.of(urls.target(where).origin).limit

    async def close(self) -> None:
        """Idempotent."""
        await asyncio.to_thread(self.pool.close)
        if self._processes is not None:
            await asyncio.to_thread(self._processes.close)
