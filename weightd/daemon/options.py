"""From the configuration to what the engine takes; for the daemon and for `fetch --to`, which has none."""

from __future__ import annotations

import msgspec

from weightd.daemon.config import Config
from weightd.engine.patrol import PatrolOptions
from weightd.engine.throttle import Throttle
from weightd.engine.transfer import TransferOptions
from weightd.sources.connection import HttpOptions
from weightd.sources.proxies import environment_proxies
from weightd.sources.registry import SourceOptions, Sources


def make_sources(config: Config) -> Sources:
    """With the configured models. The caller closes it."""
    http = HttpOptions(
        connect_timeout=config.http.connect_timeout_s,
        read_timeout=config.fetch.stall_timeout_s,
        connections_per_host=config.http.connections_per_host,
        ca_file=str(config.http.ca_file or ""),
        proxies=environment_proxies(config.http.proxy, config.http.no_proxy),
    )
    return Sources(
        SourceOptions(
            http=http,
            processes=config.fetch.processes,
            models=config.models,
            hub=msgspec.structs.replace(config.hf, credentials=config.credentials),
            s3=config.s3,
            credentials=config.credentials,
        )
    )


def transfer_options(config: Config) -> TransferOptions:
    """Of one transfer."""
    return TransferOptions(
        part_size=config.fetch.part_size,
        receivers=config.fetch.receivers,
        hashers=config.fetch.hash_threads,
        writers=config.fetch.write_threads,
        attempts=config.fetch.retries + 1,
        throttle=Throttle(config.fetch.max_rate) if config.fetch.max_rate else None,
    )


def patrol_options(config: Config) -> PatrolOptions | None:
    """None where nothing is verified in the background."""
    return PatrolOptions(config.verify.every, config.verify.max_rate) if config.verify.every else None
