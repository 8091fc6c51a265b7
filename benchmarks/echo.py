"""The yardstick of an acquire: a bare grpc.aio server on a Unix socket, on uvloop as the daemon is.

`python -m benchmarks.echo SOCKET` serves `/echo/Unary`, which answers its request, and `/echo/Stream`, which answers it
and then stays open and silent until the client cancels, as Acquire does. It ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import uvloop


async def unary(request: bytes, context: Any) -> bytes:
    return request


async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield request
    await asyncio.Event().wait()


async def serve(address: str) -> None:
    server = grpc.aio.server()
    handlers: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo", handlers),))
    server.add_insecure_port(f"unix:{address}")
    await server.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await server.stop(0.5)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
