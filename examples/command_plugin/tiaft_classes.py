"""A command: ``tiaft classes FILE`` prints a model's classes, one a line."""

import click

from tiaft_plugin import hookimpl


@hookimpl
def register_commands(cli):
    cli.add_command(classes)


@click.command()
@click.argument("file", type=click.Path())
def classes(file):
    """Print the classes of a model file."""
    from tiaft_plugin.network import read_card

    for name in read_card(file).classes:
        click.echo(name)
