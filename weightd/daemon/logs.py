"""One line per event on stderr, written by a thread of its own: a slow reader of the log never holds up the loop."""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from weightd.core.refs import redact

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"<>]+")


class LineFormatter(logging.Formatter):
    """Text or JSON, always one line; of a URL neither user nor query values."""

    def __init__(self, format: str) -> None:
        super().__init__("%(message)s")
        self._json = format == "json"

    def format(self, record: logging.LogRecord) -> str:
        message = _URL.sub(lambda m: redact(m[0]), super().format(record))
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"
        level = record.levelname.lower()
        if self._json:
            return json.dumps({"time": stamp, "level": level, "logger": record.name, "message": message})
        return f"{stamp} {level:<7} {record.name}: " + message.replace("\n", "\\n")


@contextmanager
def logging_to_stderr(level: str, format: str) -> Iterator[None]:
    """The root logger while inside; on leaving, everything that was logged has been written."""
    stream = logging.StreamHandler()
    stream.setFormatter(LineFormatter(format))
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = _Enqueue(lines)
    handler.addFilter(_is_news)
    listener = logging.handlers.QueueListener(lines, stream)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level.upper())
    # Their debug lines hold addresses and headers, and nothing that an operator of weightd needs.
    for chatty in ("asyncio", "grpc", "aiohttp", "urllib3", "httpx", "httpcore", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        listener.stop()


def _is_news(record: logging.LogRecord) -> bool:
    """Not that a client left at the moment in which its answer was sent, which grpc.aio logs as an error of ours: the
    call has ended, and was cleaned up, before."""
    kind = record.exc_info[0] if record.exc_info else None
    return not (record.name.startswith("grpc") and kind is not None and kind.__name__ == "ExecuteBatchError")


class _Enqueue(logging.handlers.QueueHandler):
    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # The base class formats here; our formatter does that in the listener's thread, from the arguments as text.
        record.msg, record.args = record.getMessage(), None
        return record
