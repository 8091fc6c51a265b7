"""docs/cli.md says what the command line does."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.daemon.process import Served
from tests.support.origin import Origin
from weightd import Client
from weightd.cli.main import COMMANDS
from weightd.core import errors

PAGE = (Path(__file__).parents[2] / "docs/cli.md").read_text()


def rows(section: str) -> dict[str, list[str]]:
    """The table of a section: its cells, by what stands in the first."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0] if section else PAGE.split("\n## ")[0]
    body = text.split("\n|---", 1)[1]
    lines = [line.strip("|").split(" | ") for line in body.splitlines() if line.startswith("| ")]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in lines}


def fields(kind: str) -> set[str]:
    """Of an object of this type: the first names between backticks."""
    found = re.match(r"`([^`]+)`", rows("`--json`")[kind][1])
    assert found, kind
    return {"type", *found[1].split()}


def test_every_command_is_listed() -> None:
    listed = re.findall(r"`(?:weightd )?([a-z]+)\b", "".join(f"`{cell}`, " for cell in rows("")))
    assert set(listed) == set(COMMANDS)


def test_exit_codes_are_those_of_the_errors() -> None:
    for code, (_, names) in rows("Exit codes").items():
        for name in re.findall(r"`([A-Z]\w+)`", names):
            assert getattr(errors, name).exit_code == int(code), name
    families = {e.exit_code for e in errors.WeightdError.__subclasses__()}
    assert families <= {int(code) for code in rows("Exit codes") if code.isdecimal()}


def test_objects_have_the_fields_that_are_documented(host: Cli, served: Served, origin: Origin) -> None:
    ref = origin.url("m/model.safetensors")
    seen: dict[str, set[str]] = {}

    def run(*arguments: str) -> None:
        for it in host(*arguments, "--json").objects:
            names = set(it) - ({"seconds"} if arguments[0] in ("fetch", "load") else set())
            assert seen.setdefault(str(it["type"]), names) == names, arguments

    run("fetch", ref)
    for command in ("ls", "status", "inspect " + ref, "verify " + ref, "pin " + ref, "evict --all", "unpin " + ref):
        run(*command.split())
    with Client(served.socket) as client, client.acquire(ref):
        run("leases")
        run("evict", ref)
    run("evict", origin.url("none"))
    run("load", ref, origin.url("none"))
    run("rm", ref)
    run("doctor")
    status = seen.pop("status")
    assert seen == {kind: fields(kind) for kind in seen}
    assert {"socket", "verify", "counters", "transfers_under_way"} <= status
    assert set(seen) >= set(rows("`--json`")) - {"status", "event", "gap", "link", "evicted"}


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_offered_where_the_page_says_so(command: str) -> None:
    module = importlib.import_module(f"weightd.cli.{command}")
    has = any("--json" in option.opts for option in module.command.params)
    assert has == (command not in ("serve", "top"))
