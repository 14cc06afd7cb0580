"""Tile predictions straight into a QuPath project: ``tiaft predict --to qupath=PROJECT``."""

import logging
from pathlib import Path

from tiaft_plugin.engine.predictions import TilePredictions
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.project.adding import add_slides
from tiaft_plugin.qupath.pushing.push import push


def write_project(predictions: TilePredictions, project: Path) -> None:
    """Push the tiles of one slide; the project is made, and the slide added, where it is not.

    Raises TiaftError.
    """
    add_slides(project, [predictions], create=True)
    [changed] = push(project, [predictions])
    if changed.reason:
        raise TiaftError(changed.reason)
    log = logging.getLogger(__name__)
    if changed.corrected:
        log.warning(
            "%s: %d tiles stay whose class a person changed", changed.image, changed.corrected
        )
    for note in changed.notes:
        log.warning("%s: %s", changed.image, note)
