"""``tiaft transcriptomics expression``: one tidy table out of any expression table."""

from pathlib import Path

import click

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(short_help="Make a tidy table, a row a patient, of any expression table.")
@click.argument("table", type=_FILE)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for expression.csv, slides.csv and left_out.csv.",
)
@click.option(
    "--slides",
    type=click.Path(exists=True, path_type=Path),
    help="Feature stores or slides: a folder, or a file with a name a line.",
)
@click.option("--patients", type=_FILE, help="Table slide,patient, where names do not tell.")
@click.option("--genes", type=_FILE, help="Gene list, one a line [default: all genes].")
@click.option("--unit", default="", metavar="UNIT", help="tpm, fpkm, counts … [default: shown].")
@click.option(
    "--genes-in",
    type=click.Choice(["rows", "columns"]),
    help="Where genes stand [default: by their names].",
)
@click.option("--layer", default="", metavar="NAME", help="AnnData's layer, instead of X.")
def expression(
    table: Path,
    out: Path,
    slides: Path | None,
    patients: Path | None,
    genes: Path | None,
    unit: str,
    genes_in: str | None,
    layer: str,
) -> None:
    """Read TABLE, genes × samples or samples × genes, and write ln(TPM + 1) of patients.

    CSV, TSV, GCT (also .gz), parquet and AnnData are read. With --slides, whose sample is which
    slide's is told, too. What is left out is listed with its reason.
    """
    from tiaft_extensions.transcriptomics.expression.tidy import write_tidy

    told = write_tidy(
        table,
        out,
        slides=slides,
        patients=patients,
        genes=genes,
        unit=unit,
        genes_in=genes_in or "",
        layer=layer,
    )
    click.echo("\n".join(told))
