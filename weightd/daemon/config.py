"""The daemon's configuration: one TOML file, typed, checked when it is read. Every key has a default."""

from __future__ import annotations

import grp
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from weightd.core.errors import ConfigError
from weightd.core.models import NamedModel, check_models, parse_models
from weightd.core.parts import ALIGN
from weightd.core.paths import default_socket
from weightd.daemon.sizes import BudgetSpec, parse_budget, parse_period, parse_size
from weightd.daemon.toml import line_of
from weightd.sources.proxies import Proxy, parse_proxy

T = TypeVar("T")

SEE: Final = "See config.example.toml for every key and its default."


class DaemonSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[daemon]` as it is written."""

    socket: str = ""
    socket_group: str = ""
    socket_mode: str = "0660"
    state_dir: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    stop_timeout_s: float = 20.0


class TierSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[shm]` and `[nvme]` as they are written."""

    budget: str | int = "auto"


MIN_RATE = 64 * 1024
"""Bytes per second. With less, a part would take longer than origins keep a connection open."""


class FetchSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[fetch]` as it is written."""

    part_size: str | int = "16MiB"
    receivers: int = 16
    processes: int = 0
    transfers: int = 2
    hash_threads: int = 2
    write_threads: int = 2
    stall_timeout_s: float = 30.0
    retries: int = 4
    max_rate: str | int = 0


class HttpSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[http]` as it is written."""

    connections_per_host: int = 16
    connect_timeout_s: float = 10.0
    ca_file: str = ""
    proxy: str = ""
    no_proxy: str = ""


class VerifySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[verify]` as it is written."""

    every: str = ""
    max_rate: str | int = "64MiB"


class VerifyConfig(msgspec.Struct, frozen=True):
    """In the background. `every` in seconds, 0 for never; `max_rate` in bytes per second, 0 for no limit."""

    every: float
    max_rate: int


class HttpConfig(msgspec.Struct, frozen=True):
    """`connections_per_host`: requests under way at one origin, at most. `ca_file`: PEM, None for the system's.
    `proxy` None and `no_proxy` "" leave it to the environment."""

    connections_per_host: int
    connect_timeout_s: float
    ca_file: Path | None
    proxy: Proxy | None
    no_proxy: str


class FetchConfig(msgspec.Struct, frozen=True):
    """Of one transfer, but for `transfers`: how many may run at once. `part_size` in bytes, `retries` per part."""

    part_size: int
    receivers: int
    processes: int
    """In which all transfers receive over HTTP; 0: in the receivers' threads."""
    transfers: int
    hash_threads: int
    write_threads: int
    stall_timeout_s: float
    retries: int
    max_rate: int
    """Bytes per second of all transfers together, 0 for no limit."""


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
    shm_budget: BudgetSpec
    nvme_budget: BudgetSpec
    fetch: FetchConfig
    http: HttpConfig
    verify: VerifyConfig
    models: dict[str, NamedModel]
    file: Path | None = None


class Overrides(msgspec.Struct, frozen=True):
    """What the command line says goes before the file; "" says nothing."""

    socket: str = ""
    state_dir: str = ""
    log_level: str = ""
    log_format: str = ""
    shm_budget: str = ""
    nvme_budget: str = ""


def load_config(file: Path | None, *, env: Mapping[str, str], uid: int, overrides: Overrides | None = None) -> Config:
    """Read and check. Without `file`, the one of `find_config`, else the defaults. Raises ConfigError.

    The error names the key path and, where it can be found, the line.
    """
    file = file or find_config(env, uid)
    text = "" if file is None else _read(file)
    reader = _Reader(text, str(file) if file else "configuration")
    data = reader.parse()
    overrides = overrides or Overrides()
    daemon = reader.section("daemon", DaemonSection, data, overrides)
    shm = reader.section("shm", TierSection, data)
    nvme = reader.section("nvme", TierSection, data)
    base = file.parent if file else Path.cwd()
    return Config(
        socket=_path(daemon.socket, base) or default_socket_of(env, uid),
        socket_gid=reader.value(("daemon", "socket_group"), _group, daemon.socket_group),
        socket_mode=reader.value(("daemon", "socket_mode"), _mode, daemon.socket_mode),
        state_dir=_path(daemon.state_dir, base) or default_state_dir(env, uid),
        log_level=daemon.log_level,
        log_format=daemon.log_format,
        stop_timeout_s=reader.value(("daemon", "stop_timeout_s"), _between(0.1, 3600.0), daemon.stop_timeout_s),
        shm_budget=reader.budget("shm", shm.budget, overrides.shm_budget),
        nvme_budget=reader.budget("nvme", nvme.budget, overrides.nvme_budget),
        fetch=_fetch(reader, data),
        http=_http(reader, data, base),
        verify=_verify(reader, data),
        models=reader.models(data, base),
        file=file,
    )


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


class _Reader:
    """Turns parsed TOML into typed values; every fault names its key and line."""

    def __init__(self, text: str, where: str) -> None:
        self._text, self._where = text, where

    def parse(self) -> dict[str, Any]:
        try:
            data = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as e:
            raise ConfigError(f"{self._where} is not valid TOML: {e}", remedy=SEE) from None
        known = ("daemon", "shm", "nvme", "fetch", "http", "verify", "models")
        for key in data:
            if key not in known:
                raise self.fault((key,), f"unknown key; there are {', '.join(known)}")
        return data

    def section(self, name: str, kind: type[T], data: dict[str, Any], overrides: Overrides | None = None) -> T:
        raw = data.get(name, {})
        if not isinstance(raw, dict):
            raise self.fault((name,), f"must be a table; write [{name}] on a line of its own")
        if overrides is not None:
            given = {k: v for k, v in msgspec.structs.asdict(overrides).items() if v and not k.endswith("_budget")}
            raw = {**raw, **given}
        return self.typed((name,), kind, raw)

    def typed(self, path: tuple[str, ...], kind: type[T], raw: object) -> T:
        try:
            return msgspec.convert(raw, kind, strict=True)
        except msgspec.ValidationError as e:
            raise self._translate(path, str(e)) from None

    def _translate(self, path: tuple[str, ...], text: str) -> ConfigError:
        # msgspec: "Expected `int`, got `str` - at `$.part_size`", "Object contains unknown field `x`"
        what, _, at = text.partition(" - at ")
        path += tuple(re.findall(r"\.([A-Za-z0-9_-]+)", at))
        if unknown := re.search(r"unknown field `(.*)`", what):
            return self.fault((*path, unknown[1]), "unknown key")
        return self.fault(path, what.replace("`", ""))

    def value(self, path: tuple[str, ...], parse: Callable[[Any], T], raw: object) -> T:
        try:
            return parse(raw)
        except ValueError as e:
            raise self.fault(path, str(e)) from None

    def budget(self, tier: str, written: str | int, override: str) -> BudgetSpec:
        if override:
            return _Reader("", "command line").value((tier, "budget"), parse_budget, override)
        return self.value((tier, "budget"), parse_budget, written)

    def models(self, data: dict[str, Any], base: Path) -> dict[str, NamedModel]:
        raw = data.get("models", {})
        if isinstance(raw, str):
            file = base / raw
            try:
                text = file.read_bytes()
            except OSError as e:
                raise self.fault(("models",), f"{file} cannot be read: {e.strerror}") from None
            return parse_models(text, str(file))
        if not isinstance(raw, dict):
            raise self.fault(("models",), "must be the path of a models.json, or tables [models.<name>]")
        models = {name: self.typed(("models", name), NamedModel, one) for name, one in raw.items()}
        for name, model in models.items():
            line = line_of(self._text, ("models", name))
            check_models({name: model}, f"{self._where}, line {line}" if line else self._where)
        return models

    def fault(self, path: tuple[str, ...], what: str) -> ConfigError:
        line = line_of(self._text, path)
        at = f"{self._where}, line {line}" if line else self._where
        return ConfigError(f"{at}: {'.'.join(path)}: {what}", remedy=SEE)


def _fetch(reader: _Reader, data: dict[str, Any]) -> FetchConfig:
    section = reader.section("fetch", FetchSection, data)

    def whole(key: str, low: int, high: int) -> int:
        return int(reader.value(("fetch", key), _between(low, high), getattr(section, key)))

    return FetchConfig(
        part_size=reader.value(("fetch", "part_size"), _part_size, section.part_size),
        receivers=whole("receivers", 1, 256),
        processes=whole("processes", 0, 64),
        transfers=whole("transfers", 1, 64),
        hash_threads=whole("hash_threads", 1, 64),
        write_threads=whole("write_threads", 1, 64),
        stall_timeout_s=reader.value(("fetch", "stall_timeout_s"), _between(0.1, 3600.0), section.stall_timeout_s),
        retries=whole("retries", 0, 100),
        max_rate=reader.value(("fetch", "max_rate"), _rate, section.max_rate),
    )


def _http(reader: _Reader, data: dict[str, Any], base: Path) -> HttpConfig:
    section = reader.section("http", HttpSection, data)

    def value(key: str, low: float, high: float) -> float:
        return float(reader.value(("http", key), _between(low, high), getattr(section, key)))

    return HttpConfig(
        connections_per_host=int(value("connections_per_host", 1, 1024)),
        connect_timeout_s=value("connect_timeout_s", 0.1, 600.0),
        ca_file=_path(section.ca_file, base),
        proxy=reader.value(("http", "proxy"), parse_proxy, section.proxy) if section.proxy else None,
        no_proxy=section.no_proxy,
    )


def _verify(reader: _Reader, data: dict[str, Any]) -> VerifyConfig:
    section = reader.section("verify", VerifySection, data)
    return VerifyConfig(
        every=reader.value(("verify", "every"), parse_period, section.every),
        max_rate=reader.value(("verify", "max_rate"), _rate, section.max_rate),
    )


def _between(low: float, high: float) -> Callable[[float], float]:
    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"{value:g} is out of range; from {low:g} to {high:g}")
        return value

    return check


def _part_size(value: int | str) -> int:
    size = parse_size(value)
    if size % ALIGN or not (1 << 20) <= size <= (1 << 30):
        raise ValueError(f"{value!r}: a part is a multiple of {ALIGN} bytes, from 1MiB to 1GiB")
    return size


def _rate(value: int | str) -> int:
    rate = 0 if value in (0, "0") else parse_size(value)
    if 0 < rate < MIN_RATE:
        raise ValueError(f"{value!r} is out of range; 0 for no limit, or at least {MIN_RATE} bytes per second")
    return rate


def _mode(value: str) -> int:
    if not re.fullmatch(r"0?o?[0-7]{3}", value):
        raise ValueError(f'{value!r} is not a mode; write it as "0660"')
    return int(value.replace("o", ""), 8)


def _group(value: str) -> int | None:
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return int(value)
    try:
        return grp.getgrnam(value).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {value!r} on this host; make it (groupadd) or give a number") from None


def _path(value: str, base: Path) -> Path | None:
    return (base / Path(value).expanduser()) if value else None
