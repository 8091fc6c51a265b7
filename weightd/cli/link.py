"""`weightd link`"""

from __future__ import annotations

from pathlib import Path

import click

from weightd.cli.daemon import connect
from weightd.cli.progress import emit
from weightd.cli.stop import sigterm_raises
from weightd.cli.text import count
from weightd.client.types import ModelInfo
from weightd.core.budget import human
from weightd.core.digest import blob_name, hex_of, parse_digest
from weightd.core.errors import RefSyntax
from weightd.core.hf_layout import layout
from weightd.core.hub_ref import SCHEME, HubRef, parse_hub
from weightd.core.refs import parse_ref
from weightd.storage.hf_cache import Held, Linked, link_snapshot


@click.command("link", short_help="Lay a model out as a Hugging Face cache.")
@click.argument("ref")
@click.option(
    "--hf-cache",
    "cache",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path),
    help="The cache, as HF_HUB_CACHE names it.",
)
@click.option("--json", "as_json", is_flag=True, help="One object.")
@click.pass_obj
def command(socket: str | None, ref: str, cache: Path, as_json: bool) -> None:
    """Make REF, hf://org/name[@revision], a snapshot in a Hugging Face cache: from_pretrained("org/name") finds it
    there, also with HF_HUB_OFFLINE=1.

    Nothing is copied. Where DIR is on the file system of the state directory and the system allows it, blobs become
    hard links, which stay when the daemon drops the model; else symlinks, which do not.
    """
    parse_ref(ref)
    with sigterm_raises(), connect(socket) as client:
        model = client.model(ref)
        state = Path(client.status().state_directory)
        made = link_model(model, state, cache)
    _report(model, made, as_json)


def repository(ref: str) -> HubRef:
    """What an hf:// ref names. Raises RefSyntax, also for one file or directory of a repository, which is no
    snapshot."""
    if not ref.startswith(SCHEME):
        raise RefSyntax("not a model of the Hugging Face Hub", ref=ref, remedy="Name it as hf://org/name@revision.")
    found = parse_hub(ref)
    if found.path:
        raise RefSyntax("not a whole repository", ref=ref, remedy="Name it as hf://org/name@revision.")
    return found


def link_model(model: ModelInfo, state: Path, cache: Path) -> Linked:
    """Lay `model` out below `cache`. `state` is the daemon's directory. See `link_snapshot`; raises RefSyntax for a
    model that is not the Hub's."""
    hub = repository(model.ref)
    etags: dict[str, str] = {}
    held: dict[str, Held] = {}
    for file in model.files:
        digest = parse_digest(file.digest)
        path = Path(model.directory) / file.path
        etag = file.git_id or hex_of(digest)
        etags[file.path] = etag
        held[etag] = Held(file.size, path, state / blob_name(digest))
    return link_snapshot(cache, layout(hub.repo, hub.revision, model.revision, etags), held)


def _report(model: ModelInfo, made: Linked, as_json: bool) -> None:
    if as_json:
        fields = {"ref": model.ref, "revision": model.revision, "directory": str(made.snapshot)}
        emit({"type": "link", **fields, "hard_links": made.hard, "symlinks": made.symbolic, "kept": made.kept})
        return
    made_now = [count(made.hard, "hard link")] * bool(made.hard) + [count(made.symbolic, "symlink")] * bool(
        made.symbolic
    )
    told = ", ".join([*made_now, f"{made.kept} kept"] if made.kept else made_now)
    click.echo(f"{model.ref}: {count(len(model.files), 'file')}, {human(model.size)} ({told}): {made.snapshot}")
