"""What each actor does, step by step. Pure: the same seed gives the same steps, whatever becomes of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from soak.origin import FAULTS
from soak.world import FILES, MODELS

KEYS = [m.key for m in MODELS]
WEIGHTS = [3 if m.key == "big/" else 2 for m in MODELS]


@dataclass(frozen=True)
class Step:
    """`pause` in seconds, after it."""

    pause: float


@dataclass(frozen=True)
class Fetch(Step):
    """`cancel` or `kill` after so many seconds, where not None. `sha256` is given: "right", "wrong" or ""."""

    key: str
    tier: str
    sha256: str
    by_command: bool
    cancel: float | None


@dataclass(frozen=True)
class Hold(Step):
    """A worker process acquires `keys`, compares every byte, and keeps them mapped for `seconds`; with `clings` not
    leased meanwhile."""

    keys: tuple[str, ...]
    seconds: float
    clings: bool
    signal: str
    """"" or what it gets after `at` seconds: "kill", or "stop" and "cont" `stopped` seconds later."""
    at: float
    stopped: float


@dataclass(frozen=True)
class Export(Step):
    """`fetch --to`, killed after each of `kills` seconds and begun again; then to its end."""

    key: str
    kills: tuple[float, ...]


@dataclass(frozen=True)
class Verify(Step):
    key: str
    quick: bool
    by_command: bool
    cancel: float | None


@dataclass(frozen=True)
class Damage(Step):
    """To the blob at `pick` of those on disk, 0 to 1. Whoever loads it may find it in the next `wait` seconds, with
    `acquire` we do; then it is verified."""

    pick: float
    how: str
    where: float
    wait: float
    acquire: bool


@dataclass(frozen=True)
class Kill(Step):
    """The daemon ends: "kill", "term" or "int", and is started again; with `wipe` on an empty state directory, else
    with `ledger` done to a ledger or the data of a kept ingest."""

    how: str
    wipe: bool
    ledger: str


@dataclass(frozen=True)
class Operate(Step):
    """`verb`: "pin", "unpin", "evict", "remove" or "load"."""

    verb: str
    key: str


@dataclass(frozen=True)
class Rest(Step):
    """Nothing but the pause."""


@dataclass(frozen=True)
class Fill(Step):
    """Take all of /dev/shm but `leave` of what is free, for `seconds`."""

    leave: float
    seconds: float


@dataclass(frozen=True)
class Change(Step):
    name: str
    factor: float


@dataclass(frozen=True)
class Chase(Step):
    """Change the file of which a part is asked for next, in the middle of its fetch."""

    seconds: float


@dataclass(frozen=True)
class Break(Step):
    name: str
    fault: str
    times: int


Draw = Callable[[random.Random], Step]


def _maybe(rng: random.Random, chance: float, low: float, high: float) -> float | None:
    value = rng.uniform(low, high)
    return value if rng.random() < chance else None


def _fetch(rng: random.Random) -> Step:
    return Fetch(
        pause=rng.uniform(0.1, 2.0),
        key=rng.choices(KEYS, WEIGHTS)[0],
        tier=rng.choice(["shm", "nvme"]),
        sha256=rng.choices(["", "right", "wrong"], [8, 1, 1])[0],
        by_command=rng.random() < 0.15,
        cancel=_maybe(rng, 0.25, 0.0, 2.5),
    )


def _hold(rng: random.Random) -> Step:
    return Hold(
        pause=rng.uniform(0.2, 2.0),
        keys=tuple(rng.choices(KEYS, WEIGHTS, k=rng.randint(1, 3))),
        seconds=rng.uniform(0.5, 12.0),
        clings=rng.random() < 0.2,
        signal=rng.choices(["", "kill", "stop"], [5, 2, 2])[0],
        at=rng.uniform(0.2, 6.0),
        stopped=rng.uniform(0.5, 6.0),
    )


def _export(rng: random.Random) -> Step:
    return Export(
        pause=rng.uniform(1.0, 4.0),
        key=rng.choices(KEYS, WEIGHTS)[0],
        kills=tuple(rng.uniform(0.5, 3.0) for _ in range(rng.choice([0, 1, 1, 2, 3]))),
    )


def _verify(rng: random.Random) -> Step:
    return Verify(
        pause=rng.uniform(8.0, 25.0),
        key=rng.choice(["", *KEYS]),
        quick=rng.random() < 0.3,
        by_command=rng.random() < 0.3,
        cancel=_maybe(rng, 0.2, 0.0, 1.0),
    )


def _damage(rng: random.Random) -> Step:
    return Damage(
        pause=rng.uniform(5.0, 20.0),
        pick=rng.random(),
        how=rng.choice(["flip", "flip", "zero", "cut", "remove", "longer"]),
        where=rng.random(),
        wait=rng.choice([0.0, 2.0, 6.0]),
        acquire=rng.random() < 0.5,
    )


def _kill(rng: random.Random) -> Step:
    kind = rng.choices(["kill", "term", "int", "rest"], [5, 2, 1, 2])[0]
    pause, wipe = rng.uniform(2.0, 20.0), rng.random() < 0.25
    ledger = rng.choices(["", "cut", "zero", "flip", "data"], [4, 1, 1, 1, 2])[0]
    return Rest(pause + 15) if kind == "rest" else Kill(pause, kind, wipe, "" if wipe else ledger)


def _operate(rng: random.Random) -> Step:
    verb = rng.choices(["pin", "unpin", "evict", "remove", "load"], [2, 5, 6, 2, 5])[0]
    return Operate(rng.uniform(0.5, 4.0), verb, rng.choices(KEYS, WEIGHTS)[0])


def _fill(rng: random.Random) -> Step:
    return Fill(rng.uniform(15.0, 45.0), leave=rng.choice([0.0, 0.05, 0.3]), seconds=rng.uniform(1.0, 6.0))


def _tamper(rng: random.Random) -> Step:
    if rng.random() < 0.1:
        return Chase(rng.uniform(0.5, 4.0), seconds=3.0)
    if rng.random() < 0.1:
        file = rng.choice([f for f in FILES if f.name != "big/model.safetensors" or rng.random() < 0.3])
        return Change(rng.uniform(0.5, 4.0), file.name, rng.choice([1.0, 1.0, 1.0, 0.9, 1.1]))
    file = rng.choice(FILES)
    fault = rng.choice([f for f in FAULTS if f != "flip" and (f != "long" or file.ranges)])
    if file.pinned and rng.random() < 0.4:
        fault = "flip"
    return Break(rng.uniform(0.1, 1.5), file.name, fault, rng.choice([1, 1, 2, 3, 8]))


ACTORS: dict[str, Draw] = {
    "fetch-1": _fetch,
    "fetch-2": _fetch,
    "hold-1": _hold,
    "hold-2": _hold,
    "hold-3": _hold,
    "export": _export,
    "verify": _verify,
    "damage": _damage,
    "kill": _kill,
    "operate": _operate,
    "fill": _fill,
    "tamper": _tamper,
}


def steps(seed: int, actor: str) -> Iterator[Step]:
    """Without end."""
    rng = random.Random(f"{seed}/{actor}")
    while True:
        yield ACTORS[actor](rng)
