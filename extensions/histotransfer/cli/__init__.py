"""``tiaft histotransfer``: one small module per command."""

import click


@click.group()
def histotransfer() -> None:
    """Learn from slide labels, by attention over tiles."""


def _add_commands() -> None:
    from tiaft_extensions.histotransfer.cli.cka import cka

    for command in (cka,):
        histotransfer.add_command(command)


_add_commands()
