"""`weightd doctor`"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import msgspec

from weightd.cli.checks import SHM, Check, host_checks, proxy
from weightd.cli.checks_daemon import daemon_checks
from weightd.cli.checks_shm import shm_checks
from weightd.cli.progress import emit
from weightd.core.errors import ConfigError, Precondition

COLOURS: Final = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command("doctor", short_help="Check this host, and say how to mend what is wrong.")
@click.option("--config", metavar="FILE", type=click.Path(path_type=Path), help="The daemon's configuration.")
@click.option("--state-dir", metavar="DIR", type=click.Path(path_type=Path), help="In place of the configured one.")
@click.option("--json", "as_json", is_flag=True, help="One object with all checks.")
@click.pass_obj
def command(socket: str | None, config: Path | None, state_dir: Path | None, as_json: bool) -> int:
    """Check shared memory, huge pages, direct I/O, limits, libraries, the socket and the daemon.

    Exit code 0 when no check failed (warnings may remain), 6 otherwise.
    """
    checks = list(_all(socket, config, state_dir))
    failed = [c for c in checks if c.status == "failed"]
    warnings = [c for c in checks if c.status == "warning"]
    if as_json:
        emit(
            {
                "type": "doctor",
                "checks": [msgspec.to_builtins(c) for c in checks],
                "failed": len(failed),
                "warnings": len(warnings),
            }
        )
    else:
        _show(checks)
        click.echo(f"\n{len(checks)} checks, {len(failed)} failed, {len(warnings)} warnings")
    return Precondition.exit_code if failed else 0


def _all(socket: str | None, config: Path | None, state_dir: Path | None) -> Iterator[Check]:
    from weightd.daemon.config import default_state_dir, load_config
    from weightd.sources.proxies import environment_proxies

    uid = os.geteuid()
    try:
        loaded = load_config(config, env=os.environ, uid=uid)
        yield Check("configuration", "ok", str(loaded.file or "none: the defaults hold"))
        place, listens = loaded.state_dir, str(loaded.socket) if loaded.file else None
        segments = loaded.shm.directory or SHM
        yield proxy(environment_proxies(loaded.http.proxy, loaded.http.no_proxy))
    except ConfigError as e:
        yield Check("configuration", "failed", e.message, e.remedy)
        place, listens, segments = default_state_dir(os.environ, uid), None, SHM
    yield from host_checks(state_dir or place, segments)
    yield from shm_checks(state_dir or place, segments)
    yield from daemon_checks(socket or os.environ.get("WEIGHTD_SOCKET") or listens)


def _show(checks: list[Check]) -> None:
    width = max(len(c.name) for c in checks)
    for check in checks:
        mark = click.style(f"{check.status:<7}", fg=COLOURS[check.status], bold=check.status == "failed")
        # click drops the colours where stdout is not a terminal.
        click.echo(f"{mark}  {check.name:<{width}}  {check.found}")
        if check.fix:
            _show_fix(check.fix, indent=11 + width)


def _show_fix(fix: str, indent: int) -> None:
    columns = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 10_000
    lead = " " * indent + "fix: "
    text = textwrap.fill(
        fix,
        width=max(columns, indent + 40),
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    )
    click.echo(text)
