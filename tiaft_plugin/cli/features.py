"""`tiaft features`: a labelled tile set to a feature set for probes."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import (
    POSITIVE,
    batch_size_option,
    device_option,
    model_option,
    stain_of,
    stain_options,
    workers_option,
)


@click.command(short_help="Compute features of labelled tiles, for probes.")
@click.argument("tiles", type=click.Path(path_type=Path))
@model_option
@click.option(
    "--out",
    required=True,
    metavar="FILE.npz",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for the features.",
)
@click.option(
    "--mpp",
    type=POSITIVE,
    metavar="UM_PER_PX",
    help="The tiles' µm/px [default: from the manifest, or of a known data set].",
)
@stain_options
@batch_size_option(32)
@workers_option
@device_option
@click.option("--overwrite", is_flag=True, help="Replace the file that stands in the way.")
def features(tiles: Path, out: Path, **options: Any) -> None:
    """Compute features of TILES, a folder per class or a manifest.csv, for `tiaft probe`.

    `tiaft extract` is for slides. Writes one .npz: features, colour, labels and groups, a row a
    tile.
    """
    from tiaft_plugin.cli._logging import quiet_tiatoolbox
    from tiaft_plugin.engine.tile_features import extract_tiles
    from tiaft_plugin.files import refuse_existing, refuse_unwritable
    from tiaft_plugin.probes.features import write_features
    from tiaft_plugin.probes.interface import FeatureTable
    from tiaft_plugin.tiles.tileset import read_tileset

    quiet_tiatoolbox()
    if out.suffix.lower() != ".npz":
        raise click.UsageError(f"--out {out}: a feature set is written as .npz")
    if not options["overwrite"]:
        refuse_existing(out)
    refuse_unwritable(out)  # before hours of work for it
    found = extract_tiles(
        read_tileset(tiles, mpp=options["mpp"]),
        options["model"],
        batch_size=options["batch_size"],
        workers=options["workers"],
        device=options["device"],
        stain=stain_of(options),
    )
    for warning in found.warnings:
        click.echo(f"Warning: {warning}", err=True)
    table = FeatureTable(
        out.stem,
        found.keys,
        found.features,
        found.groups,
        found.labels,
        found.colour,
        {"models": found.about["models"], "about": found.about},
    )
    write_features(out, table, overwrite=options["overwrite"])
    rows, width = found.features.shape
    click.echo(f"{rows} tiles with {width} features each -> {out}")
    if left := found.about.get("not_normalised"):
        click.echo(f"{left} of {rows} tiles not stain-normalised")
