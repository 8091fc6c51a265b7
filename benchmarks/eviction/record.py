"""`python -m benchmarks.eviction.record`: what a daemon serves, written as a trace while it happens.

It is one more watcher: the daemon is not slowed. What it cannot know, such as what happened while no daemon answered,
the trace tells as a gap. Ctrl-C, SIGTERM or `--time` end it. With `--anonymous` refs, revisions and digests are
numbers, so that a trace can be given away; sizes and times stay.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from benchmarks.eviction.trace import Acquired, File, Gap, Header, Line, Lost, Released, Snapshot, encode
from benchmarks.machine import Unable
from weightd.client.client import Client, Watch
from weightd.client.types import EventInfo, EventKind, ModelInfo
from weightd.core.errors import TooSlow, Unavailable, WeightdError
from weightd.core.period import parse_period

AGAIN_S: Final = 0.2
"""Between two attempts to reach a daemon that has ended."""
_LINES: Final[dict[EventKind, type[Acquired | Released]]] = {EventKind.ACQUIRED: Acquired, EventKind.RELEASED: Released}


class Recorder:
    """Of one daemon, and of those that follow it on its socket. `stop` may be called from any thread."""

    def __init__(self, client: Client, out: BinaryIO, about: str, *, anonymous: bool = False) -> None:
        self._client, self._out = client, out
        self._numbers: dict[str, int] | None = {} if anonymous else None
        self._known: set[tuple[str, str]] = set()
        self._stopping = threading.Event()
        self._watch: Watch | None = None
        self.requests = 0
        self._write(Header(about=about))

    def run(self) -> None:
        """Until `stop`. Raises Unavailable where no daemon answers at first."""
        self._open()
        while not self._stopping.is_set():
            self._write(Gap(time.time(), self._follow()))
            while not self._stopping.wait(AGAIN_S):
                try:
                    self._open()
                    break
                except Unavailable:
                    continue

    def stop(self) -> None:
        """Idempotent."""
        self._stopping.set()
        if self._watch is not None:
            self._watch.close()

    def _open(self) -> None:
        """Watch first, so that nothing happens between the two that is not told."""
        self._watch = watch = self._client.watch()
        try:
            self._list()
        except WeightdError:
            watch.close()
            raise
        if self._stopping.is_set():
            watch.close()

    def _follow(self) -> str:
        """All events of one stream; why there are no more."""
        assert self._watch is not None
        try:
            with self._watch as events:
                for event in events:
                    self._record(event)
        except (Unavailable, TooSlow) as e:
            return e.message
        return "recorded until here" if self._stopping.is_set() else "the daemon ended the stream"

    def _record(self, event: EventInfo) -> None:
        if event.kind not in _LINES:
            return
        key = event.ref, event.revision
        if event.kind is EventKind.ACQUIRED and key not in self._known:
            self._list()
        kind: type[Acquired | Released | Lost] = _LINES[event.kind] if key in self._known else Lost
        self.requests += kind is Acquired
        self._write(kind(event.time, *map(self._name, key)))

    def _list(self) -> None:
        """Snapshots that were not written before."""
        for model in self._client.models():
            if (model.ref, model.revision) not in self._known:
                self._known.add((model.ref, model.revision))
                self._write(self._snapshot(model))

    def _snapshot(self, model: ModelInfo) -> Snapshot:
        files = tuple(File(self._name(f.digest), f.size) for f in model.files)
        return Snapshot(self._name(model.ref), self._name(model.revision), files)

    def _name(self, name: str) -> str:
        return name if self._numbers is None else str(self._numbers.setdefault(name, len(self._numbers)))

    def _write(self, line: Line) -> None:
        self._out.write(encode(line))
        self._out.flush()


def _period(text: str) -> float:
    try:
        return parse_period(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.eviction.record", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--socket", type=Path, help="of the daemon; as for weightd unless given")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the trace; must not exist")
    parser.add_argument("--about", default="", help="what ran, for the header of the trace")
    parser.add_argument("--time", type=_period, metavar="2h", help="how long; until Ctrl-C unless given")
    parser.add_argument("--anonymous", action="store_true", help="numbers instead of refs, revisions and digests")
    return parser.parse_args()


def record(args: argparse.Namespace) -> int:
    """How many requests. Raises Unable, WeightdError; where no daemon answers, before anything is made."""
    with Client(args.socket, reconnect=0) as client:
        client.status()
        try:
            out = args.out.open("xb")
        except OSError as e:
            raise Unable(f"{args.out} cannot be made: {e.strerror}; choose another --out") from e
        with out:
            recorder = Recorder(client, out, args.about, anonymous=args.anonymous)
            with _ending(recorder, args.time):
                recorder.run()
    return recorder.requests


@contextlib.contextmanager
def _ending(recorder: Recorder, seconds: float | None) -> Iterator[None]:
    """It is stopped after so many seconds, or by SIGINT or SIGTERM, which cannot wait for the locks of a stream."""
    ended = threading.Event()

    def wait() -> None:
        ended.wait(seconds)
        recorder.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        yield
    finally:
        ended.set()
        waiting.join()


def main() -> int:
    args = _options()
    try:
        print(f"{record(args)} requests are in {args.out}")
    except (Unable, WeightdError) as e:
        print(f"Not recorded: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
