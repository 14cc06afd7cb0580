"""The command line ``tiaft``: its frame, and how errors look. The commands come through a hook."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from tiaft_plugin import __version__
from tiaft_plugin.cli._logging import quiet_tiatoolbox
from tiaft_plugin.errors import TiaftError


class Commands(click.Group):
    """tiaft's commands, in the order in which plug-ins add them; each name is taken once."""

    loaded = False
    adding = ""  # the plug-in that adds its commands just now

    def load(self) -> None:
        """Let every plug-in add its commands. One that fails is named on stderr and left out."""
        if self.loaded:
            return
        self.loaded = True
        from tiaft_plugin.plugins import each_plugin

        for self.adding, add_commands in each_plugin("register_commands"):
            try:
                add_commands(cli=self)
            except TiaftError as error:
                click.echo(f"tiaft: {error}", err=True)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command. Raises TiaftError where there is one of that name."""
        name = name or cmd.name or ""
        if name in self.commands:
            raise TiaftError(f"plug-in {self.adding} adds the command {name!r}, which is taken")
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in order of the work, not of the alphabet."""
        self.load()
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by name."""
        self.load()
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="TIAFT_DEBUG=1 shows where an error comes from.",
)
@click.version_option(__version__, "-V", "--version", prog_name="tiaft")
def cli() -> None:
    """Fine-tune tile models, run them on slides with TIAToolbox, open the result in QuPath.

    The commands stand in the order of the work. `tiaft COMMAND --help` explains one of them,
    `tiaft demo` shows them all at work, `tiaft doctor` says what this computer lacks.
    """


@cli.result_callback()
def _forget(*_: Any, **__: Any) -> None:
    """What a command returns is no exit code."""


def main(args: Sequence[str] | None = None) -> None:
    """Run ``tiaft`` and exit: 0 done, 1 some of it failed, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # µ must not fail where a console lacks it
    sys.exit(_run(args))


def _run(args: Sequence[str] | None) -> int:
    try:
        quiet_tiatoolbox()
        return cli.main(args, prog_name="tiaft", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return 130  # as shells have it: 128 and the signal's number
    except Exception as error:
        if os.environ.get("TIAFT_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        click.echo(f"Error: {_one_line(error)}", err=True)
        return error.exit_code if isinstance(error, TiaftError) else 1


def _one_line(error: Exception) -> str:
    """Say what went wrong to someone who did not write the program."""
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if isinstance(error, TiaftError):
        return text
    if isinstance(error, OSError) and error.strerror:
        files = " -> ".join(str(f) for f in (error.filename, error.filename2) if f is not None)
        return f"{files}: {error.strerror}" if files else error.strerror
    no_memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text
    if isinstance(error, MemoryError) or no_memory:
        return f"out of memory: a smaller --batch-size needs less ({text or 'no more is known'})"
    return (
        f"unexpected {type(error).__name__}: {text or 'no more is known'}. "
        "Please report it, with what TIAFT_DEBUG=1 shows"
    )
