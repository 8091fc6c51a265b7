"""One daemon for the tests of a file, a small model, and the command line in this process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon.process import Served
from tests.support.origin import Origin
from weightd.cli.main import run

TENSORS = {
    "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
}
HEADER = json.dumps(TENSORS).encode()
MODEL = len(HEADER).to_bytes(8, "little") + HEADER + bytes(range(26))


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, object]]:
        """Of a --json run: every line of stdout is one."""
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Result]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run `weightd` with these arguments, as from a script: no terminal anywhere."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Result(code, out, err)

    return call


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m/model.safetensors": MODEL, "m/config.json": b"{}", "raw.bin": bytes(3 << 20)}) as origin:
        yield origin


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="weightd-cli-") as home, Served(Path(home)) as served:
        yield served.ready()
        assert served.stop() == 0


@pytest.fixture
def host(cli: Cli, served: Served) -> Cli:
    """`cli`, talking to the daemon."""

    def call(*arguments: object) -> Result:
        return cli("--socket", served.socket, *arguments)

    return call
