"""``tiaft histotransfer``: one small module per command."""

import click


@click.group()
def histotransfer() -> None:
    """Learn from slide labels, by attention over tiles."""


def _add_commands() -> None:
    from tiaft_extensions.histotransfer.cli.bags import bags
    from tiaft_extensions.histotransfer.cli.cka import cka
    from tiaft_extensions.histotransfer.cli.compare import compare
    from tiaft_extensions.histotransfer.cli.maps import maps
    from tiaft_extensions.histotransfer.cli.tune import tune

    for command in (bags, cka, compare, maps, tune):
        histotransfer.add_command(command)


_add_commands()
