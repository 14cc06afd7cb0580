"""``tiaft transcriptomics retrieve``: expression by images, and images by expression."""

from pathlib import Path

import click

from tiaft_plugin.cli.options import batch_size_option, device_option, seed_option

_PATH = click.Path(path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(short_help="Find patients' expression by their images, and back.")
@click.argument("source", metavar="TILES|SLIDES.csv", type=click.Path(exists=True, path_type=Path))
@click.option("--run", required=True, type=_PATH, help="Folder of a finished `tune`.")
@click.option("--expression", "table", required=True, type=_FILE, help="Expression table.")
@click.option("--out", required=True, type=_PATH, help="Folder for features and results.")
@click.option(
    "--base",
    default="",
    metavar="NAME|FILE",
    show_default="none",
    help="Model before the tuning: ridge regression on its features is held against the run.",
)
@click.option("--patients", type=_FILE, help="Table slide,patient, where names do not tell.")
@click.option("--unit", default="", metavar="UNIT", help="tpm, fpkm … [default: shown].")
@click.option(
    "--genes-in",
    type=click.Choice(["rows", "columns"]),
    help="Where genes stand [default: by their names].",
)
@seed_option
@batch_size_option(32)
@device_option
def retrieve(
    source: Path,
    run: Path,
    table: Path,
    out: Path,
    base: str,
    patients: Path | None,
    unit: str,
    genes_in: str | None,
    seed: int,
    batch_size: int,
    device: str,
) -> None:
    """Rank patients' expression by their images, and images by expression, without any training.

    TILES is as for `tune`, SLIDES.csv as for `tiaft cohort`. Patients that the run has learnt from,
    or chose its epoch by, are not asked about; --base learns from them. Features are kept in OUT.
    Writes retrieval.csv, ranks.csv and unmatched.csv.
    """
    from tiaft_extensions.transcriptomics.evaluate.features import FeatureCache
    from tiaft_extensions.transcriptomics.evaluate.finished import read_finished
    from tiaft_extensions.transcriptomics.evaluate.retrieval import (
        SCORES,
        lines,
        write_retrieved,
    )
    from tiaft_extensions.transcriptomics.evaluate.retrieval import retrieve as run_retrieve
    from tiaft_extensions.transcriptomics.evaluate.run import FEATURES
    from tiaft_extensions.transcriptomics.expression.tables import read_expression_table
    from tiaft_plugin.engine.jobs import read_patients
    from tiaft_plugin.errors import TiaftError
    from tiaft_plugin.files import locked, refuse_among_tiles, refuse_unwritable
    from tiaft_plugin.reproduce.leftout import LeftOut

    refuse_among_tiles(out, source)
    finished, left = read_finished(run), LeftOut()
    of = read_patients(patients) if patients else {}
    known = {*of, *of.values(), *finished.patients}
    expression = read_expression_table(
        table, known=known, unit=unit, genes_in=genes_in or "", left=left
    )
    if out.resolve() == run.resolve():
        raise TiaftError(f"--out {out} is the run itself, whose unmatched.csv would be lost")
    refuse_unwritable(out / SCORES)
    with locked(out / SCORES, wait=False):
        cache = FeatureCache(out / FEATURES, device, batch_size)
        found = run_retrieve(
            finished, source, expression, cache, base=base, patients=of, seed=seed, left=left
        )
        write_retrieved(out, found)
        left.write(out / "unmatched.csv")
    for line in (*lines(found), *left.summary()):
        click.echo(line)
    click.echo(f"\nresults  {out / SCORES}")
