"""What the state machine plays with: models that share blobs, each file in two versions, and what they take."""

from __future__ import annotations

from typing import NamedTuple

from tests.engine.rig import pattern, sha256
from weightd.core.digest import Digest
from weightd.core.policy import Policy, Rule, Rules
from weightd.storage.pages import footprint

PAGE = 4096
KEEP_IDLE_S = 5.0
SIZES = {"base": 70_000, "large": 130_000, "part": 1 << 16, "pages": 10 * PAGE, "byte": 1, "empty": 0}
"""Of each content: several parts and a rest, exactly one, whole pages, next to nothing, nothing."""


class File(NamedTuple):
    """Of a model; `named`: its source says its digest, so that it need not come where that is held."""

    content: str
    named: bool = False


MODELS: dict[str, dict[str, File]] = {
    "http://origin/first/": {"model.bin": File("large"), "base.bin": File("base", named=True)},
    "http://origin/second/": {"model.bin": File("part"), "base.bin": File("base")},
    "http://origin/third/": {"deep/er.bin": File("pages"), "base.bin": File("base", named=True), "no": File("empty")},
    "cold": {"byte.bin": File("byte"), "pages.bin": File("pages", named=True)},
    "both": {"a.bin": File("large", named=True), "b.bin": File("part", named=True)},
}
RULES = Rules({"cold": Rule(Policy.COLD, KEEP_IDLE_S)})
FILES = [(ref, path) for ref, files in MODELS.items() for path in files]
Versions = dict[tuple[str, str], int]
"""What the origin has of each file (ref, path) now: 0 or 1; 0 where it is not named."""

CONTENT = {(name, v): pattern(size, f"{name} {v}") for name, size in SIZES.items() for v in (0, 1)}
BY_DIGEST: dict[Digest, bytes] = {sha256(data): data for data in CONTENT.values()}


def digest_at(versions: Versions, ref: str, path: str) -> Digest:
    """Of what the origin serves."""
    return _DIGESTS[MODELS[ref][path].content, versions.get((ref, path), 0)]


_DIGESTS = {key: sha256(data) for key, data in CONTENT.items()}


def pages(digest: Digest) -> int:
    """Bytes that a blob takes in a tier."""
    return footprint(len(BY_DIGEST[digest]))
