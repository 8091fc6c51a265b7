"""The server on its Unix socket: service, health, reflection."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from weightd.core.errors import AlreadyRunning, ConfigError, PathInTheWay, SocketDenied
from weightd.core.paths import MAX_SOCKET_PATH
from weightd.engine.api import EngineApi
from weightd.rpc.service import Service
from weightd.wire.limits import MAX_ANSWER, MAX_REQUEST, METADATA
from weightd.wire.methods import SERVICE
from weightd.wire.runtime import grpc

OPTIONS: Final[list[tuple[str, Any]]] = [
    ("grpc.max_receive_message_length", MAX_REQUEST),
    ("grpc.max_send_message_length", MAX_ANSWER),
    *METADATA,
]


class RpcServer:
    """Serves; made by `make_server`."""

    def __init__(self, server: grpc.aio.Server, service: Service, checks: Any, path: Path) -> None:
        self._server, self._service, self._checks = server, service, checks
        self.path = path

    async def drain(self) -> None:
        """Health says NOT_SERVING, leases end, new work is refused with Draining. Idempotent."""
        await self._checks.enter_graceful_shutdown()
        self._service.drain()

    async def stop(self, grace: float | None = None) -> None:
        """Drain; calls under way get `grace` seconds, then are cancelled; the socket is removed. Idempotent."""
        await self.drain()
        await self._server.stop(grace)

    async def wait(self) -> None:
        """Until stopped."""
        await self._server.wait_for_termination()

    def __repr__(self) -> str:
        return f"<RpcServer {self.path}>"


class RpcServers:
    """All sockets of a daemon, as one."""

    def __init__(self) -> None:
        self._servers: list[RpcServer] = []

    def add(self, server: RpcServer) -> None:
        """It serves, and is drained and stopped with the others."""
        self._servers.append(server)

    async def drain(self) -> None:
        """See `RpcServer`."""
        for server in self._servers:
            await server.drain()

    async def stop(self, grace: float | None = None) -> None:
        """All at the same time. See `RpcServer`."""
        await self.drain()
        await asyncio.gather(*(server.stop(grace) for server in self._servers))

    def __repr__(self) -> str:
        return f"<RpcServers {', '.join(str(s.path) for s in self._servers)}>"


async def make_server(
    engine: EngineApi,
    socket_path: str | Path,
    *,
    mode: int = 0o660,
    group: str | int | None = None,
    alone: bool = False,
) -> RpcServer:
    """Bind, and serve `engine` from now on. The socket never has more rights than `mode`. `alone`: who connects to
    other sockets of this process is told to nobody here.

    A missing parent directory is made, 0755. A socket file that nobody listens on is replaced. Raises AlreadyRunning,
    PathInTheWay, SocketDenied, ConfigError (unknown group, path over 107 bytes).
    """
    path = Path(os.path.abspath(socket_path))  # noqa: ASYNC240 - as it is bound
    gid = _gid(group)
    await asyncio.to_thread(_claim, path)
    service = Service(engine, path if alone else None)
    checks = health.aio.HealthServicer()
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((service.handlers(),))
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    await checks.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    _bind(server, path, mode)
    try:
        await asyncio.to_thread(_give, path, gid)
        await server.start()
    except BaseException:
        await server.stop(None)
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - one call, at a start that failed
        raise
    return RpcServer(server, service, checks, path)


def _gid(group: str | int | None) -> int | None:
    if not isinstance(group, str):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"no such group: {group!r}", remedy=f"groupadd --system {group}") from None


def _claim(path: Path) -> None:
    """Make the way free for bind, which in gRPC removes whatever socket is there. Blocks."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ConfigError(
            f"the socket's path has {len(os.fsencode(path))} bytes, the kernel takes {MAX_SOCKET_PATH}",
            file=str(path),
            remedy="Choose a shorter one, in WEIGHTD_SOCKET or the configuration.",
        )
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    except PermissionError as e:
        raise SocketDenied(f"no access to the socket's directory: {e.strerror}", file=str(path)) from None
    except OSError as e:
        raise PathInTheWay(f"the socket's directory cannot be made: {e.strerror}", file=str(path.parent)) from None
    if not stat.S_ISSOCK(kind):
        raise PathInTheWay("what stands at the socket's path is not a socket", file=str(path), remedy="Move it away.")
    _replace_stale(path)


def _replace_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except PermissionError:
            raise SocketDenied("the socket belongs to somebody else", file=str(path)) from None
        except (TimeoutError, BlockingIOError):
            who = "a process that does not answer"
        else:
            who = f"process {_peer(probe)}"
    raise AlreadyRunning(f"{who} listens on the socket", file=str(path), remedy="Stop it first, or use another socket.")


def _peer(connected: socket.socket) -> int:
    """The process that called listen(2), see SO_PEERCRED in unix(7)."""
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[0])


def _bind(server: grpc.aio.Server, path: Path, mode: int) -> None:
    """The umask, for the instant of bind(2), is what makes the socket begin with `mode`."""
    before = os.umask(0o777 & ~mode)
    try:
        server.add_insecure_port("unix:" + quote(str(path)))
    except RuntimeError as e:
        raise SocketDenied(f"the socket cannot be made: {e}", file=str(path)) from None
    finally:
        os.umask(before)


def _give(path: Path, gid: int | None) -> None:
    if gid is None:
        return
    try:
        os.chown(path, -1, gid)
    except PermissionError:
        raise ConfigError(
            f"the socket cannot be given to group {gid}", file=str(path), remedy="The daemon's user must be a member."
        ) from None
