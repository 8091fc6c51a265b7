"""`python -m demo [--source http|s3|hf]`: see the package.

Exit code 0 when every check held, 1 when one did not, 128 + n after signal n.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from demo import play as p
from demo import report
from demo.processes import Children, DemoError, Interrupted, Signals
from demo.snapshot import SENTENCES, WEIGHTS, find_model
from demo.sources import SOURCES, TITLES
from weightd.storage.owners import segment_owner
from weightd.storage.segments import PREFIX

CONFIG = """\
[daemon]
socket = "{home}/weightd.sock"
state_dir = "{home}/state"
"""
_OTHERS = ("AWS_", "HF_", "HUGGING_FACE_", "HUGGINGFACE_", "TRANSFORMERS_")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo")
    parser.add_argument("--source", choices=list(SOURCES), default="http", help="where the model comes from")
    source: str = parser.parse_args().source
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=100)
    keep_to_ourselves()
    signals = Signals()
    signals.install()
    home = Path(tempfile.mkdtemp(prefix="weightd-demo-", dir="/tmp"))
    children = Children(signals, home, environment(home))
    code = 1
    try:
        try:
            signals.allow()
            code = perform(console, children, home, source)
        finally:
            signals.ignore()
    except Interrupted as e:
        console.print(f"\nInterrupted by {e}; cleaning up.")
        code = 128 + e.number
    except DemoError as e:
        console.print(f"[bold red]The demo failed:[/] {e}", soft_wrap=True)
    finally:
        # Only the first signal is raised, and here it was: nothing interrupts this.
        left = children.stop() + leftovers(home / "state")
        shutil.rmtree(home, ignore_errors=True)
    if home.exists():
        left.append(str(home))
    if left:
        console.print(f"[bold red]Left behind, and removed now if it can be:[/] {', '.join(left)}", soft_wrap=True)
        return code or 1
    console.print("Cleaned up: no process, no file, no shared memory left.")
    return code


def keep_to_ourselves() -> None:
    """All that the demo asks is on this host: no keys, tokens, caches or proxies of the user's for us or a child."""
    for name in list(os.environ):
        if name.startswith(_OTHERS) or name.lower().endswith("_proxy"):
            del os.environ[name]


def environment(home: Path) -> dict[str, str]:
    """For all children. One thread each: four workers share the cores."""
    return {
        **os.environ,
        "WEIGHTD_SOCKET": str(home / "weightd.sock"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def perform(console: Console, children: Children, home: Path, source: str) -> int:
    """The whole demo. Raises DemoError at the first check that fails."""
    begin = time.monotonic()
    play = start(console, children, home, source)
    fetch(play)
    shared, again = share(play)
    attack(play)
    compare(play, shared, again)
    if play.source.repo:
        link(play, shared)
    console.print(f"[bold green]All checks held[/], in {time.monotonic() - begin:.0f} s.")
    return 0


def start(console: Console, children: Children, home: Path, source: str) -> p.Play:
    step(console, 1, f"{TITLES[source]}, a daemon and four workers start, on temporary directories")
    model = find_model()
    play = p.Play(console, children, model, home, SOURCES[source](children, model, home))
    (home / "weightd.toml").write_text(CONFIG.format(home=home) + play.source.config)
    play.start_workers()
    daemon = play.start_daemon(home / "weightd.toml", home / "weightd.sock")
    name, child = play.source.name, play.source.child
    console.print(f"{name:8} pid {child.pid}, {play.ref}, {report.mib(play.size)} of weights")
    if play.source.about:
        console.print(f"{'':8} {play.source.about}")
    console.print(f"daemon   pid {daemon.pid}, ready")
    with console.status("the workers import torch and transformers"):
        imports = play.workers_ready()
    pids = ", ".join(str(w.pid) for w in play.workers)
    console.print(f"workers  pids {pids}; importing torch took them {imports:.1f} s")
    return play


def fetch(play: p.Play) -> None:
    step(play.console, 2, f"$ weightd fetch {play.ref}")
    play.console.print(f"({play.source.limit}, so that there is a bar to see)")
    play.weightd("fetch", play.ref)
    sent, told = play.sent()
    play.console.print(f"{told}. It sent {report.mib(sent)} for {report.mib(play.size)} of weights.")


def share(play: p.Play) -> tuple[p.Way, float]:
    """Four workers use the model at once. Returns what that cost, and the median of further acquires."""
    say = play.console.print
    step(play.console, 3, "Four workers acquire it at once and compute sentence embeddings from the shared tensors")
    shared = play.way("shared", p.SHM)
    again = statistics.median(a["median"] for a in play.all("again", ref=play.ref))
    within, across = p.likeness(shared.vectors)
    say(report.workers(shared, [w.pid for w in play.workers], within))
    say(f"Sentences of different workers are at most {across:.2f} alike: the numbers mean something.")
    say(report.levels(shared.levels))
    copies = p.check_one_copy(shared, play.segment_bytes)
    say(
        f"The four workers' memory of the model adds up to {report.mib(shared.weights)} (PSS);"
        f" the file has {report.mib(play.size)}: [bold]{copies:.2f} copies[/]."
    )
    return shared, again


def attack(play: p.Play) -> None:
    step(play.console, 4, "A worker tries to write the weights")
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
    step(play.console, 5, "The same four workers load the file the usual ways")
    mapped = play.way("mapped", str(play.model / WEIGHTS))
    play.all("drop")
    read = play.way("read", str(play.model / WEIGHTS))
    play.all("drop")
    difference = max(p.check_same(shared, mapped), p.check_same(shared, read))
    say(report.ways(shared, mapped, read, again, play.segment_bytes))
    say(report.NOTE)
    say(f"\nThe embeddings equal the usual way's: largest difference {difference:.1e} (allowed {p.TOLERANCE:.0e}).")


def step(console: Console, number: int, text: str) -> None:
    console.print(f"\n[bold cyan]{number}[/]  [bold]{text}[/]", soft_wrap=text.startswith("$"))


def link(play: p.Play, shared: p.Way) -> None:
    say = play.console.print
    step(play.console, 6, f"$ weightd link --hf-cache {play.cache} {play.ref}")
    play.weightd("link", "--hf-cache", str(play.cache), play.ref)
    result = play.one(0, "named", repo=play.source.repo, sentences=SENTENCES[0])
    if not Path(result["directory"]).is_relative_to(play.cache):
        raise DemoError(f"the model was not loaded from the cache, but from {result['directory']}")
    difference = p.check_near(shared.vectors[0], result["vectors"])
    say("Worker 1 loads it by its name, with HF_HUB_OFFLINE=1 and without a token, as unmodified code does:")
    say(f'  from_pretrained("{play.source.repo}"), {report.ms(result["load"])}', soft_wrap=True)
    say(f"Its embeddings are those of step 3: largest difference {difference:.1e}.\n")


def leftovers(state: Path) -> list[str]:
    """Segments of our daemon, which are named by its state directory, that it did not remove. They are removed."""
    found = list(Path(p.SHM).glob(f"{PREFIX}-{segment_owner(state)}-*"))
    for path in found:
        path.unlink(missing_ok=True)
    return [path.name for path in found]


if __name__ == "__main__":
    sys.exit(main())
