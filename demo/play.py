"""What the demo does, step by step, and what it measures."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from demo import memory
from demo.processes import Child, Children, DemoError
from demo.snapshot import SENTENCES, WEIGHTS
from demo.sources import Source

SHM = "/dev/shm/"
TOLERANCE = 1e-6
"""Of embeddings, which have length 1: a few units in the last place of float32."""
COPIES = (0.98, 1.02)
"""What counts as one copy: the segment's size against the workers' summed PSS."""
TENSOR = "encoder.layer.0.attention.self.query.weight"


class Way(NamedTuple):
    """One way to load the model in all workers at once. Seconds are of the slowest worker, bytes are summed.

    `weights` is the PSS of the mappings of the weights' file or segment, `private` the growth of private memory of the
    whole processes, `growth` the growth of their PSS.
    """

    acquire: tuple[float, ...]
    load: float
    first: float
    weights: int
    private: int
    growth: int
    vectors: list[list[list[float]]]
    totals: list[float]
    levels: dict[str, list[str]]
    """Files by how far each was verified, of what came through weightd."""


class Play:
    """The processes of one demo below the directory `home`."""

    def __init__(self, console: Console, children: Children, model: Path, home: Path, source: Source) -> None:
        self.console, self.children, self.model, self.home, self.source = console, children, model, home, source
        self.size = (model / WEIGHTS).stat().st_size
        self.segments: set[str] = set()
        self.workers: list[Child] = []

    @property
    def ref(self) -> str:
        return self.source.ref

    @property
    def cache(self) -> Path:
        """The Hugging Face cache of the workers."""
        return self.home / "hub"

    def start_daemon(self, config: Path, address: Path) -> Child:
        daemon = self.children.python(
            "daemon", ["weightd", "serve", "--at-stop", "drop", "--config", str(config)], more=self.source.environment
        )
        until = time.monotonic() + 30
        while not _listens(address):
            if daemon.process.poll() is not None:
                raise daemon.died()
            if time.monotonic() > until:
                raise DemoError(f"the daemon does not listen{daemon.last_words()}")
            time.sleep(0.02)
        return daemon

    def start_workers(self) -> None:
        offline = {"TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(self.cache)}
        names = [f"worker {n + 1}" for n in range(len(SENTENCES))]
        self.workers = [self.children.python(name, ["demo.worker"], more=offline) for name in names]

    def workers_ready(self) -> float:
        """Seconds that importing took, of the slowest."""
        return float(max(w.answer()["ready"] for w in self.workers))

    def weightd(self, command: str, *arguments: str) -> None:
        """With its output on our terminal. Raises DemoError unless it succeeds."""
        self.children.python(f"weightd {command}", ["weightd", command, *arguments], terminal=True).wait()

    def sent(self) -> tuple[int, str]:
        """Bytes that the source sent, and what it says of its requests. Raises DemoError where those are too few."""
        count, told = self.source.counted()
        if count < self.size:
            raise DemoError(f"the source sent {count} bytes; the weights have {self.size}: they came from elsewhere")
        return count, told

    def all(self, order: str, **arguments: Any) -> list[Any]:
        """One order to all workers at the same time."""
        for worker in self.workers:
            worker.ask({"do": order, **arguments})
        return [w.answer() for w in self.workers]

    def one(self, number: int, order: str, **arguments: Any) -> Any:
        self.workers[number].ask({"do": order, **arguments})
        return self.workers[number].answer()

    def way(self, order: str, file: str) -> Way:
        """Load and use the model in all workers; measure while all hold it. `file` begins the weights' path."""
        before = [memory.usage(w.pid) for w in self.workers]
        for worker, sentences in zip(self.workers, SENTENCES, strict=True):
            worker.ask({"do": order, "ref": self.ref, "directory": str(self.model), "sentences": sentences})
        answers = [w.answer() for w in self.workers]
        after = [memory.usage(w.pid) for w in self.workers]
        maps = [memory.mappings(w.pid, file) for w in self.workers]
        if file == SHM:
            self.segments = self._same_segments(maps)
        return Way(
            acquire=tuple(a["acquire"] for a in answers),
            load=max(a["load"] for a in answers),
            first=max(a["first"] for a in answers),
            weights=sum(m.pss for ms in maps for m in ms),
            private=sum(a.private - b.private for a, b in zip(after, before, strict=True)),
            growth=sum(a.pss - b.pss for a, b in zip(after, before, strict=True)),
            vectors=[a["vectors"] for a in answers],
            totals=[a["total"] for a in answers],
            levels=answers[0].get("levels", {}),
        )

    def _same_segments(self, maps: list[list[memory.Mapping]]) -> set[str]:
        names = [{m.path for m in ms} for ms in maps]
        if not names[0] or any(n != names[0] for n in names):
            raise DemoError(f"the workers do not map the same segments: {names}")
        return names[0]

    @property
    def segment_bytes(self) -> int:
        """Of the segments that the workers map, in whole pages."""
        page = 4096
        return sum(-(-Path(s).stat().st_size // page) * page for s in self.segments)


def _listens(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.connect(str(address))
        except OSError:
            return False
    return True


def check_same(way: Way, usual: Way) -> float:
    """The largest difference of any number in any embedding. Raises DemoError when it is not tiny."""
    pairs = zip(way.vectors, usual.vectors, strict=True)
    difference = max(check_near(a, b) for a, b in pairs)
    if len({*way.totals, *usual.totals}) != 1:
        raise DemoError(f"the weights' sums differ: {way.totals}, the usual way {usual.totals}")
    return difference


def check_near(vectors: list[list[float]], others: list[list[float]]) -> float:
    """The largest difference of any number. Raises DemoError when it is not tiny."""
    difference = max(abs(x - y) for u, v in zip(vectors, others, strict=True) for x, y in zip(u, v, strict=True))
    if not difference <= TOLERANCE:
        raise DemoError(f"the embeddings differ from the usual way's by {difference:.2g}, more than {TOLERANCE:.0e}")
    return difference


def check_one_copy(way: Way, size: int) -> float:
    """Copies of the weights in all workers together. Raises DemoError when it is not one."""
    copies = way.weights / size
    if not COPIES[0] <= copies <= COPIES[1]:
        raise DemoError(f"the workers' memory adds up to {copies:.2f} copies of the model, not one")
    return copies


def check_stopped(result: dict[str, str]) -> None:
    """Raises DemoError when a write through a handle worked."""
    for name, reason in result.items():
        if not reason:
            raise DemoError(f"a write through a handle was not stopped: {name}")


def likeness(vectors: list[list[list[float]]]) -> tuple[list[float], float]:
    """Cosine within each worker's pair, and the largest between sentences of different workers."""
    within = [_dot(pair[0], pair[1]) for pair in vectors]
    across = max(_dot(a, b) for i, one in enumerate(vectors) for other in vectors[i + 1 :] for a in one for b in other)
    return within, across


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
