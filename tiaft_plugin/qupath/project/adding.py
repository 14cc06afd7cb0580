"""Slides into a QuPath project that lacks them, and projects where there is none."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tiaft_plugin.engine.predictions import TilePredictions
from tiaft_plugin.engine.slides import fingerprint
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.java.add_images import create_project, make_entries
from tiaft_plugin.qupath.project.matching import NotInProjectError, match_predictions
from tiaft_plugin.qupath.project.project_file import (
    Project,
    add_entries,
    check_writable,
    project_lock,
    read_project,
)
from tiaft_plugin.qupath.pushing.push import Where


def add_slides(
    project: Path,
    predictions: Sequence[TilePredictions],
    *,
    create: bool = False,
    slides: Sequence[Path] = (),
    where: Where | None = None,
    dry_run: bool = False,
) -> list[str]:
    """Add the slides of predictions that a project lacks; return a line for each, for people.

    `slides` are files, or folders that are searched for files of the predictions' names. With
    `create`, a project that is not there is made. Raises TiaftError; a slide that is not among
    `slides` is left for the push to name.
    """
    files = [file for path in slides for file in _files_in(path)]
    lines = []
    if not project.exists() and create:
        lines.append(f"{project}: {'a new project would be made' if dry_run else 'a new project'}")
        if not dry_run:
            create_project(project)
    if not project.exists() and dry_run:
        wanted = [found for each in predictions if (found := _file_of(each, files))]
    else:
        found_project = read_project(project)
        wanted = _missing(found_project, predictions, files, where or Where())
        if wanted and not dry_run:
            check_writable(found_project)
            with project_lock(found_project):
                _add(found_project, wanted)
    return lines + [f"{file}: {'would be added' if dry_run else 'added'}" for file in wanted]


def _missing(
    project: Project,
    predictions: Iterable[TilePredictions],
    files: Sequence[Path],
    where: Where,
) -> list[Path]:
    missing = []
    for each in predictions:
        try:
            match_predictions(project, each, where.moved, where.images)
        except NotInProjectError:
            if (file := _file_of(each, files)) and file not in missing:
                missing.append(file)
        except TiaftError:
            continue  # ambiguous, or of another size: the push says so
    return missing


def _add(project: Project, slides: Sequence[Path]) -> None:
    # Beside the project, so that what was made moves into it by a rename.
    with tempfile.TemporaryDirectory(prefix=".tiaft-", dir=project.path.parent) as scratch:
        entries, folders = make_entries(slides, Path(scratch))
        add_entries(project.path, entries, folders)


def _file_of(predictions: TilePredictions, files: Sequence[Path]) -> Path | None:
    """Return the slide that predictions are of: the file itself, or one of its name and content."""
    for file in (predictions.slide, *files):
        same_name = file.name == predictions.slide.name
        if same_name and file.exists() and predictions.fingerprint in ("", fingerprint(file)):
            return file.absolute()
    return None


def _files_in(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]
