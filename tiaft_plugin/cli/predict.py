"""`tiaft predict`: slides to class probabilities, and on to QuPath."""

from typing import Any

import click

from tiaft_plugin.cli._slides import run, sinks_option, slide_options


@click.command()
@slide_options
@sinks_option
def predict(sinks: tuple[str, ...], **options: Any) -> None:
    """Predict the class of the tiles of SLIDES.

    Writes OUT/<slide>.zarr (probabilities, coordinates), for each of --to a file beside it
    (OUT/<slide>.geojson, .db, .png), and OUT/summary.csv.
    """
    run("predictions", sinks, options)
