"""The command line: one file a verb, each imported when it is used.

Results go to stdout, logs and progress to stderr. Exit codes: 0 done, 1 a user's mistake or a
step that failed, 2 wrong usage, 130 stopped by Ctrl-C, SIGTERM or SIGHUP.
"""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import sys
from typing import Any

import click

from rib_harness import __version__
from rib_harness.cli.encodings import write_what_can_be_read
from rib_harness.cli.ending import end_soon
from rib_harness.cli.say import Printable, echo
from rib_harness.errors import RibError, nearest
from rib_harness.quiet import results_are_out
from rib_harness.threads import wait_passively

#: Verb → module and one line of help, so that `--help` imports none of them.
VERBS = {
    "run": "Fine-tune on each member of a suite, measure on all the others.",
    "evaluate": "Measure an untouched backbone on a suite.",
    "plan": "Show which steps a run needs, and which are done.",
    "results": "Show the results of a store again, as a table, CSV, JSON or Markdown.",
    "compare": "Compare two methods, backbones, runs or stores, image by image.",
    "report": "Write one HTML page, or the figures of a paper, from the results of a store.",
    "study": "Run one of the paper's studies: its figure and its table.",
    "doctor": "Check every file of a store.",
    "why": "Explain what made a step's key.",
    "data": "List, fetch, prepare, make and verify datasets.",
    "list": "List components: backbones, datasets, methods, metrics or suites.",
    "show": "Show one component with its options.",
    "list-plugins": "List the installed plugins.",
    "new-plugin": "Write a package for a plugin of your own, which works as it is.",
    "check-plugin": "Check that a plugin keeps what plugins promise.",
    "describe-plugin": "Describe an installed plugin, also as an entry for the registry.",
    "registry": "List the known plugins, installed or not.",
    "plugins": "Install, upgrade or uninstall a plugin.",
}


class Verbs(click.Group):
    """Imports a verb's module on first use."""

    def list_commands(self, context: click.Context) -> list[str]:
        """All verbs."""
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The verb's command."""
        if name not in VERBS:
            return None
        module = importlib.import_module(f"rib_harness.cli.{name.replace('-', '_')}_")
        command: click.Command = module.command
        return command

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        """As click's, with the nearest verb in the error."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"No verb {args[0]!r}.{nearest(args[0], VERBS)}", context)
        return super().resolve_command(context, args)

    def invoke(self, context: click.Context) -> Any:
        """As click's, but a reader (head, less) that has gone is no failure."""
        try:
            return super().invoke(context)
        except BrokenPipeError:  # caught further out, click would end with 1
            _discard_output()
            return 0

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with their help, importing none."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Start with: rib-harness run --method lwf",
)
@click.version_option(__version__, package_name="rib-harness")
def cli() -> None:
    """Does fine-tuning keep the robustness that a pretrained vision model came with?"""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the program."""
    if arguments is None:
        # What libraries start, the processes of a pool, takes no module from the current folder.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Printable())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    if sys.stdout is None:  # closed by the caller: the next file opened would be number 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout = os.fdopen(1, "w")
    write_what_can_be_read()
    wait_passively()
    code = _code(arguments)
    if arguments is None:  # called as a program, which ends now
        results_are_out()
        end_soon(code)
    sys.exit(code)


def _code(arguments: list[str] | None) -> int:
    try:
        code = cli.main(arguments, standalone_mode=False, prog_name="rib-harness")
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        verb = next(iter(sys.argv[1:] if arguments is None else arguments), "")
        works = verb in ("run", "evaluate", "study")
        echo(f"Stopped{' before any step; nothing was lost' * works}.", err=True)
        return 130
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        echo(said.getvalue().rstrip("\n"), err=True)
        return error.exit_code
    except RibError as error:
        echo(f"Error: {error}", err=True)
        return 1
    except SystemExit as stopped:  # a verb's, which has said why; a plugin's is no success
        return stopped.code if isinstance(stopped.code, int) and stopped.code else 1
    except KeyboardInterrupt:
        echo("Stopped.", err=True)
        return 130
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        echo(f"Error: {error.strerror}: the output cannot be written.", err=True)
        _discard_output()
        return 1


def _discard_output() -> None:
    """What is left to be written when the process ends has no reader."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
