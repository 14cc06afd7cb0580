"""Tile predictions straight into a QuPath project: ``tiaft predict --to qupath=PROJECT``."""

import logging
from pathlib import Path

from tiaft_plugin.engine.predictions import TilePredictions
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import locked, refuse_unwritable
from tiaft_plugin.qupath.java.start import start_java
from tiaft_plugin.qupath.project.project_file import check_writable, read_project
from tiaft_plugin.qupath.pushing.adding import add_slides, is_project
from tiaft_plugin.qupath.pushing.push import push


def check_project(project: Path) -> None:
    """Raise TiaftError without QuPath, and for what is no project that can be written."""
    start_java()
    if is_project(project):
        check_writable(read_project(project))
    else:
        refuse_unwritable(project)


def write_project(predictions: TilePredictions, project: Path) -> None:
    """Push the tiles of one slide; the project is made, and the slide added, where it is not.

    Raises TiaftError.
    """
    with locked(project, wait=True):  # another run may be about to make it
        add_slides(project, [predictions], create=True)
    [changed] = push(project, [predictions], wait=True)  # several runs may write into one project
    if changed.reason:
        raise TiaftError(changed.reason)
    log = logging.getLogger(__name__)
    if changed.corrected:
        log.warning(
            "%s: %d tiles stay whose class a person changed", changed.image, changed.corrected
        )
    for note in changed.notes:
        log.warning("%s: %s", changed.image, note)
