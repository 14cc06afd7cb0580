"""`tiaft extract`: slides to feature stores."""

from typing import Any

import click

from tiaft_plugin.cli._slides import run, slide_options


@click.command()
@slide_options
def extract(**options: Any) -> None:
    """Extract features of the tiles of SLIDES.

    Writes OUT/<slide>.zarr (features, coordinates, colour) and OUT/summary.csv. Run it again after
    an interruption: it goes on where it stopped. For labelled tiles there is `tiaft features`.
    """
    run("features", (), options)
