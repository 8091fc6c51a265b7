"""The one place where the daemon's parts meet."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from weightd.core.numa import parse_placement
from weightd.core.tenants import Tenants
from weightd.daemon import budgets
from weightd.daemon.budgets import SHM
from weightd.daemon.config import Config
from weightd.daemon.options import make_sources, patrol_options, transfer_options
from weightd.daemon.sections.sockets import tenants_of
from weightd.engine.api import Tier
from weightd.engine.engine import Engine
from weightd.engine.options import EngineOptions
from weightd.engine.tenant_view import TenantView
from weightd.rpc.server import RpcServers, make_server
from weightd.storage.blobs import DirectoryBlobStore
from weightd.storage.direct import room_of
from weightd.storage.nodes import memory_nodes
from weightd.storage.owners import segment_owner
from weightd.storage.protocols import SegmentStore
from weightd.storage.segment_files import DirectorySegmentStore
from weightd.storage.segments import PREFIX, PosixSegmentStore
from weightd.storage.state import State
from weightd.storage.tenant_files import TenantFiles


@dataclass(frozen=True, slots=True)
class Parts:
    """What the daemon starts and stops."""

    engine: Engine
    segments: SegmentStore
    listen: Callable[[], Awaitable[RpcServers]]
    """Opens the sockets, once the engine has started."""


def build(config: Config) -> Parts:
    """Wire the engine and the server. Needs the state directory's lock; opens no socket.

    Blocks for as long as it takes to count the blobs on disk: the loop serves nobody then.
    """
    owner = segment_owner(config.state_dir)
    segments = segment_store(config, owner)
    blobs = DirectoryBlobStore(config.state_dir)
    tenants = tenants_of(config.sockets)
    group = os.getegid() if config.socket_gid is None else config.socket_gid
    files = TenantFiles(config.state_dir, tenants, group, config.shm.directory and config.shm.directory.absolute())
    free, total = room_of(config.state_dir)
    engine = Engine(
        EngineOptions(
            state_dir=config.state_dir,
            shm_budget=budgets.shm_budget(
                config.shm.budget,
                total=segments.total(),
                free=segments.free(),
                held=budgets.shm_held(f"{PREFIX}-{owner}-", config.shm.directory or SHM),
                memory=budgets.available_memory(),
                place=config.shm.directory or SHM,
            ),
            nvme_budget=budgets.nvme_budget(
                config.nvme.budget,
                total=total,
                free=free,
                held=budgets.disk_held(config.state_dir),
                directory=config.state_dir,
            ),
            transfer=transfer_options(config),
            transfers=config.fetch.transfers,
            patrol=patrol_options(config),
            keep=config.snapshots.keep,
            allow=config.sources.allow_list(config.models),
            rules=config.shm.rules(config.models),
            marks={Tier.SHM: config.shm.marks, Tier.NVME: config.nvme.marks},
            adoption=config.shm.adoption,
            grace=config.shm.grace,
            tenants=tenants,
        ),
        segments=segments,
        blobs=blobs,
        sources=make_sources(config),
        state=State(config.state_dir / "state.db"),
        files=files,
    )
    return Parts(engine, segments, partial(listen, config, engine, tenants, files))


async def listen(config: Config, engine: Engine, tenants: Tenants, files: TenantFiles) -> RpcServers:
    """The daemon's own socket, and one for each tenant. Raises as `make_server`; then none is open."""
    views = {t.name: TenantView(engine, t, files) for t in tenants}
    servers = RpcServers()
    try:
        for s in config.sockets:
            servers.add(await make_server(views[s.name], s.path, mode=s.mode, group=s.gid, alone=True))
        # Last: who finds it may count on the others.
        servers.add(await make_server(engine, config.socket, mode=config.socket_mode, group=config.socket_gid))
    except BaseException:
        await servers.stop()
        raise
    return servers


def segment_store(config: Config, owner: str) -> SegmentStore:
    """Where the configuration says that segments are. Raises ConfigError."""
    placement = parse_placement(config.shm.numa, memory_nodes())
    if config.shm.directory is None:
        return PosixSegmentStore(owner, group=config.socket_gid, placement=placement)
    directory = config.shm.directory.absolute()
    return DirectorySegmentStore(directory, owner, group=config.socket_gid, placement=placement)
