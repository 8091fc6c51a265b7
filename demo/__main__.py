"""`python -m demo`: see the package. With SOURCE=s3 the model comes from an S3 server, not from an HTTP origin.

Exit code 0 when every check held, 1 when one did not, 128 + n after signal n.
"""

from __future__ import annotations

import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from demo import play as p
from demo import report
from demo.processes import Child, Children, DemoError, Interrupted, Signals
from demo.snapshot import WEIGHTS, find_model
from weightd.daemon.build import owner_of
from weightd.storage.segments import PREFIX

CONFIG = """\
[daemon]
socket = "{home}/weightd.sock"
state_dir = "{home}/state"
"""
OF_S3 = """\
[s3]
endpoint = "{endpoint}"
[fetch]
max_rate = {rate:.0f}
"""
SOURCES = ("http", "s3")


def main() -> int:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=100)
    signals = Signals()
    signals.install()
    home = Path(tempfile.mkdtemp(prefix="weightd-demo-", dir="/tmp"))
    children = Children(signals, home, environment(home))
    code = 1
    try:
        try:
            signals.allow()
            code = perform(p.Play(console, children, find_model(), home, chosen_source()))
        finally:
            signals.ignore()
    except Interrupted as e:
        console.print(f"\nInterrupted by {e}; cleaning up.")
        code = 128 + e.number
    except DemoError as e:
        console.print(f"[bold red]The demo failed:[/] {e}", soft_wrap=True)
    finally:
        # Only the first signal is raised, and here it was: nothing interrupts this.
        children.stop()
        left = leftovers(home / "state")
        shutil.rmtree(home, ignore_errors=True)
    if left:
        console.print(f"[bold red]Left behind in shared memory, removed now:[/] {', '.join(left)}")
        return code or 1
    console.print("Cleaned up: no process, no file, no shared memory left.")
    return code


def chosen_source() -> str:
    """What SOURCE says. Raises DemoError."""
    source = os.environ.get("SOURCE", SOURCES[0])
    if source not in SOURCES:
        raise DemoError(f"SOURCE is {source!r}; it can be {' or '.join(SOURCES)}")
    return source


def environment(home: Path) -> dict[str, str]:
    """For all children. One thread each: four workers share the cores. Nobody asks the network. The keys are those of
    the S3 server that the demo starts, and of nothing else."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
        "AWS_EC2_METADATA_DISABLED": "true",
        "WEIGHTD_SOCKET": str(home / "weightd.sock"),
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
    }


def perform(play: p.Play) -> int:
    """The whole demo. Raises DemoError at the first check that fails."""
    begin = time.monotonic()
    origin = start(play)
    fetch(play, origin)
    shared, again = share(play)
    attack(play)
    compare(play, shared, again)
    play.console.print(f"[bold green]All checks held[/], in {time.monotonic() - begin:.0f} s.")
    return 0


def start(play: p.Play) -> Child:
    say = play.console.print
    kind = "An S3 server" if play.source == "s3" else "An HTTP origin"
    step(play, 1, f"{kind}, a daemon and four workers start, on temporary directories")
    origin = play.start_origin()
    more = OF_S3.format(endpoint=play.endpoint, rate=p.RATE) if play.source == "s3" else ""
    (play.home / "weightd.toml").write_text(CONFIG.format(home=play.home) + more)
    play.start_workers()
    daemon = play.start_daemon(play.home / "weightd.toml", play.home / "weightd.sock")
    say(f"origin   pid {origin.pid}, {play.url}, all-MiniLM-L6-v2, {report.mib(play.size)} of weights")
    say(f"daemon   pid {daemon.pid}, ready")
    with play.console.status("the workers import torch and transformers"):
        imports = play.workers_ready()
    say(f"workers  pids {', '.join(str(w.pid) for w in play.workers)}; importing torch took them {imports:.1f} s")
    return origin


def fetch(play: p.Play, origin: Child) -> None:
    step(play, 2, f"$ weightd fetch {play.url}")
    play.console.print(f"(it is held to {p.RATE / 1e6:.0f} MB/s, so that there is a bar to see)")
    play.fetch()
    if play.source == "s3":
        play.console.print("Each object was pinned by its ETag, and read through an address signed for an hour.")
        return
    sent = play.origin_stats(origin)
    play.console.print(f"The origin sent {report.mib(sent)}: the weights once, and the small files beside them.")


def share(play: p.Play) -> tuple[p.Way, float]:
    """Four workers use the model at once. Returns what that cost, and the median of further acquires."""
    say = play.console.print
    step(play, 3, "Four workers acquire it at once and compute sentence embeddings from the shared tensors")
    shared = play.way("shared", p.SHM)
    again = statistics.median(a["median"] for a in play.all("again", ref=play.url))
    within, across = p.likeness(shared.vectors)
    say(report.workers(shared, [w.pid for w in play.workers], within))
    say(f"Sentences of different workers are at most {across:.2f} alike: the numbers mean something.")
    copies = p.check_one_copy(shared, play.segment_bytes)
    say(
        f"The four workers' memory of the model adds up to {report.mib(shared.weights)} (PSS);"
        f" the file has {report.mib(play.size)}: [bold]{copies:.2f} copies[/]."
    )
    return shared, again


def attack(play: p.Play) -> None:
    step(play, 4, "A worker tries to write the weights")
    result = play.one(0, "attack", tensor=p.TENSOR)
    p.check_stopped(result)
    play.console.print(report.attacks(result))
    before = play.all("sums")
    if not play.one(0, "scribble", tensor=p.TENSOR)["changed"]:
        raise DemoError("a change of a torch tensor did nothing")
    if play.all("sums")[1:] != before[1:]:
        raise DemoError("a change of a torch tensor in one worker reached another")
    play.console.print("torch has no read-only tensors: its views are private. Worker 1 changed one; no other saw it.")
    play.all("drop")


def compare(play: p.Play, shared: p.Way, again: float) -> None:
    say = play.console.print
    step(play, 5, "The same four workers load the file the usual ways")
    mapped = play.way("mapped", str(play.model / WEIGHTS))
    play.all("drop")
    read = play.way("read", str(play.model / WEIGHTS))
    play.all("drop")
    difference = max(p.check_same(shared, mapped), p.check_same(shared, read))
    say(report.ways(shared, mapped, read, again, play.segment_bytes))
    say(report.NOTE)
    say(f"\nThe embeddings equal the usual way's: largest difference {difference:.1e} (allowed {p.TOLERANCE:.0e}).")


def step(play: p.Play, number: int, text: str) -> None:
    play.console.print(f"\n[bold cyan]{number}[/]  [bold]{text}[/]", soft_wrap=True)


def leftovers(state: Path) -> list[str]:
    """Segments of our daemon, which are named by its state directory, that it did not remove. They are removed."""
    found = list(Path(p.SHM).glob(f"{PREFIX}-{owner_of(state)}-*"))
    for path in found:
        path.unlink(missing_ok=True)
    return [path.name for path in found]


if __name__ == "__main__":
    sys.exit(main())
