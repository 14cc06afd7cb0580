"""`tiaft histotransfer cka`: how alike the layers of two models are."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import CommaList, device_option, seed_option

_PATH = click.Path(path_type=Path)


@click.command(short_help="How alike the layers of two models are, such as before and after.")
@click.argument("tiles", type=_PATH)
@click.option(
    "--model",
    "models",
    required=True,
    multiple=True,
    metavar="NAME|FILE",
    help="Registered name or model file; twice, or once with --pretrained.",
)
@click.option(
    "--pretrained",
    metavar="imagenet|FILE",
    help="Compare one model with the weights it had before fine-tuning.",
)
@click.option(
    "--layers",
    "layers",
    type=CommaList("a,b,c", str),
    multiple=True,
    metavar="A,B",
    help="Layers of both; given twice, of each [default: up to eight ends of blocks].",
)
@click.option("--out", required=True, type=_PATH, help="Folder for the report and tables.")
@click.option(
    "--count",
    type=click.IntRange(min=4),
    default=1000,
    show_default=True,
    help="Tiles to take, at random.",
)
@click.option(
    "--batch-size",
    "batch",
    type=click.IntRange(min=4),
    default=256,
    show_default=True,
    help="Tiles of a minibatch, at least.",
)
@click.option(
    "--exact/--no-exact",
    default=True,
    show_default=True,
    help="CKA of all tiles at once, too, which needs memory for wide layers.",
)
@seed_option
@device_option
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
def cka(
    tiles: Path,
    models: tuple[str, ...],
    pretrained: str | None,
    layers: tuple[tuple[str, ...], ...],
    out: Path,
    device: str,
    overwrite: bool,
    **options: Any,
) -> None:
    """Compare what two models make of TILES, layer by layer, by linear CKA.

    TILES is a folder per class, or a manifest. The models may have different layers and tile sizes.
    Writes OUT/report.html, cka.csv, cka.png, summary.json, and by_layer.png where both have layers
    of the same names, such as a frozen network and the same fine-tuned.
    """
    if len(models) + bool(pretrained) != 2:
        raise click.UsageError("two models, please: --model twice, or --model and --pretrained")
    if len(layers) > 2:
        raise click.UsageError("--layers once, for both models, or twice, for each")
    from tiaft_extensions.histotransfer.cka.report import check_out, write_comparison
    from tiaft_extensions.histotransfer.cka.study import before, compare, side
    from tiaft_extensions.interpretability.subject import load_subject
    from tiaft_plugin.files import refuse_among_tiles
    from tiaft_plugin.tiles.tileset import read_tileset

    refuse_among_tiles(out, tiles)
    check_out(out, overwrite=overwrite)
    subjects = [load_subject(model, device) for model in models]
    if pretrained:
        subjects.insert(0, before(subjects[0], pretrained, options["seed"]))
    wanted = [*layers, *layers] if len(layers) == 1 else layers or ((), ())
    a, b = (side(*each) for each in zip(subjects, wanted, strict=True))
    found = compare(a, b, read_tileset(tiles), **options)
    report = write_comparison(out, found, seed=options["seed"], overwrite=overwrite)
    _echo(found)
    click.echo(f"\nreport  {report}")


def _echo(found: Any) -> None:
    """Print the layers that both have, or which are most alike, and the notes."""
    from tiaft_extensions.histotransfer.cka.report import common_table, nearest_table

    head, rows = common_table(found) if found.common else nearest_table(found)
    lines = [head, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())
    for note in found.notes:
        click.echo(f"note: {note}")
