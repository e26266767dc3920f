"""The command line: its commands, its version, and the only place that catches.

See also: commands.py, where the commands are. What a command needs it imports inside, so that it
starts at once.
"""

import errno
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from prune_cli.cli import signals
from prune_cli.cli.commands import COMMANDS
from prune_cli.cli.complaints import CommandLineError, ParserError, complain
from prune_cli.cli.help import write_epilog, write_help
from prune_cli.cli.plainly import convert_plainly
from prune_cli.errors import OutputError, PruneError


class _Command(TyperCommand):
    """A command whose help names values and no types, and which converts them plainly."""

    def get_params(self, ctx: Any) -> Any:
        return _plain(super().get_params(ctx))


class _Group(TyperGroup):
    """The same for all commands together."""

    def get_params(self, ctx: Any) -> Any:
        return _plain(super().get_params(ctx))


def _plain(parameters: Any) -> Any:
    for parameter in parameters:
        parameter.display_type = lambda *_, **__: ""
    convert_plainly(parameters)
    return parameters


def _print_version(wanted: bool) -> None:
    if wanted:
        from prune_cli.cli.version import describe_version
        from prune_cli.show import console

        console.write_stdout(describe_version() + "\n")
        raise typer.Exit


def prune_cli(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            help="Show the versions of prune-cli and torch, and the devices.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Remove channels at random, reproducibly, from any PyTorch checkpoint, from the shell."""


def make_app(names: Iterable[str] = tuple(COMMANDS)) -> typer.Typer:
    """Return the command line with the commands called `names`."""
    app = _make_empty_app()
    for name in names:
        command = COMMANDS[name].load(name)
        about, epilog = write_help(command.__doc__ or "")
        app.command(name, cls=_Command, help=about, epilog=epilog, no_args_is_help=True)(command)
    return app


def _make_listing() -> typer.Typer:
    """Return a command line that shows all commands and runs none: it imports none of them."""
    app = _make_empty_app()
    for name, command in COMMANDS.items():
        app.command(name, help=command.about)(lambda: None)
    return app


def _make_empty_app() -> typer.Typer:
    app = typer.Typer(
        cls=_Group,
        epilog=write_epilog(
            "prune-cli inspect model.pt",
            "prune-cli random-structured model.pt --amount 0.25 --dim 0",
            "prune-cli verify model.pruned.safetensors model.pt",
        ),
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(prune_cli)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `argv` is without the name of the program."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        app = _choose_app(words)
        return app(args=words, prog_name="prune-cli", standalone_mode=False) or 0
    except SystemExit as end:
        # 1 is what Typer and Rich end with when nobody reads the help that they print.
        return OutputError.exit_code if end.code == 1 else int(end.code or 0)
    except (Exception, signals.Interrupted) as error:
        exit_code = _show_interrupted() if signals.has_come() else _show(error)
        if exit_code is None:
            raise
        return exit_code


def _choose_app(words: Sequence[str]) -> typer.Typer:
    """Return the command line with no more commands than `words` need."""
    name = next((word for word in words if not word.startswith("-")), None)
    if name in COMMANDS:
        return make_app([name])
    return make_app() if "_PRUNE_CLI_COMPLETE" in os.environ else _make_listing()


def _show(error: BaseException) -> int | None:
    """Say what a user can cause, and return its exit code; None for a bug."""
    from prune_cli.show import console

    if type(error).__name__ == "NoArgsIsHelpError":  # the help is shown
        return 2
    if isinstance(error, ParserError):
        error = complain(error, _all_commands)
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        # Typer and Rich print help, and this is what a full stdout gives.
        place = error.filename or "stdout"
        error = OutputError(f"{place} cannot be written: {error.strerror}")
    if not isinstance(error, PruneError):
        return None
    console.show_error(error)
    if isinstance(error, CommandLineError):
        console.show_tips(error.tips)
    return error.exit_code


def _show_interrupted() -> int:
    from prune_cli.show import console

    console.show_interrupted()
    return signals.INTERRUPTED


def _all_commands() -> Any:
    command: Any = get_command(make_app())
    return command.commands
