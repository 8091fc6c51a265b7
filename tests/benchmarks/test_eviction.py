"""The simulation of eviction: what must hold of any policy and trace, and what a recorder writes of a real daemon."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.eviction import __main__ as command
from benchmarks.eviction import azure, plot, report, synthetic, trace
from benchmarks.eviction.policies import BOUND, CONTENDERS, Lru, Make
from benchmarks.eviction.simulate import NVME, SHM, Outcome, Tier, simulate
from benchmarks.eviction.trace import File, Request, Snapshot, Trace
from benchmarks.machine import Unable

DAY = 86400.0


def snapshot(name: str, size: int = 1, *shared: File) -> Snapshot:
    return Snapshot(name, "0", (File(name, size), *shared))


def trace_of(text: str, *snapshots: Snapshot, held: float = 0.0) -> Trace:
    """One request a minute for each letter."""
    known = {s.ref: s for s in snapshots} or {name: snapshot(name) for name in text}
    requests = tuple(Request(60.0 * n, name, "0", held) for n, name in enumerate(text))
    return Trace("t", {s.key: s for s in known.values()}, requests)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Up to 8 snapshots that share some of 10 blobs, and leases of up to an hour."""
    sizes = draw(st.lists(st.integers(1, 100), min_size=10, max_size=10))
    some = st.lists(st.integers(0, 9), min_size=1, max_size=4)
    snapshots = [
        Snapshot(str(n), "0", tuple(File(str(b), sizes[b]) for b in draw(some))) for n in range(draw(st.integers(1, 8)))
    ]
    moment = st.tuples(st.floats(0, 10 * DAY), st.integers(0, len(snapshots) - 1), st.floats(0, 3600))
    moments = sorted(draw(st.lists(moment, min_size=1, max_size=60)))
    requests = tuple(Request(at, str(n), "0", held) for at, n, held in moments)
    return Trace("any", {s.key: s for s in snapshots}, requests)


@settings(max_examples=50)
@given(traces(), st.integers(1, 300), st.sampled_from([SHM, NVME]))
def test_no_policy_exceeds_the_tier_and_all_answer_the_same_requests(t: Trace, limit: int, tier: Tier) -> None:
    found = {name: simulate(t, tier, limit, make(t)) for name, make in CONTENDERS.items()}
    for outcome in found.values():
        assert outcome.most <= limit
        assert outcome.requests + outcome.oversized == len(t.requests)
        assert outcome.hits + outcome.refused <= outcome.requests
        assert (outcome.waited > 0) == (outcome.hits < outcome.requests)
        assert (outcome.hits == outcome.requests) == (outcome.size_hit == outcome.size)
    # Whether there is room depends on who leases, not on who was evicted.
    assert len({(o.requests, o.oversized, o.refused, o.size) for o in found.values()}) == 1


@settings(max_examples=50)
@given(traces(), st.sampled_from(list(CONTENDERS)))
def test_where_all_fits_everything_is_brought_once(t: Trace, name: str) -> None:
    outcome = simulate(t, SHM, t.distinct_bytes, CONTENDERS[name](t))
    assert outcome.size - outcome.size_hit == outcome.most == t.distinct_bytes


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=80), st.integers(1, 6))
def test_of_equal_sizes_nobody_does_better_than_who_knows_the_future(names: list[str], limit: int) -> None:
    t = trace_of("".join(names))
    hits = {name: simulate(t, SHM, limit, make(t)).hits for name, make in CONTENDERS.items()}
    assert max(hits.values()) == hits[BOUND]


def fewest_misses(names: str, limit: int) -> int:
    """By trying every choice."""
    states: dict[frozenset[str], int] = {frozenset(): 0}
    for name in names:
        after: dict[frozenset[str], int] = {}
        for held, misses in states.items():
            choices = [held] if name in held else [frozenset({*kept, name}) for kept in _kept(held, limit)]
            for choice in choices:
                after[choice] = min(after.get(choice, len(names)), misses + (name not in held))
        states = after
    return min(states.values())


def _kept(held: frozenset[str], limit: int) -> list[frozenset[str]]:
    return [held] if len(held) < limit else [held - {one} for one in held]


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=25), st.integers(1, 4))
def test_who_knows_the_future_misses_as_little_as_can_be(names: list[str], limit: int) -> None:
    t = trace_of("".join(names))
    outcome = simulate(t, SHM, limit, CONTENDERS[BOUND](t))
    assert outcome.requests - outcome.hits == fewest_misses("".join(names), limit)


def test_lru_by_hand() -> None:
    # In three places: a b c miss; a hits; d takes b's; b takes c's; a hits; c takes d's; d takes b's.
    outcome = simulate(trace_of("abcadbacd"), Tier("t", 2.0, 1.0), 3, Lru())
    assert outcome == Outcome(9, 2, 9, 2, 7 * (2.0 + 1.0), 0, 0, 3)


def test_lru_takes_as_many_as_are_needed() -> None:
    t = trace_of("abcdab", snapshot("a", 40), snapshot("b", 40), snapshot("c", 20), snapshot("d", 60))
    # d needs 60: a and b go. Then a needs 40: c and d go. b fits beside it.
    assert simulate(t, SHM, 100, Lru()).hits == 0
    assert simulate(t, SHM, 100, Lru()).most == 100


@pytest.mark.parametrize("make", CONTENDERS.values(), ids=CONTENDERS)
def test_a_shared_blob_stays_with_the_last_that_has_it(make: Make) -> None:
    base = File("base", 50)
    t = trace_of("abcb", snapshot("a", 10, base), snapshot("b", 20, base), snapshot("c", 25))
    outcome = simulate(t, SHM, 100, make(t))
    # c needs 5 bytes more: a or b goes, and the base stays.
    assert outcome.size_hit in (50 + 70, 50 + 50)


@pytest.mark.parametrize("make", CONTENDERS.values(), ids=CONTENDERS)
def test_what_is_leased_stays_and_who_finds_no_room_waits(make: Make) -> None:
    t = trace_of("abab", snapshot("a", 60), snapshot("b", 60), held=150.0)
    outcome = simulate(t, Tier("t", 1.0, 60.0), 100, make(t))
    # a is leased until 270, by its second lease; b finds no room at 60 and at 180.
    assert (outcome.hits, outcome.refused, outcome.waited) == (1, 2, 3 * 2.0)


def test_too_large_for_the_tier_is_no_policys_fault() -> None:
    t = trace_of("aba", snapshot("a", 60), snapshot("b", 160))
    assert simulate(t, SHM, 100, Lru()) == Outcome(2, 1, 120, 60, SHM.seconds(t, "a", 60), 0, 1, 60)


def test_models_that_are_passed_once_cost_lru_those_in_use_but_not_us() -> None:
    scan = trace_of("ababab" + "cdefg" + "ab" + "hijkl" + "ab")
    assert simulate(scan, SHM, 3, Lru()).hits == 4
    assert simulate(scan, SHM, 3, CONTENDERS["weightd"](scan)).hits == 8


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_made_up_traces_follow_from_their_seeds_and_are_what_they_say(kind: str) -> None:
    one = synthetic.make(kind, 3)
    assert one == synthetic.make(kind, 3)
    assert one.requests != synthetic.make(kind, 4).requests
    assert 1000 < len(one.requests) < 2000
    assert all(a.time <= b.time for a, b in itertools.pairwise(one.requests))
    assert {r.key for r in one.requests} <= one.snapshots.keys()
    first = [s for s in one.snapshots.values() if s.revision == "0"]
    assert all(0.1e9 <= s.size <= 141e9 for s in first)
    owners = [b for s in first for b in s.blobs]
    assert len(owners) > len(set(owners))


def test_a_faster_trace_asks_for_the_same_and_lru_does_not_notice() -> None:
    made = synthetic.make("drift", 3)
    quick = trace.faster(made, 10)
    assert [r.key for r in quick.requests] == [r.key for r in made.requests]
    assert quick.requests[-1].time == made.requests[-1].time / 10
    limit = made.distinct_bytes // 3
    assert simulate(quick, SHM, limit, Lru()) == simulate(made, SHM, limit, Lru())


def test_a_deploy_replaces_one_file_of_a_model_for_good() -> None:
    made = synthetic.make("deploys", 3)
    last: dict[str, int] = {}
    for request in made.requests:
        assert int(request.revision) >= last.get(request.ref, 0)
        last[request.ref] = int(request.revision)
    revised = [s for s in made.snapshots.values() if s.revision != "0"]
    assert len(revised) > 40
    for new in revised:
        old = made.snapshots[new.ref, str(int(new.revision) - 1)]
        assert sum(a != b for a, b in zip(old.files, new.files, strict=True)) == 1


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    lines: list[trace.Line] = [
        trace.Header(about="by hand"),
        snapshot("a", 5),
        trace.Acquired(10.0, "a", "0"),
        trace.Acquired(20.0, "a", "0"),
        trace.Released(25.0, "a", "0"),
        trace.Lost(30.0, "b", "0"),
        trace.Gap(60.0, "a restart"),
        trace.Released(70.0, "a", "0"),
        trace.Acquired(80.0, "a", "0"),
        trace.Gap(90.0, "the end"),
    ]
    path = tmp_path / "hand.jsonl"
    path.write_bytes(b"".join(map(trace.encode, lines)))
    found = trace.read(path)
    assert (found.name, found.about, found.distinct_bytes) == ("hand", "by hand", 5)
    assert [(r.time, r.held) for r in found.requests] == [(10.0, 15.0), (20.0, 40.0), (80.0, 10.0)]


HEADER = '{"type":"trace","version":1}\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "does not begin as a trace"),
        ('{"type":"gap","time":1,"why":""}\n', "does not begin as a trace"),
        ('{"type":"trace","version":2}\n', "version 2"),
        (HEADER, "no request"),
        (HEADER + '{"type":"acquired","time":1,"ref":"a","revision":"0"}\n', "does not say what is in a"),
        (HEADER + '{"type":"acquired","time":"soon","ref":"a","revision":"0"}\n', "line 2"),
        (HEADER + "\xff\n", "line 2"),
    ],
)
def test_what_is_no_trace_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Unable, match=told):
        trace.read(path)
    with pytest.raises(Unable, match="cannot be read"):
        trace.read(tmp_path / "absent")


def test_the_recorded_trace_says_what_it_is_and_can_be_played() -> None:
    recorded = trace.read(command.RECORDED)
    assert "soak" in recorded.about
    assert len(recorded.requests) > 50
    assert command.RECORDED.stat().st_size < 100_000
    assert any(r.held > 1 for r in recorded.requests)


AZURE = """app,func,end_timestamp,duration
x,f,100.0,10.0
y,f,5000.0,1.0
x,g,400.0,1.0
x,f,9000.0,100.0
"""


def test_invocations_that_follow_one_another_are_one_lease(tmp_path: Path) -> None:
    path = tmp_path / "azure.txt"
    path.write_text(AZURE)
    found = azure.read(path)
    assert [(r.time, r.ref, r.held) for r in found.requests] == [
        (90.0, "x", 310.0 + azure.KEEP_S),
        (4999.0, "y", 1.0 + azure.KEEP_S),
        (8900.0, "x", 100.0 + azure.KEEP_S),
    ]
    assert all(synthetic.SMALLEST <= s.size <= synthetic.LARGEST for s in found.snapshots.values())
    assert found == azure.read(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("app,func\n", "no column duration, end_timestamp"),
        ("app,func,end_timestamp,duration\n", "no invocation"),
        ("app,func,end_timestamp,duration\nx,f,soon,1\n", "line 2"),
        ("app,func,end_timestamp,duration\nx,f,1\n", "line 2"),
        ("app,func,end_timestamp,duration\nx,f,nan,1\n", "line 2"),
    ],
)
def test_what_is_no_trace_of_azures_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "azure.txt"
    path.write_text(text)
    with pytest.raises(Unable, match=told):
        azure.read(path)


def small_trace() -> Trace:
    rng = random.Random(5)
    known = [snapshot(name, rng.randint(1, 9) * 10**9) for name in "abcdefgh"]
    return trace_of("".join(rng.choices("abcdefgh", range(1, 9), k=200)), *known)


def test_where_nothing_fits_there_is_nothing_to_tell(tmp_path: Path) -> None:
    t = trace_of("abab", snapshot("a", 60), snapshot("b", 40))
    assert report.points(t, [SHM], [0.1]) == []
    assert {p.requests for p in report.points(t, [SHM], [0.5])} == {2}
    path = tmp_path / "t.jsonl"
    lines: list[trace.Line] = [trace.Header(), snapshot("a", 60), trace.Acquired(1.0, "a", "0")]
    path.write_bytes(b"".join(map(trace.encode, lines)))
    done = command_line("--trace", str(path))
    assert done.returncode == 1
    assert "no model of these traces fits" in " ".join(done.stdout.split())


def test_a_recorded_trace_is_played_by_the_command(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = command_line("--trace", str(command.RECORDED), "--tiers", "shm", "--json", str(out))
    assert done.returncode == 0, done.stdout
    found = json.loads(out.read_text())
    assert found["summary"][BOUND]["waited"] < found["summary"]["weightd"]["waited"] <= 1.0
    done = command_line("--trace", str(command.RECORDED), "--plot", str(tmp_path / "absent" / "p.png"))
    assert done.returncode == 1
    assert "is no directory" in " ".join(done.stdout.split())


def command_line(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.eviction", *args], capture_output=True, text=True, timeout=60
    )


def test_waiting_is_told_against_lru_and_drawn(tmp_path: Path) -> None:
    found = report.points(small_trace(), [SHM, NVME], [0.2, 0.5])
    assert {p.waited for p in found if p.policy == "LRU"} == {1.0}
    total = report.summary(found)
    assert total[BOUND]["waited"] < total["weightd"]["waited"]
    assert total["LRU"]["hits - LRU's"] == 0.0
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'weightd[bench]'")
    one, other = tmp_path / "a.svg", tmp_path / "b.svg"
    plot.draw(found, "shm", one)
    plot.draw(found, "shm", other)
    assert one.read_bytes() == other.read_bytes()
    assert b"weightd" in one.read_bytes()
