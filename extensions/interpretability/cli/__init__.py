"""``tiaft interpret``: one small module per command."""

import click


@click.group()
def interpret() -> None:
    """Show what a model looks at and which concepts it has learnt."""


def _add_commands() -> None:
    from tiaft_extensions.interpretability.cli.concepts import concepts
    from tiaft_extensions.interpretability.cli.gradcam import gradcam
    from tiaft_extensions.interpretability.cli.tiles import tiles
    from tiaft_extensions.interpretability.cli.visualize import visualize

    for command in (gradcam, visualize, concepts, tiles):
        interpret.add_command(command)


_add_commands()
