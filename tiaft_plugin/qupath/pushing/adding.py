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


def is_project(path: Path) -> bool:
    """Whether there is a project already: a file, or a folder with anything in it."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def add_slides(
    project: Path,
    predictions: Sequence[TilePredictions],
    *,
    create: bool = False,
    slides: Sequence[Path] = (),
    where: Where | None = None,
    dry_run: bool = False,
) -> list[tuple[TilePredictions, Path]]:
    """Add the slides of predictions that a project lacks; return which, with their files.

    `slides` are files, or folders that are searched for files of the predictions' names. With
    `create`, a project that is not there is made. Raises TiaftError; a slide that is not among
    `slides` is left for the push to name.
    """
    files = [file for path in slides for file in _files_in(path)]
    if create and not is_project(project):
        found = _with_files(predictions, files)
        if not found:
            raise TiaftError(f"{project} would have no image: name the slides with --slides")
        if dry_run:
            return found
        create_project(project)
    there = read_project(project)
    if dry_run:
        return _missing(there, predictions, files, where or Where())
    check_writable(there)
    with project_lock(there):  # and read again: another run may just have added them
        missing = _missing(read_project(project), predictions, files, where or Where())
        if missing:
            _add(there, list(dict.fromkeys(file for _, file in missing)))
    return missing


def _missing(
    project: Project,
    predictions: Iterable[TilePredictions],
    files: Sequence[Path],
    where: Where,
) -> list[tuple[TilePredictions, Path]]:
    missing = []
    for each in predictions:
        try:
            match_predictions(project, each, where.moved, where.images)
        except NotInProjectError:
            missing.append(each)
        except TiaftError:
            continue  # ambiguous, or of another size: the push says so
    return _with_files(missing, files)


def _with_files(
    predictions: Iterable[TilePredictions], files: Sequence[Path]
) -> list[tuple[TilePredictions, Path]]:
    found = ((each, _file_of(each, files)) for each in predictions)
    return [(each, file) for each, file in found if file is not None]


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
