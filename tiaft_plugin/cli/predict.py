"""`tiaft predict`: slides to class probabilities, and on to QuPath."""

from typing import Any

import click

from tiaft_plugin.cli._slides import run, slide_options
from tiaft_plugin.cli.options import CLASSES


@click.command()
@slide_options
@click.option(
    "--to",
    "sinks",
    default="geojson,annotationstore",
    show_default=True,
    type=CLASSES,
    metavar="A,B",
    help="What to make of them: geojson, qupath=PROJECT, annotationstore, picture, or a plug-in's.",
)
def predict(sinks: tuple[str, ...], **options: Any) -> None:
    """Predict the class of the tiles of SLIDES.

    Writes OUT/<slide>.zarr (probabilities, coordinates), for each of --to a file beside it
    (OUT/<slide>.geojson, .db, .png), and OUT/summary.csv.
    """
    run("predictions", sinks, options)
