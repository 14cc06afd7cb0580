"""`tiaft interpret concepts`: which concepts a model's layers tell, and what they do to classes."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import CommaList, Finite, device_option, model_option, seed_option

_PATH = click.Path(path_type=Path)
NAMES = CommaList("a,b,c", str)


@click.command(short_help="Which concepts a model's layers tell.")
@click.argument("tiles", type=_PATH)
@model_option
@click.option("--out", required=True, type=_PATH, help="Folder for concepts/ and report.html.")
@click.option(
    "--concepts",
    "names",
    type=NAMES,
    default="asm,contrast,correlation",
    show_default=True,
    metavar="A,B",
    help="Concepts to measure: these, energy, dissimilarity, or a plug-in's; '' for none.",
)
@click.option(
    "--table",
    "tables",
    type=_PATH,
    multiple=True,
    help="Table file,concept,… of further concepts; may be repeated.",
)
@click.option(
    "--nuclei",
    type=_PATH,
    metavar="PATH",
    help="GeoJSON or TIAToolbox's .db of nuclei, or a folder with one a slide or tile: their "
    "count, area and eccentricity become concepts.",
)
@click.option("--layers", type=NAMES, default="", metavar="A,B", help="[default: six, by depth]")
@click.option(
    "--pretrained",
    metavar="FILE|none",
    help="Weights to compare with [default: timm's ImageNet weights of the backbone].",
)
@click.option(
    "--count",
    type=click.IntRange(min=50),
    default=1500,
    show_default=True,
    help="Tiles to take, at random.",
)
@click.option(
    "--splits",
    type=click.IntRange(min=2),
    default=10,
    show_default=True,
    help="Times that slides are split into three folds, each held out once.",
)
@click.option(
    "--fit",
    "how",
    type=click.Choice(["ridge", "ols"]),
    default="ridge",
    show_default=True,
    help="Regression behind directions and Br; ols is the paper's.",
)
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="NAME",
    help="Class for TCAV and Br; may be repeated [default: all].",
)
@click.option(
    "--at-least",
    type=Finite(0, 1),
    default=0.99,
    show_default=True,
    metavar="P",
    help="Only tiles to which the model gives their class with more, for TCAV and Br.",
)
@click.option(
    "--repetitions",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    help="Of the t tests of TCAV and Br; 0 for none.",
)
@click.option(
    "--permutations",
    type=click.IntRange(min=0),
    default=999,
    show_default=True,
    help="Of the concepts' values, as the null of TCAV and Br; 0 for none.",
)
@click.option(
    "--relevance/--no-relevance",
    default=True,
    show_default=True,
    help="TCAV and Br, which need gradients and classes.",
)
@device_option
@seed_option
@click.option("--overwrite", is_flag=True, help="Replace OUT/concepts.")
def concepts(
    tiles: Path,
    model: str,
    out: Path,
    names: tuple[str, ...],
    tables: tuple[Path, ...],
    nuclei: Path | None,
    count: int,
    device: str,
    overwrite: bool,
    **options: Any,
) -> None:
    """Find out which concepts the layers of a model tell, and what they do to its classes.

    TILES is a folder per class, or a manifest. Writes OUT/concepts (concepts.csv, r2.csv,
    relevance.csv, figures) and OUT/report.html.
    """
    from tiaft_extensions.interpretability.concepts.measured import read_concepts
    from tiaft_extensions.interpretability.concepts.section import r2_table, write_study
    from tiaft_extensions.interpretability.concepts.study import Asked, choose_tiles, run_study
    from tiaft_extensions.interpretability.report import REPORT, section_folder
    from tiaft_extensions.interpretability.subject import load_subject
    from tiaft_plugin.tiles.tileset import read_tileset

    asked = Asked(**options)
    with section_folder(out, "concepts", overwrite=overwrite) as folder:
        subject = load_subject(model, device)
        tileset = read_tileset(tiles)
        given = [read_concepts(path, tileset) for path in tables]
        if nuclei is not None:
            from tiaft_extensions.interpretability.concepts.nuclei import nuclei_concepts

            given.append(nuclei_concepts(nuclei, tileset))
        chosen, values, notes = choose_tiles(tileset, names, given, count=count, seed=asked.seed)
        study = run_study(subject, chosen, values, asked)
        study.notes[:0] = notes
        write_study(folder, study, subject, asked)
    head, rows = r2_table(study)
    _echo([head, *rows])
    for note in study.notes:
        click.echo(f"note: {note}")
    click.echo(f"\nreport  {out / REPORT}")


def _echo(lines: list[list[Any]]) -> None:
    """Print a table in columns."""
    widths = [max(len(str(line[place])) for line in lines) for place in range(len(lines[0]))]
    for line in lines:
        cells = [str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())
