"""s3fs-banyan: the command. Turns errors into one line and a code."""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from typing import Annotated

import typer

from s3fs_banyan import __version__
from s3fs_banyan.cli.loading import MARKUP, Commands
from s3fs_banyan.cli.output import OutputLost, guarded_output, print_line, printable
from s3fs_banyan.errors import BanyanFSError, ConfigError, ExitCode
from s3fs_banyan.observe.log import ROOT as LOG_ROOT
from s3fs_banyan.observe.log import redact, setup_logging

_NAME = "s3fs-banyan"
_INTERRUPTED = 130
_ADDED_BY_TYPER = "Value error, "

app = typer.Typer(
    name=_NAME,
    cls=Commands,
    help="A POSIX file system that keeps its data in an object store, made for BanyanDB.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"s3fs-banyan {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Log everything; show the traceback of a failure.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Set up what all commands share."""
    context.obj = debug
    if debug:
        setup_logging("debug", "text", sys.stderr)


def run_command(arguments: list[str]) -> int:
    """Run the command of this process; returns its exit code, of `errors.ExitCode` or 130."""
    # An error is one line, and the log would say it twice. `mount` and --debug set up their own.
    logging.getLogger(LOG_ROOT).setLevel(logging.CRITICAL + 1)
    with guarded_output():
        return run(arguments)


def run(arguments: list[str]) -> int:
    """Run a command; returns its exit code. What it printed has left, or that is its error."""
    try:
        code = int(app(arguments, standalone_mode=False, prog_name=_NAME) or 0)
        sys.stdout.flush()
    except OutputLost as error:
        if error.is_unread:  # who read our output has gone: nothing is left to be said to them
            return _INTERRUPTED
        _say_error(str(error))
        return int(error.exit_code)
    except BanyanFSError as error:
        # One line for each fault of a configuration; everything else is one line.
        lines = str(error).splitlines() if isinstance(error, ConfigError) else [str(error)]
        for line in lines:
            _say_error(line or type(error).__name__)
        return int(error.exit_code)
    except typer.TyperException as error:
        if message := error.format_message():  # empty where the help has been printed
            _say_error(f"{message.replace(_ADDED_BY_TYPER, '')} (see {_NAME} --help)")
        return int(ExitCode.USAGE)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the last resort of the whole command
        if "--debug" in arguments:
            sys.stderr.write(redact(traceback.format_exc()))
        hint = "" if "--debug" in arguments else " (s3fs-banyan --debug COMMAND ... shows where)"
        _say_error(f"unforeseen failure: {type(error).__name__}: {error}{hint}")
        return int(ExitCode.INTERNAL)
    if code == _INTERRUPTED:  # typer turns the interruption of a command into this code
        _say_error("interrupted")
    return code


def _say_error(text: str) -> None:
    with suppress(OSError):  # the exit code still says it
        sys.stderr.write(f"s3fs-banyan: {printable(redact(text))}\n")
        sys.stderr.flush()
