"""`tiaft histotransfer maps`: where in slides the attention of `tiaft probe mil` lies."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import CLASSES
from tiaft_plugin.errors import TiaftError

_PATH = click.Path(path_type=Path)


@click.command(short_help="Where attention lies: heat maps, the tiles with most, QuPath.")
@click.argument("run", type=_PATH)
@click.argument("stores", nargs=-1, required=True, type=_PATH)
@click.option("--out", required=True, type=_PATH, help="Folder for pictures, tables and report.")
@click.option(
    "--slides",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="PATH",
    help="Slide of the STORES, or folder of slides or of folders of tiles; may be repeated. "
    "Without, maps lie on white, and no tile is shown.",
)
@click.option("--set", "name", default="", metavar="NAME", help="Feature set of RUN, if several.")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    help="Tiles of each slide to show, those with the most attention.",
)
@click.option(
    "--predictions",
    multiple=True,
    type=_PATH,
    metavar="PATH",
    help="Store of `tiaft predict` of the same slides, or a folder of them: its tiles get the "
    "attention as measurements, in whatever is made of it later, too; may be repeated.",
)
@click.option(
    "--to",
    "sinks",
    type=CLASSES,
    metavar="A,B",
    help="Where the tiles of --predictions go now: geojson, qupath=PROJECT, … [default: geojson].",
)
@click.option(
    "--stain-target",
    type=_PATH,
    metavar="IMAGE",
    help="Image that the stains of STORES were normalised to.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
def maps(run: Path, stores: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Draw the attention that RUN, of `tiaft probe mil`, paid to the slides of STORES.

    STORES are those that RUN had, or some of them, or their folder. Each is looked at by the head
    that did not learn from it. Writes OUT/report.html, slides.csv, tiles.csv, and of each slide
    NAME-map.png and, with --slides, NAME-tiles.png.
    """
    if options["sinks"] is not None and not options["predictions"]:
        raise click.UsageError("--to needs --predictions: what goes there are predicted tiles")
    from tiaft_extensions.histotransfer.kept import read_run
    from tiaft_extensions.histotransfer.maps.draw import How, draw_slides
    from tiaft_extensions.histotransfer.maps.report import check_out
    from tiaft_extensions.histotransfer.maps.scores import read_predictions
    from tiaft_plugin.cli.qupath import stores_in as predictions_in
    from tiaft_plugin.engine.export import stores_in
    from tiaft_plugin.engine.sinks import named_sinks

    overwrite = options["overwrite"]
    check_out(out, overwrite=overwrite)
    found, paths = read_run(run, options["name"]), _apart(stores_in(stores))
    how = How(
        options["slides"],
        options["count"],
        [read_predictions(path) for path in predictions_in(options["predictions"])],
        named_sinks(options["sinks"] or ["geojson"]),
        options["stain_target"],
    )
    drawn = draw_slides(found, paths, out, how, overwrite=overwrite)
    for note in drawn.notes:
        click.echo(f"note: {note}")
    for failure in drawn.failures:
        click.echo(f"FAILED {failure}", err=True)
    click.echo(f"{len(drawn.slides)} of {len(paths)} slides drawn")
    click.echo(f"\nreport  {out / 'report.html'}")
    if drawn.failures:
        raise click.exceptions.Exit(1)


def _apart(stores: list[Path]) -> list[Path]:
    names = [path.name for path in stores]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TiaftError(f"two stores are called {twice[0]}: RUN had one of them, name that alone")
    return stores
