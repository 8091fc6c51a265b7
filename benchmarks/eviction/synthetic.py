"""Made-up traces: what hosts are known to do, each by itself. All of a trace follows from its kind and its seed.

A fleet is 48 models of 0.1 to 140 GB, log-uniform; each third is a variant of another one and shares most of its blobs.
Origins differ by up to four times in how fast they are. A trace is some 1,500 leases in 14 days, most of them of
minutes. Times in seconds, sizes in bytes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from benchmarks.eviction.trace import File, Request, Snapshot, Trace

MODELS, LEASES = 48, 1500
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
LENGTH = 14 * DAY
SMALLEST, LARGEST = 0.1e9, 140e9
FILES = 6
"""Files of a model at most. Real ones have more; who has which of six decides as much, and is decided sooner."""

Moment = tuple[float, int]
"""When, and the number of the model."""


class Fleet(NamedTuple):
    """The models that there are, as they are at first; `rng` makes what is still to be decided."""

    rng: random.Random
    models: list[Snapshot]
    paces: dict[str, float]


def fleet(rng: random.Random) -> Fleet:
    models: list[Snapshot] = []
    for number in range(MODELS):
        ref = f"model-{number:02}"
        models.append(_variant(rng, rng.choice(models), ref) if number % 3 == 2 else _model(rng, ref))
    return Fleet(rng, models, {m.ref: _log_uniform(rng, 0.5, 2.0) for m in models})


def _model(rng: random.Random, ref: str) -> Snapshot:
    count = rng.randint(1, FILES)
    each = int(_log_uniform(rng, SMALLEST, LARGEST) / count)
    return Snapshot(ref, "0", tuple(File(f"{ref}/0/{n}", each) for n in range(count)))


def _variant(rng: random.Random, base: Snapshot, ref: str) -> Snapshot:
    """A fine-tune: one file of its own, the others are those of its base."""
    own = rng.randrange(len(base.files))
    files = [File(f"{ref}/0/{n}", f.size) if n == own else f for n, f in enumerate(base.files)]
    adapter = File(f"{ref}/0/adapter", int(_log_uniform(rng, 0.02e9, 1e9)))
    return Snapshot(ref, "0", tuple(files) if len(files) > 1 else (*base.files, adapter))


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _zipf(rng: random.Random, count: int) -> list[float]:
    """Weights of models in random order of popularity."""
    exponent = rng.uniform(0.7, 1.2)
    weights = [1 / rank**exponent for rank in range(1, count + 1)]
    rng.shuffle(weights)
    return weights


def _poisson(rng: random.Random, count: float, begin: float, end: float) -> Iterator[float]:
    """Some `count` moments between the two."""
    now = begin
    while (now := now + rng.expovariate(count / (end - begin))) < end:
        yield now


def steady(f: Fleet) -> Iterator[Moment]:
    """Some models are asked for more often than others, and that stays so."""
    weights = _zipf(f.rng, MODELS)
    for at in _poisson(f.rng, LEASES, 0, LENGTH):
        yield at, f.rng.choices(range(MODELS), weights)[0]


def drift(f: Fleet) -> Iterator[Moment]:
    """As steady, but twice a day two models change places: one of the most popular and any other."""
    weights = _zipf(f.rng, MODELS)
    changes = sorted(_poisson(f.rng, 2 * LENGTH / DAY, 0, LENGTH))
    for at in _poisson(f.rng, LEASES, 0, LENGTH):
        while changes and changes[0] < at:
            changes.pop(0)
            one = f.rng.choice(sorted(range(MODELS), key=lambda n: -weights[n])[:8])
            other = f.rng.randrange(MODELS)
            weights[one], weights[other] = weights[other], weights[one]
        yield at, f.rng.choices(range(MODELS), weights)[0]


def scans(f: Fleet) -> Iterator[Moment]:
    """A third of the models is in use; on most days somebody goes through all of them, one after the other."""
    weights = _zipf(f.rng, MODELS // 3)
    days = sorted(_poisson(f.rng, 0.7 * LENGTH / DAY, 0, LENGTH))
    used = f.rng.sample(range(MODELS), len(weights))
    for at in _poisson(f.rng, LEASES - len(days) * MODELS, 0, LENGTH):
        yield at, f.rng.choices(used, weights)[0]
    for day in days:
        for place, model in enumerate(f.rng.sample(range(MODELS), MODELS)):
            yield day + place * 2 * MINUTE, model


def diurnal(f: Fleet) -> Iterator[Moment]:
    """Twelve hours a day belong to some models, the others to others; a few are used at all times."""
    order = f.rng.sample(range(MODELS), MODELS)
    always, halves = order[:6], (order[6:27], order[27:])
    sets = [[*always, *half] for half in halves]
    weights = [_zipf(f.rng, len(s)) for s in sets]
    for at in _poisson(f.rng, LEASES, 0, LENGTH):
        night = int(at % DAY >= DAY / 2)
        yield at, f.rng.choices(sets[night], weights[night])[0]


def projects(f: Fleet) -> Iterator[Moment]:
    """Somebody works with two to four models for one to four days, ten hours a day in bursts; then with others. Three
    such projects at a time."""
    for _ in range(3):
        begin = -f.rng.uniform(0, 3 * DAY)
        while begin < LENGTH:
            end = begin + f.rng.uniform(DAY, 4 * DAY)
            models = f.rng.sample(range(MODELS), f.rng.randint(2, 4))
            yield from _project(f, models, max(0.0, begin), min(end, LENGTH))
            begin = end


def _project(f: Fleet, models: list[int], begin: float, end: float) -> Iterator[Moment]:
    for burst in _poisson(f.rng, 14 * max(0.1, (end - begin) / DAY), begin, end) if end > begin else ():
        if 8 * HOUR <= burst % DAY < 18 * HOUR:
            for at in _poisson(f.rng, 6, burst, burst + 30 * MINUTE):
                yield at, f.rng.choice(models)


def batches(f: Fleet) -> Iterator[Moment]:
    """Jobs that go through the same list of models again and again, for a day or so; beside them a fifth of the leases
    are of any."""
    begin = 0.0
    while begin < LENGTH:
        end = min(LENGTH, begin + f.rng.uniform(0.5 * DAY, 2 * DAY))
        models = f.rng.sample(range(MODELS), f.rng.randint(8, 24))
        count = int(0.8 * LEASES * (end - begin) / LENGTH)
        for turn in range(count):
            yield begin + (end - begin) * turn / count, models[turn % len(models)]
        begin = end
    weights = _zipf(f.rng, MODELS)
    for at in _poisson(f.rng, 0.2 * LEASES, 0, LENGTH):
        yield at, f.rng.choices(range(MODELS), weights)[0]


def _deploys(f: Fleet) -> dict[int, list[float]]:
    """For each model, when it is deployed anew: about every four days."""
    return {n: sorted(_poisson(f.rng, LENGTH / (4 * DAY), 0, LENGTH)) for n in range(MODELS)}


def _revised(rng: random.Random, old: Snapshot, revision: str) -> Snapshot:
    """The next revision: one of its files is another."""
    changed = rng.randrange(len(old.files))
    fresh = File(f"{old.ref}/{revision}/{changed}", old.files[changed].size)
    return Snapshot(old.ref, revision, tuple(fresh if n == changed else x for n, x in enumerate(old.files)))


Kind = Callable[[Fleet], Iterable[Moment]]
KINDS: dict[str, Kind] = {
    "steady": steady,
    "drift": drift,
    "scans": scans,
    "diurnal": diurnal,
    "projects": projects,
    "batches": batches,
    "deploys": drift,
}
"""In `deploys` models are as popular as in `drift`, and get new revisions, which share all files but one with the old
one."""


def make(kind: str, seed: int) -> Trace:
    rng = random.Random(f"{kind}/{seed}")
    f = fleet(rng)
    moments = sorted(KINDS[kind](f))
    deploys = _deploys(f) if kind == "deploys" else {}
    snapshots = {m.key: m for m in f.models}
    now = list(f.models)
    requests = []
    for at, number in moments:
        while deploys.get(number) and deploys[number][0] <= at:
            deploys[number].pop(0)
            now[number] = _revised(rng, now[number], str(int(now[number].revision) + 1))
            snapshots[now[number].key] = now[number]
        # Shorter than most pauses between two leases: what matters is who goes of those that may.
        requests.append(Request(at, *now[number].key, held=_log_uniform(rng, 5.0, HOUR)))
    return Trace(kind, snapshots, tuple(requests), f.paces, about=f"made up, {kind}, seed {seed}")
