"""From parsed TOML to typed values: every fault names its key and line. And the checks that several sections share."""

from __future__ import annotations

import grp
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from weightd.core.errors import ConfigError
from weightd.daemon.sizes import parse_size
from weightd.daemon.toml import line_of

T = TypeVar("T")

SEE: Final = "See config.example.toml for every key and its default."
MIN_RATE: Final = 64 * 1024
"""Bytes per second. With less, a part would take longer than origins keep a connection open."""


class Reader:
    """Of one file. Each section is asked for by its reader; `finish` refuses what nobody asked for."""

    def __init__(self, text: str, where: str, base: Path) -> None:
        """`base`: the directory that paths in the file are relative to. Raises ConfigError for what is no TOML."""
        self._text, self._where, self.base = text, where, base
        self._asked: list[str] = []
        try:
            self._data: dict[str, object] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as e:
            raise ConfigError(f"{where} is not valid TOML: {e}", remedy=SEE) from None

    def raw(self, name: str) -> object:
        """What stands at a top-level key, None for nothing."""
        self._asked.append(name)
        return self._data.get(name)

    def section(self, name: str, kind: type[T], given: Mapping[str, str] | None = None) -> T:
        """The table `[name]`, checked against a struct; `given` goes before what stands there."""
        return self.typed((name,), kind, {**self.table(name), **(given or {})})

    def table(self, name: str) -> dict[str, object]:
        """The table `[name]` as it is written, empty where it is not."""
        raw = self.raw(name)
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            raise self.fault((name,), f"must be a table; write [{name}] on a line of its own")
        return raw

    def tables(self, name: str, kind: type[T]) -> list[T]:
        """Each table `[[name]]`, in their order. A fault in one is at the path (name, "0", key)."""
        raw = self.raw(name)
        if raw is None:
            return []
        if not isinstance(raw, list) or not all(isinstance(one, dict) for one in raw):
            raise self.fault((name,), f"must be tables; write [[{name}]] on a line of its own before each")
        return [self.typed((name, str(i)), kind, one) for i, one in enumerate(raw)]

    def typed(self, path: tuple[str, ...], kind: type[T], raw: object) -> T:
        """Raises ConfigError for what is of another type, and for keys that `kind` does not have."""
        try:
            return msgspec.convert(raw, kind, strict=True)
        except msgspec.ValidationError as e:
            raise self._translate(path, str(e)) from None

    def _translate(self, path: tuple[str, ...], text: str) -> ConfigError:
        # msgspec: "Expected `int`, got `str` - at `$.files[0].size`", "Object contains unknown field `x`"
        what, _, at = text.partition(" - at ")
        path += tuple(key or index for key, index in re.findall(r"\.([A-Za-z0-9_-]+)|\[(\d+)\]", at))
        if unknown := re.search(r"unknown field `(.*)`", what):
            return self.fault((*path, unknown[1]), "unknown key")
        return self.fault(path, what.replace("`", ""))

    def value(self, path: tuple[str, ...], parse: Callable[[Any], T], raw: object) -> T:
        """What `parse` makes of it; its ValueError becomes a ConfigError that names the key and line."""
        try:
            return parse(raw)
        except ValueError as e:
            raise self.fault(path, str(e)) from None

    def path(self, value: str) -> Path | None:
        """Relative to the file, with ~; None for ""."""
        return (self.base / Path(value).expanduser()) if value else None

    def at(self, path: tuple[str, ...]) -> str:
        """The file and, where it can be found, the line of a key."""
        line = line_of(self._text, path)
        return f"{self._where}, line {line}" if line else self._where

    def fault(self, path: tuple[str, ...], what: str) -> ConfigError:
        return ConfigError(f"{self.at(path)}: {'.'.join(path)}: {what}", remedy=SEE)

    def finish(self) -> None:
        """Once all sections were asked for. Raises ConfigError for a top-level key that none of them is."""
        for key in self._data:
            if key not in self._asked:
                raise self.fault((key,), f"unknown key; there are {', '.join(self._asked)}")


def between(low: float, high: float) -> Callable[[float], float]:
    """A check that a number lies there, both ends included."""

    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"{value:g} is out of range; from {low:g} to {high:g}")
        return value

    return check


def whole(low: int, high: int) -> Callable[[int], int]:
    """As `between`, for whole numbers."""
    check = between(low, high)
    return lambda value: int(check(value))


def rate(value: int | str) -> int:
    """Bytes per second, 0 for no limit."""
    found = 0 if value in (0, "0") else parse_size(value)
    if 0 < found < MIN_RATE:
        raise ValueError(f"{value!r} is out of range; 0 for no limit, or at least {MIN_RATE} bytes per second")
    return found


def socket_mode(value: str) -> int:
    """Of a socket, as "0660"."""
    if not re.fullmatch(r"0?o?[0-7]{3}", value):
        raise ValueError(f'{value!r} is not a mode; write it as "0660"')
    return int(value.replace("o", ""), 8)


def group_id(value: str) -> int | None:
    """A group of this host, by its name or number; None for ""."""
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return int(value)
    try:
        return grp.getgrnam(value).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {value!r} on this host; make it (groupadd) or give a number") from None
