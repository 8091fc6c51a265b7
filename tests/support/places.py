"""Origins on several addresses behind one host name, some of them out of order.

names = Names(monkeypatch)
names["many.test"] = ["127.0.0.1", "127.0.0.2"]      # what `socket.getaddrinfo` answers
with Away({"f.bin": DATA}, "127.0.0.2", port) as origin: ...
with black_hole("127.0.0.3", port): ...               # connections to it are never answered
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping

import pytest

from tests.support.origin import Origin

HOST = "many.test"


class Names(dict[str, list[str]]):
    """Host names of a test; all others are resolved as ever. `asked` is set when one of these was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        real = socket.getaddrinfo
        self.asked = threading.Event()

        def answer(host: object, port: object, *args: object, **options: object) -> list[object]:
            if not isinstance(host, str) or host not in self:
                return real(host, port, *args, **options)  # type: ignore[call-overload,no-any-return]
            self.asked.set()
            return [e for address in self[host] for e in real(address, port, type=socket.SOCK_STREAM)]  # type: ignore[call-overload]

        monkeypatch.setattr(socket, "getaddrinfo", answer)


class Away(Origin):
    """An origin at another address; `host` is the name in its URLs."""

    def __init__(self, files: Mapping[str, bytes], address: str, port: int = 0, host: str = HOST) -> None:
        super().__init__(files)
        self._listener.close()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, port), family=family, backlog=128)
        self.port = self._listener.getsockname()[1]
        self.host = host

    def url(self, path: str = "") -> str:
        return f"http://{self.host}:{self.port}/{path}"


@contextlib.contextmanager
def black_hole(address: str, port: int) -> Iterator[None]:
    """A listener whose queue is full: the kernel drops what comes."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((address, port), backlog=0))
        del listener
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect((address, port))
        yield


def free_port() -> int:
    """Free on every address, at this moment."""
    with socket.create_server(("", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
