"""What exists: models, their files, every honest version of each; all of it follows from one seed."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from weightd.core.digest import Digest, digest_of

MIB = 1 << 20
INDEX = "model.safetensors.index.json"
SHARDS = tuple(f"model-{i:05}-of-00004.safetensors" for i in range(1, 5))


@dataclass(frozen=True)
class FileDef:
    """A file at the origin. `size` in bytes at full scale. `etag` and `modified`: whether answers name the version so.

    `pinned`: the configuration gives its SHA-256, so that any other bytes have to be refused.
    """

    name: str
    size: int
    etag: bool = True
    modified: bool = True
    ranges: bool = True
    length: bool = True
    pinned: bool = False


@dataclass(frozen=True)
class ModelDef:
    """`files` maps paths in the model to names at the origin. `key` is the configured name, or where its URL leads."""

    key: str
    files: Mapping[str, str]
    named: bool = False
    local: bool = False
    base: str = ""
    """Of a named model: the directory at the origin."""


FILES = [
    FileDef("raw/empty.bin", 0),
    FileDef("raw/odd.bin", 5 * MIB + 17),
    FileDef("raw/stream.bin", 7 * MIB + 1, ranges=False),
    FileDef("raw/unnamed.bin", 9 * MIB + 5, etag=False, modified=False),
    FileDef("raw/dated.bin", 24 * MIB + 4095, etag=False),
    FileDef("tiny/config.json", 600),
    FileDef("tiny/model.safetensors", 2 * MIB),
    FileDef("big/config.json", 600),
    FileDef("big/model.safetensors", 200 * MIB),
    FileDef(f"shards/{INDEX}", 0),
    FileDef("shards/config.json", 600),
    *(FileDef(f"shards/{name}", (20 + 7 * i) * MIB + i) for i, name in enumerate(SHARDS)),
    FileDef("pinned/one.bin", 40 * MIB + 3, pinned=True),
    FileDef("pinned/chunked.bin", 6 * MIB + 2, ranges=False, length=False, pinned=True),
    FileDef("pair/x.bin", 16 * MIB, pinned=True),
    FileDef("pair/y.bin", 24 * MIB + 1, pinned=True),
    FileDef("pair/z.bin", 8 * MIB, pinned=True),
    FileDef("local/config.json", 600),
    FileDef("local/model.safetensors", 12 * MIB),
]
MODELS = [
    *(ModelDef(f.name, {f.name.rpartition("/")[2]: f.name}) for f in FILES if f.name.startswith("raw/")),
    ModelDef("tiny/", {n: f"tiny/{n}" for n in ("config.json", "model.safetensors")}),
    ModelDef("big/", {n: f"big/{n}" for n in ("config.json", "model.safetensors")}),
    ModelDef("shards/", {n: f"shards/{n}" for n in (INDEX, "config.json", *SHARDS)}),
    # Two of the shards once more, under the same addresses: files that models share.
    ModelDef("half", {n: f"shards/{n}" for n in SHARDS[:2]}, named=True, base="shards/"),
    ModelDef("one", {"one.bin": "pinned/one.bin"}, named=True, base="pinned/"),
    ModelDef("chunked", {"chunked.bin": "pinned/chunked.bin"}, named=True, base="pinned/"),
    ModelDef("pair-a", {"x.bin": "pair/x.bin", "y.bin": "pair/y.bin"}, named=True, base="pair/"),
    ModelDef("pair-b", {"y.bin": "pair/y.bin", "z.bin": "pair/z.bin"}, named=True, base="pair/"),
    ModelDef("local/", {n: f"local/{n}" for n in ("config.json", "model.safetensors")}, local=True),
]


@dataclass
class Version:
    """One file as the origin has it now. `honest`: weightd may answer with these bytes."""

    number: int
    data: bytes
    digest: Digest
    honest: bool


@dataclass
class World:
    """Thread-safe. `scale` multiplies the sizes; `local` is where the files of file:// models are."""

    seed: int
    scale: float
    local: Path
    files: dict[str, FileDef] = field(default_factory=lambda: {f.name: f for f in FILES})
    models: dict[str, ModelDef] = field(default_factory=lambda: {m.key: m for m in MODELS})

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._now: dict[str, Version] = {}
        self._honest: dict[str, set[Digest]] = {name: set() for name in self.files}
        self.url = ""
        """Of the origin, with "/" at its end."""
        for name in self.files:
            self._now[name] = self._make(name, 0, 1.0)
            self._honest[name].add(self._now[name].digest)

    def current(self, name: str) -> Version:
        with self._lock:
            return self._now[name]

    def next_version(self, name: str, factor: float) -> Version:
        """Make another version, `factor` times as large, and count it as honest unless the file is pinned: for a
        pinned one, foreign bytes and the true ones take turns."""
        now = self.current(name)
        if self.files[name].pinned and not now.honest:
            version = self._make(name, 0, 1.0)
        else:
            version = self._make(name, now.number + 1, factor)
        with self._lock:
            if version.honest:
                self._honest[name].add(version.digest)
            self._now[name] = version
        return version

    def is_honest(self, key: str, path: str, digest: Digest) -> bool:
        """Whether weightd may say that these are the bytes of this file."""
        name = self.models[key].files.get(path)
        with self._lock:
            return name is not None and digest in self._honest[name]

    def every_digest(self) -> set[Digest]:
        """Of everything that may be held."""
        with self._lock:
            return set().union(*self._honest.values())

    def ref(self, key: str) -> str:
        """What a user says."""
        model = self.models[key]
        if model.named:
            return key
        return f"{(self.local / key).as_uri()}/" if model.local else self.url + key

    def key_of(self, ref: str) -> str:
        """The inverse of `ref`."""
        return next(key for key in self.models if self.ref(key) == ref)

    def configuration(self) -> dict[str, Any]:
        """The named models, as models.json has them."""
        named = [m for m in self.models.values() if m.named]
        return {
            m.key: {"source": self.url + m.base, "files": [self._named(p, n) for p, n in m.files.items()]}
            for m in named
        }

    def _named(self, path: str, name: str) -> str | dict[str, object]:
        if not self.files[name].pinned:
            return path
        version = self.current(name)
        return {"path": path, "size": len(version.data), "sha256": version.digest}

    def _make(self, name: str, number: int, factor: float) -> Version:
        file = self.files[name]
        size = int(file.size * (self.scale if file.size > 10_000 else 1) * factor)
        data = _content(f"{self.seed}/{name}/{number}", name, size)
        return Version(number, data, digest_of(hashlib.sha256(data).digest()), not file.pinned or number == 0)


def _content(seed: str, name: str, size: int) -> bytes:
    if name.endswith(INDEX):
        return json.dumps({"weight_map": {f"t{i}": shard for i, shard in enumerate(SHARDS)}}).encode()
    if name.endswith(".json"):
        return json.dumps({"seed": seed, "text": random.Random(seed).randbytes(size // 3).hex()}).encode()
    if not name.endswith(".safetensors"):
        return _noise(seed, size)
    header = json.dumps({"t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + _noise(seed, size)


def _noise(seed: str, size: int) -> bytes:
    """No part of it is like another one, in this file or in any other."""
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "big")
    return np.random.Generator(np.random.PCG64(key)).bytes(size)
