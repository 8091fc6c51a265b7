"""A fault, as one line for people and as an object for programs."""

from __future__ import annotations

import json

import click

from weightd.core.errors import WeightdError


def fail(as_json: bool, kind: str, line: str, code: int, error: WeightdError | None = None) -> int:
    """Tell it: a line on stderr, and with --json an object on stdout. Returns `code`."""
    click.echo(f"weightd: error: {' '.join(line.splitlines())}", err=True)
    if as_json:
        parts = error or WeightdError(line)
        fields = {"message": parts.message, "ref": parts.ref, "file": parts.file, "remedy": parts.remedy}
        click.echo(json.dumps({"type": "error", "kind": kind, **fields, "exit_code": code}))
    return code


def tell(as_json: bool, error: WeightdError) -> int:
    """A foreseeable one. Returns its exit code."""
    return fail(as_json, type(error).__name__, str(error), error.exit_code, error)
