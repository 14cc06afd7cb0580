"""``tiaft transcriptomics``: one small module per command."""

import click

from tiaft_extensions.transcriptomics.cli.embed import embed
from tiaft_extensions.transcriptomics.cli.evaluate import evaluate
from tiaft_extensions.transcriptomics.cli.expression import expression
from tiaft_extensions.transcriptomics.cli.retrieve import retrieve
from tiaft_extensions.transcriptomics.cli.tune import tune


@click.group()
def transcriptomics() -> None:
    """Fine-tune on gene expression."""


transcriptomics.add_command(expression)
transcriptomics.add_command(tune)
transcriptomics.add_command(evaluate)
transcriptomics.add_command(retrieve)
transcriptomics.add_command(embed)
