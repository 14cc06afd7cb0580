"""``tiaft truncate``: one small module per command."""

import click

from tiaft_extensions.truncation.cli.cuts import cuts
from tiaft_extensions.truncation.cli.study import study


@click.group()
def truncate() -> None:
    """Find out how much of a pretrained network is needed."""


truncate.add_command(cuts)
truncate.add_command(study)
