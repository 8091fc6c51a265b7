"""The command `weightd`: finds the subcommand, and turns every end of it into an exit code.

Subcommands are imported when they are called, so that `weightd ls` never pays for what `weightd serve` needs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import click

from weightd.cli.faults import fail
from weightd.cli.stop import Terminated
from weightd.core.errors import WeightdError
from weightd.version import __version__

COMMANDS: Final = {
    "serve": "Run the daemon.",
    "fetch": "Bring models onto this host, or into a directory.",
    "load": "Bring models that the daemon holds into shared memory.",
    "ls": "List the models on this host.",
    "status": "Show what the daemon holds and what room is left.",
    "leases": "List who uses which model.",
    "top": "Show models, tiers, leases and rates, live.",
    "watch": "Follow what happens.",
    "pin": "Keep models where they are, whatever else needs room.",
    "unpin": "Let models go again when room is needed.",
    "evict": "Drop models from shared memory.",
    "rm": "Drop models from this host.",
    "verify": "Check again what is at rest, and repair it.",
    "inspect": "List the tensors of a model.",
    "link": "Lay a model out as a Hugging Face cache.",
    "doctor": "Check this host, and say how to mend what is wrong.",
}
EPILOG: Final = """\b
Exit codes:
  0  done                            6  not now: something else must change first
  1  internal error                  7  the source changed during the fetch
  2  wrong usage                     8  unavailable: try again later
  3  wrong ref, digest or config     9  a budget, disk or shared memory is full
  4  not found                      10  corrupt: bytes failed their check
  5  access denied                 130  interrupted (143 by SIGTERM)
"""
DEBUG: Final = "WEIGHTD_DEBUG"


class Lazy(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"weightd.cli.{cmd_name}").command
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Lazy, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="weightd", message="%(prog)s %(version)s")
@click.option(
    "--socket", metavar="PATH", help="The daemon's socket. Default: $WEIGHTD_SOCKET, then the host's, then your own."
)
@click.pass_context
def cli(ctx: click.Context, socket: str | None) -> None:
    """Model weights to every worker on this host: fetched once, verified, shared without a copy."""
    ctx.obj = socket


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The entry point."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Returns the exit code. Foreseeable faults are one line on stderr, and with --json an object on stdout."""
    as_json = "--json" in arguments
    try:
        # Not cli.main(): it turns a closed pipe into exit code 1.
        with cli.make_context("weightd", arguments) as ctx:
            code = cli.invoke(ctx)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message(), err=True)
        return 2
    except click.UsageError as e:
        if e.ctx is not None:
            click.echo(e.ctx.get_usage(), err=True)
        return fail(as_json, "UsageError", e.format_message(), 2)
    except click.ClickException as e:
        return fail(as_json, "UsageError", e.format_message(), 2)
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            # The terminal has shown ^C on this line.
            click.echo(err=True)
        return fail(as_json, "Interrupted", "interrupted", 130)
    except Terminated:
        return fail(as_json, "Terminated", "ended by SIGTERM", 143)
    except WeightdError as e:
        return fail(as_json, type(e).__name__, str(e), e.exit_code, e)
    except BrokenPipeError:
        # Whoever read our output has gone; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as e:
        if os.environ.get(DEBUG):
            raise
        text = f"internal error: {type(e).__name__}: {e}. This is a bug in weightd; {DEBUG}=1 shows where"
        return fail(as_json, "InternalError", text, 1)
