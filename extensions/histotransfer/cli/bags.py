"""`tiaft histotransfer bags`: folders of tiles to feature stores."""

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


@click.command(short_help="Folders of tiles to feature stores, as if each were a slide.")
@click.argument("tiles", type=click.Path(path_type=Path))
@model_option
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the stores; what is in it stays.",
)
@click.option(
    "--mpp",
    type=POSITIVE,
    metavar="UM_PER_PX",
    help="The tiles' µm/px [default: from the manifest, or of a known data set].",
)
@click.option(
    "--patients",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV table with columns slide,patient; a slide is a folder here [default: the "
    "manifest's groups].",
)
@stain_options
@batch_size_option(32)
@workers_option
@device_option
@click.option("--overwrite", is_flag=True, help="Replace stores that stand in the way.")
def bags(tiles: Path, out: Path, **options: Any) -> None:
    """Compute features of TILES, a folder of tiles for each bag, for `tiaft probe mil`.

    Writes OUT/FOLDER.zarr for each. Slides have `tiaft extract`.
    """
    from tiaft_extensions.histotransfer.tile_stores import write_tile_stores
    from tiaft_plugin.engine.jobs import read_patients
    from tiaft_plugin.files import refuse_among_tiles
    from tiaft_plugin.tiles.tileset import read_tileset

    refuse_among_tiles(out, tiles)
    stain = stain_of(options)
    patients = read_patients(options["patients"]) if options["patients"] else None
    how = {name: options[name] for name in ("batch_size", "workers", "device", "overwrite")}
    found = read_tileset(tiles, mpp=options["mpp"], classes=_folders(tiles))
    stores = write_tile_stores(found, options["model"], out, patients=patients, stain=stain, **how)
    click.echo(f"{len(stores)} bags of {len(found)} tiles -> {out}")


def _folders(tiles: Path) -> list[str] | None:
    """Return the bags' names where folders give them: a bag of one tile is no rare class."""
    if not tiles.is_dir() or (tiles / "manifest.csv").exists():
        return None
    return [path.name for path in sorted(tiles.iterdir()) if path.is_dir()] or None
