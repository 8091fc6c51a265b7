"""`weightd serve`"""

from __future__ import annotations

import os
from pathlib import Path

import click

from weightd.cli.extra import need_daemon_extra


@click.command("serve", short_help="Run the daemon.")
@click.option("--config", metavar="FILE", type=click.Path(path_type=Path), help="TOML; see config.example.toml.")
@click.option("--socket", metavar="PATH", help="Where to listen.")
@click.option("--state-dir", metavar="DIR", help="Blobs, models and records: on a fast local disk.")
@click.option("--shm-budget", metavar="SIZE", help='"auto", "80%" of /dev/shm, or a size such as "40GiB".')
@click.option("--nvme-budget", metavar="SIZE", help='"auto", "80%" of the disk, or a size.')
@click.option(
    "--at-stop",
    type=click.Choice(["auto", "keep", "drop"]),
    help="Whether models stay in shared memory for the next start; auto: unless Ctrl-C ends it.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-format", type=click.Choice(["text", "json"]))
@click.pass_obj
def command(
    global_socket: str | None,
    config: Path | None,
    socket: str | None,
    state_dir: str | None,
    shm_budget: str | None,
    nvme_budget: str | None,
    at_stop: str | None,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C.

    Needs no configuration: root uses /var/lib/weightd and /run/weightd, everybody else directories of their own.
    Options go before the configuration file, which goes before the defaults.
    """
    need_daemon_extra("weightd serve")
    from weightd.daemon.config import Overrides, load_config
    from weightd.daemon.lifecycle import run

    overrides = Overrides(
        socket=_absolute(socket or global_socket),
        state_dir=_absolute(state_dir),
        log_level=log_level or "",
        log_format=log_format or "",
        shm_budget=shm_budget or "",
        nvme_budget=nvme_budget or "",
        at_stop=at_stop or "",
    )
    run(load_config(config, env=os.environ, uid=os.geteuid(), overrides=overrides), os.environ)


def _absolute(path: str | None) -> str:
    # From the command line a path is relative to where we are, in the file to where the file is.
    return str(Path(path).expanduser().absolute()) if path else ""
