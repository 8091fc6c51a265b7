"""What state.db says of segments, pins and uses."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.storage.test_state import D1, D2, blob, manifest, path, reopened, state
from weightd.core.errors import AccessDenied, ConfigError
from weightd.storage.owners import boot_id
from weightd.storage.protocols import SegmentIdentity
from weightd.storage.segments import PosixSegmentStore
from weightd.storage.state import ModelRecord, SegmentRecord, State

__all__ = ["path", "state"]

U64 = (1 << 64) - 1


def segment(digest: str = D1, name: str = "/weightd-a-b", device: int = 24, inode: int = 77) -> SegmentRecord:
    return SegmentRecord(digest, name, device, inode, "boot")


def test_segments_come_back(state: State, path: Path) -> None:
    state.put_segments([segment(), segment(D2, "/weightd-a-c", 25)])
    assert {s.digest: s for s in reopened(state, path).segments()} == {
        D1: segment(),
        D2: segment(D2, "/weightd-a-c", 25),
    }
    state.put_segments([segment(D1, "/weightd-new", inode=78)])
    assert segment(D1, "/weightd-new", inode=78) in state.segments()
    assert len(state.segments()) == 2
    state.drop_segments([D2, D2])
    state.drop_segments([])
    assert [s.digest for s in reopened(state, path).segments()] == [D1]


@pytest.mark.parametrize("number", [0, 1, (1 << 32) + 1, (1 << 63) - 1, 1 << 63, U64 - 1, U64])
def test_the_kernel_numbers_have_64_bits_without_a_sign(state: State, path: Path, number: int) -> None:
    state.put_segments([segment(device=number, inode=U64 - number)])
    (found,) = reopened(state, path).segments()
    assert found.identity == SegmentIdentity(number, U64 - number)


def test_a_real_segment_is_found_again_by_its_record(state: State, path: Path) -> None:
    store = PosixSegmentStore(f"t{os.getpid()}")
    made = store.create("a", 10)
    made.prepare(0, 10)
    made.seal()
    try:
        state.put_segments([SegmentRecord(D1, made.name, *made.identity, boot_id())])
        (record,) = reopened(state, path).segments()
        assert record.boot == boot_id()
        assert store.adopt(record.name, 10, record.identity) is not None
    finally:
        made.unlink()


def test_the_boot_id_is_whole() -> None:
    assert boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text()[:36]
    assert boot_id().count("-") == 4


def test_pins_come_back_and_outlive_their_snapshots(state: State, path: Path) -> None:
    state.put_model(ModelRecord("http://h/m", manifest(), {"f": D1}))
    state.set_pin("http://h/m", 12.5)
    state.set_pin("http://other/m", 13.5)
    state.set_pin("http://other/m", None)
    state.set_pin("http://none/m", None)
    state.put_uses({"http://h/m": (2.5, 99.0)})
    state.drop_model("http://h/m", manifest().revision, [D1])
    assert reopened(state, path).pins() == {"http://h/m": 12.5}
    assert state.uses() == {"http://h/m": (2.5, 99.0)}
    state.set_pin("http://h/m", 20.0)
    assert state.pins() == {"http://h/m": 20.0}


def test_uses_come_back(state: State, path: Path) -> None:
    state.put_uses({"a": (1.5, 10.0), "b": (0.25, 11.0)})
    state.put_uses({"b": (3.0, 12.0), "c": (1, 13)})
    state.put_uses({})
    assert reopened(state, path).uses() == {"a": (1.5, 10.0), "b": (3.0, 12.0), "c": (1.0, 13.0)}
    state.drop_uses(["a", "c", "none"])
    assert reopened(state, path).uses() == {"b": (3.0, 12.0)}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE segments SET inode = 'many'",
        "UPDATE segments SET device = 1.5",
        "UPDATE segments SET name = x'00'",
        "UPDATE pins SET since = 'long'",
        "UPDATE uses SET weight = 'much'",
        "UPDATE uses SET at = x'00'",
    ],
)
def test_rows_that_nobody_recorded(state: State, path: Path, statement: str) -> None:
    state.put_segments([segment()])
    state.set_pin("r", 1.0)
    state.put_uses({"r": (1.0, 2.0)})
    state.close()
    db = sqlite3.connect(path)
    db.execute(statement)
    db.commit()
    db.close()
    state.open()
    with pytest.raises(ConfigError, match="damaged"):
        (state.segments(), state.pins(), state.uses())


def test_several_are_recorded_together_or_not_at_all(state: State) -> None:
    state.put_segments([segment()])
    state.put_uses({"a": (1.0, 1.0)})

    def cut_short() -> list[SegmentRecord]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        state.put_segments(s for part in ([segment(D2)], None) for s in part or cut_short())
    state._open.execute("PRAGMA query_only = ON")
    for refused in (
        lambda: state.put_segments([segment(D2)]),
        lambda: state.drop_segments([D1]),
        lambda: state.set_pin("a", 1.0),
        lambda: state.put_uses({"a": (2.0, 2.0)}),
        lambda: state.drop_uses(["a"]),
    ):
        with pytest.raises(AccessDenied):
            refused()
    state._open.execute("PRAGMA query_only = OFF")
    assert (state.segments(), state.pins(), state.uses()) == ([segment()], {}, {"a": (1.0, 1.0)})


def syncs(state: State, *calls: str) -> list[int]:
    """What `PRAGMA synchronous` is while each transaction runs: 2 is FULL, 1 is NORMAL."""
    seen = []
    state._open.set_trace_callback(
        lambda sql: seen.append(int("FULL" in sql) + 1) if sql.startswith("PRAGMA synchronous") else None
    )
    for call in calls:
        eval(call, {"state": state, "segment": segment, "blob": blob})
    state._open.set_trace_callback(None)
    return seen


def test_what_a_boot_forgets_is_not_synced_and_everything_else_is(state: State) -> None:
    advisory = ["state.put_segments([segment()])", "state.put_uses({'a': (1, 1)})", "state.drop_segments([])"]
    assert syncs(state, *advisory, "state.set_pin('a', 1.0)", "state.put_blobs([(blob(), '')])") == [1, 1, 1, 2, 2]
    assert state._open.execute("PRAGMA synchronous").fetchone() == (2,)


KILLED = """
import os, signal, sys
from pathlib import Path
from weightd.storage.state import SegmentRecord, State
state = State(Path(sys.argv[1]))
state.open()
state.put_segments([SegmentRecord("sha256:" + "1" * 64, "/weightd-a-b", 24, 77, "boot")])
state.put_uses({"a": (1.0, 2.0)})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_no_record(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "state.db"], timeout=60)
    assert run.returncode == -signal.SIGKILL
    state = State(tmp_path / "state.db")
    state.open()
    assert (state.segments(), state.uses()) == ([segment()], {"a": (1.0, 2.0)})
    state.close()
