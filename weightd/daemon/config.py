"""The daemon's configuration: one TOML file, typed, checked when it is read. Every key has a default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from weightd.core.credentials import Credential
from weightd.core.errors import ConfigError
from weightd.core.models import NamedModel
from weightd.core.paths import default_socket
from weightd.daemon.config_reader import SEE, Reader, between, group_id, socket_mode
from weightd.daemon.sections.credentials import read_credentials
from weightd.daemon.sections.fetch import FetchConfig, read_fetch
from weightd.daemon.sections.hf import read_hf
from weightd.daemon.sections.http import HttpConfig, read_http
from weightd.daemon.sections.models import read_models
from weightd.daemon.sections.s3 import read_s3
from weightd.daemon.sections.snapshots import SnapshotsConfig, read_snapshots
from weightd.daemon.sections.sockets import SocketConfig, read_sockets
from weightd.daemon.sections.sources import SourcesConfig, read_sources
from weightd.daemon.sections.tiers import NvmeConfig, ShmConfig, read_nvme, read_shm
from weightd.daemon.sections.verify import VerifyConfig, read_verify
from weightd.sources.hub_access import HubOptions
from weightd.sources.s3_settings import S3Options


class DaemonSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[daemon]` as it is written."""

    socket: str = ""
    socket_group: str = ""
    socket_mode: str = "0660"
    state_dir: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    stop_timeout_s: float = 20.0


class Config(msgspec.Struct, frozen=True):
    """Everything the daemon needs to know, resolved. `file` is where it came from, None for the defaults."""

    socket: Path
    socket_gid: int | None
    """Numeric group of the socket and of sealed segments; None keeps the process's own."""
    socket_mode: int
    state_dir: Path
    log_level: str
    log_format: str
    stop_timeout_s: float
    """Seconds in which a stop must be done."""
    shm: ShmConfig
    nvme: NvmeConfig
    fetch: FetchConfig
    http: HttpConfig
    hf: HubOptions
    verify: VerifyConfig
    snapshots: SnapshotsConfig
    sources: SourcesConfig
    s3: S3Options
    credentials: tuple[Credential, ...]
    models: dict[str, NamedModel]
    sockets: tuple[SocketConfig, ...] = ()
    """Of tenants, beside the daemon's own."""
    file: Path | None = None


class Overrides(msgspec.Struct, frozen=True):
    """What the command line says goes before the file; "" says nothing."""

    socket: str = ""
    state_dir: str = ""
    log_level: str = ""
    log_format: str = ""
    shm_budget: str = ""
    nvme_budget: str = ""
    at_stop: str = ""

    def daemon(self) -> dict[str, str]:
        """What they say of `[daemon]`."""
        said = msgspec.structs.asdict(self)
        own = DaemonSection.__struct_fields__
        return {key: value for key, value in said.items() if value and key in own}


def load_config(file: Path | None, *, env: Mapping[str, str], uid: int, overrides: Overrides | None = None) -> Config:
    """Read and check. Without `file`, the one of `find_config`, else the defaults. Raises ConfigError.

    The error names the key path and, where it can be found, the line.
    """
    file = file or find_config(env, uid)
    text = "" if file is None else _read(file)
    reader = Reader(text, str(file) if file else "configuration", file.parent if file else Path.cwd())
    overrides = overrides or Overrides()
    daemon = reader.section("daemon", DaemonSection, overrides.daemon())
    socket = reader.path(daemon.socket) or default_socket_of(env, uid)
    gid = reader.value(("daemon", "socket_group"), group_id, daemon.socket_group)
    config = Config(
        socket=socket,
        socket_gid=gid,
        socket_mode=reader.value(("daemon", "socket_mode"), socket_mode, daemon.socket_mode),
        state_dir=reader.path(daemon.state_dir) or default_state_dir(env, uid),
        log_level=daemon.log_level,
        log_format=daemon.log_format,
        stop_timeout_s=reader.value(("daemon", "stop_timeout_s"), between(0.1, 3600.0), daemon.stop_timeout_s),
        shm=read_shm(reader, overrides.shm_budget, overrides.at_stop),
        nvme=read_nvme(reader, overrides.nvme_budget),
        fetch=read_fetch(reader),
        http=read_http(reader),
        hf=read_hf(reader),
        verify=read_verify(reader),
        snapshots=read_snapshots(reader),
        sources=read_sources(reader),
        s3=read_s3(reader),
        credentials=read_credentials(reader, env),
        models=read_models(reader),
        sockets=read_sockets(reader, socket, gid),
        file=file,
    )
    reader.finish()
    return config


def default_state_dir(env: Mapping[str, str], uid: int) -> Path:
    """$STATE_DIRECTORY (systemd sets it); for root /var/lib/weightd; else $XDG_STATE_HOME or ~/.local/state."""
    if given := env.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(given)
    if uid == 0:
        return Path("/var/lib/weightd")
    if base := env.get("XDG_STATE_HOME"):
        return Path(base) / "weightd"
    return Path.home() / ".local" / "state" / "weightd"


def default_socket_of(env: Mapping[str, str], uid: int) -> Path:
    """Where a daemon of this user listens: $WEIGHTD_SOCKET, $RUNTIME_DIRECTORY (systemd), else as clients look."""
    if not env.get("WEIGHTD_SOCKET") and (given := env.get("RUNTIME_DIRECTORY", "").split(":")[0]):
        return Path(given) / "weightd.sock"
    # A client also tries the host's socket when it exists; a daemon of an ordinary user must not.
    return Path(default_socket(env, uid, lambda _: False))


def find_config(env: Mapping[str, str], uid: int) -> Path | None:
    """$WEIGHTD_CONFIG, which must exist; else the first that does of $CONFIGURATION_DIRECTORY/config.toml (systemd),
    for root /etc/weightd/config.toml, for others $XDG_CONFIG_HOME or ~/.config, weightd/config.toml."""
    if given := env.get("WEIGHTD_CONFIG"):
        return Path(given)
    candidates = [Path(d) / "config.toml" for d in env.get("CONFIGURATION_DIRECTORY", "").split(":") if d]
    if uid == 0:
        candidates.append(Path("/etc/weightd/config.toml"))
    else:
        home = env.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
        candidates.append(Path(home) / "weightd" / "config.toml")
    return next((c for c in candidates if c.exists()), None)


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as e:
        raise ConfigError(f"{file} cannot be read: {e.strerror}", remedy="Check the path and its rights.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text", remedy=SEE) from None
