"""`tiaft reproduce`: the paper's experiments, whole or in miniature, and their cohort."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import CommaList

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(short_help="The paper's experiments, whole or in miniature.")
def reproduce() -> None:
    """Run a paper's experiments again, from its data to a table beside its numbers."""


@reproduce.command()
@click.argument("config", required=False, type=_FILE)
@click.option("--miniature", is_flag=True, help="A small chain on little data, instead.")
@click.option(
    "--data",
    envvar="TIAFT_DATA",
    type=_FOLDER,
    help="The miniature's data [default: TIAFT_DATA].",
)
@click.option("--out", required=True, type=_FOLDER, help="Folder for all that is made.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes of the probes [default: as many as there are cores].",
)
def ftx2048(
    config: Path | None, miniature: bool, data: Path | None, out: Path, workers: int | None
) -> None:
    """Fine-tune, extract and probe as the paper of FTX-2048 does, from one CONFIG file.

    What is there already, of an earlier run with the same settings, is not made again.
    """
    if miniature == (config is not None):
        raise click.UsageError("give either a CONFIG file or --miniature")
    if config is not None:
        from tiaft_plugin.reproduce.config import read_config
        from tiaft_plugin.reproduce.ftx2048 import run_chain

        run_chain(read_config(config), out, workers=workers, say=click.echo)
    else:
        from tiaft_plugin.reproduce.miniature import run_miniature

        run_miniature(data, out, workers=workers, say=click.echo)


@reproduce.command()
@click.option("--manifest", required=True, type=_FILE, help="A GDC manifest of slides.")
@click.option(
    "--expression",
    required=True,
    multiple=True,
    type=_FILE,
    help="Expression, genes × samples or samples × genes; may be repeated.",
)
@click.option(
    "--mutations", required=True, multiple=True, type=_FILE, help="A MAF; may be repeated."
)
@click.option("--genes", type=_FILE, help="Gene list, or InnateDB's export [default: all genes].")
@click.option(
    "--choose", type=click.IntRange(min=1), metavar="N", help="Draw N of the genes at random."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of --choose."
)
@click.option(
    "--mutated-genes",
    type=CommaList("genes A,B,…", str),
    help="Genes of the mutation experiment [default: the paper's nine].",
)
@click.option("--sequenced", type=_FILE, help="Barcodes of all who were sequenced, mutated or not.")
@click.option("--exclude", type=_FILE, help="Slides or patients to leave out, one a line.")
@click.option(
    "--sample-types",
    type=CommaList("sample types such as 01,02", str),
    default="01",
    show_default=True,
    help="TCGA sample types to take; 01 is primary tumour.",
)
@click.option(
    "--need",
    type=CommaList("expression,mutations", str),
    default="expression,mutations",
    show_default=True,
    help="Tables that a patient has to be in.",
)
@click.option("--out", required=True, type=_FOLDER, help="Folder for the tables.")
@click.option("--overwrite", is_flag=True, help="Replace tables that stand there.")
def cohort(out: Path, overwrite: bool, **job: Any) -> None:
    """List the slides, patients and genes of a TCGA cohort.

    Writes slides.csv, expression.csv, mutations.csv, cohort.json, and left_out.csv with all that
    was left out and why.
    """
    from tiaft_plugin.reproduce.cohort import CohortJob, show_cohort, write_cohort

    given = {name: value for name, value in job.items() if value is not None}
    show_cohort(write_cohort(CohortJob(**given), out, overwrite=overwrite), click.echo)
