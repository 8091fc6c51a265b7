"""What a process says of itself is bounded and clean before anything keeps it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.engine.api import NOBODY, Holder, LeaseState
from weightd.rpc.holders import CGROUP, COMMAND, PID_LIMIT, POD, holder_of, lease_to_pb
from weightd.wire.gen import weightd_pb2 as pb

RIGHT_TO_LEFT = "\u202e"


def heard(**said: object) -> Holder:
    request = pb.AcquireRequest(ref="demo", holder=pb.Holder(**said))  # type: ignore[arg-type]
    return holder_of(pb.AcquireRequest.FromString(request.SerializeToString()))


def test_who_says_nothing_is_nobody() -> None:
    assert holder_of(pb.AcquireRequest(ref="demo")) is NOBODY
    assert heard() == NOBODY


def test_an_honest_process_is_heard_as_it_speaks() -> None:
    said = {"pid": 4711, "started": 2**63 + 1, "command": "python sérve.py --flag", "cgroup": "/a/b", "pod": "ns/x"}
    assert heard(**said) == Holder(**said)  # type: ignore[arg-type]


def test_long_texts_are_cut() -> None:
    holder = heard(command="c" * (10 << 20), cgroup="g" * 5000, pod="p" * 5000)
    assert (len(holder.command), len(holder.cgroup), len(holder.pod)) == (COMMAND, CGROUP, POD) == (200, 400, 253)


@pytest.mark.parametrize("evil", ["\x1b[2J", "\r\n", "\0", "\x7f", "\x9b31m", RIGHT_TO_LEFT, "\u2028", "\t", "\ufeff"])
def test_nothing_moves_the_cursor_or_turns_the_writing(evil: str) -> None:
    holder = heard(command=f"a{evil}b", cgroup=evil, pod=evil)
    for text in (holder.command, holder.cgroup, holder.pod):
        assert text.isprintable()
    assert (holder.command[0], holder.command[-1]) == ("a", "b")


@given(command=st.text(max_size=500), cgroup=st.text(max_size=500), pod=st.text(max_size=500))
def test_any_text_is_printable_afterwards(command: str, cgroup: str, pod: str) -> None:
    try:
        holder = heard(command=command, cgroup=cgroup, pod=pod)
    except UnicodeEncodeError:
        return  # protobuf carries no surrogates
    assert (holder.command + holder.cgroup + holder.pod).isprintable()
    assert len(holder.command) <= COMMAND


@pytest.mark.parametrize("pid", [PID_LIMIT, 2**32 - 1])
def test_an_impossible_pid_is_none(pid: int) -> None:
    assert heard(pid=pid, command="x") == Holder(command="x")


def test_nobody_confirms_himself() -> None:
    holder = heard(pid=1, confirmed=True, uid=7)
    assert (holder.confirmed, holder.uid) == (False, 0)


def test_a_lease_is_shown_without_credentials() -> None:
    holder = Holder(7, 8, "c", "g", "p", confirmed=True, uid=9)
    shown = lease_to_pb(LeaseState("https://u:pw@h/x?token=secret", "r", 2.5, holder, waiting=True))
    assert b"secret" not in shown.SerializeToString()
    assert b"pw@" not in shown.SerializeToString()
    assert (shown.revision, shown.since, shown.waiting) == ("r", 2.5, True)
    assert shown.holder == pb.Holder(pid=7, started=8, command="c", cgroup="g", pod="p", confirmed=True, uid=9)
