"""Tile predictions into the images of a QuPath project, and out of them again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from tiaft_plugin.engine.predictions import TilePredictions, predictions_of
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.files import refuse_unwritable
from tiaft_plugin.qupath.java.image_data import open_image
from tiaft_plugin.qupath.marks import image_metadata, metadata_of_model, models_of_metadata
from tiaft_plugin.qupath.objects import Found, NewAreas, NewTiles
from tiaft_plugin.qupath.project.frame import frame_of
from tiaft_plugin.qupath.project.matching import match_predictions
from tiaft_plugin.qupath.project.project_file import (
    ImageEntry,
    Project,
    check_writable,
    project_lock,
    read_project,
    set_image_metadata,
)
from tiaft_plugin.qupath.project.writing import rewrite
from tiaft_plugin.qupath.pushing.merge import merge_tiles
from tiaft_plugin.qupath.pushing.plan import Plan, find_model, plan_push, plan_remove
from tiaft_plugin.qupath.pushing.prepare import new_tiles
from tiaft_plugin.qupath.pushing.script import write_script


@dataclass(frozen=True)
class How:
    """How predictions become objects.

    With `areas` annotations, each of neighbouring tiles of one class, instead of tiles. A tile
    whose probability is below `min_probability` is unclassified; with `classes`, only tiles of
    these are made.
    """

    areas: bool = False
    min_probability: float | None = None
    classes: Sequence[str] | None = None


@dataclass(frozen=True)
class Where:
    """How slides are found in a project: `moved` folders as it has them, with where they are now;
    `images`, ids or names, alone come into question, where any are given."""

    moved: Sequence[tuple[str, str]] = ()
    images: Sequence[str] = ()


@dataclass(frozen=True)
class Changed:
    """What was done to an image, or with a dry run would be: counts of objects.

    `corrected` are the model's own whose class a person changed: they stayed. `others` are other
    models' and people's, which stay always. `reason` says why nothing was done.
    """

    image: str
    added: int = 0
    removed: int = 0
    corrected: int = 0
    others: int = 0
    notes: tuple[str, ...] = ()
    reason: str = ""


Report = Callable[[Changed], None]
Prepared = tuple[ImageEntry, NewTiles | NewAreas, list[str]]


def _silent(changed: Changed) -> None:
    """What hears of changes where nobody does."""


def push(
    project: Path | str,
    predictions: Sequence[Path | TilePredictions],
    how: How | None = None,
    where: Where | None = None,
    *,
    dry_run: bool = False,
    wait: bool = False,
    report: Report = _silent,
) -> list[Changed]:
    """Write predictions (stores, or a sink's) into the images of a project, one after the other.

    The model's own earlier objects are replaced, an older grid's too, except those whose class a
    person changed. What is wrong with one slide does not stop the others: its result has a reason.
    `report` hears of each as it is done; with `wait`, another run that has the project is waited
    for. Raises TiaftError for a project that cannot be read or written, Stopped where the disk is
    full.
    """
    found = _open(project, dry_run)
    changes = []
    done: dict[tuple[int, str], str] = {}
    with nullcontext() if dry_run else project_lock(found, wait=wait):
        found = read_project(project)  # another run may have had it until now
        for each in predictions:
            try:
                ready = prepare(found, _read(each), how or How(), where or Where())
                _refuse_second(done, ready, str(each) if isinstance(each, Path) else _name(each))
                changed = _push(found, *ready, dry_run)
            except Stopped:
                raise
            except TiaftError as error:
                changed = Changed(_name(each), reason=str(error))
            report(changed)
            changes.append(changed)
    return changes


def push_by_script(
    project: Path | str,
    predictions: Sequence[Path | TilePredictions],
    how: How | None = None,
    where: Where | None = None,
    *,
    dry_run: bool = False,
) -> list[Changed]:
    """Write what a push would, as files with scripts that QuPath runs later; needs no Java.

    `added` counts the objects in the files: what they replace is known when a script runs. Raises
    as `push`.
    """
    found = read_project(project)
    for folder in () if dry_run else ("tiaft", "scripts"):
        refuse_unwritable(found.path.parent / folder / "any")
    changes: list[Changed] = []

    def prepared() -> Iterator[tuple[ImageEntry, NewTiles | NewAreas]]:
        for each in predictions:
            try:
                entry, new, notes = prepare(found, _read(each), how or How(), where or Where())
            except Stopped:
                raise
            except TiaftError as error:
                changes.append(Changed(_name(each), reason=str(error)))
            else:
                changes.append(Changed(entry.name, added=len(new), notes=tuple(notes)))
                yield entry, new

    if dry_run:
        list(prepared())
    else:
        write_script(found, prepared())
    return changes


def remove(
    project: Path | str, model: str, *, dry_run: bool = False, report: Report = _silent
) -> list[Changed]:
    """Take a model's objects out of every image, except those whose class a person changed.

    `model` is its name or the beginning of its SHA-256. Raises TiaftError where no image has any.
    """
    found = _open(project, dry_run)
    changes = []
    with nullcontext() if dry_run else project_lock(found):
        sha256 = _meant(found, model)
        for entry in found.images:
            try:
                changed = _remove(found, entry, sha256, dry_run)
            except Stopped:
                raise
            except TiaftError as error:
                changed = Changed(entry.name, reason=str(error))
            if changed is not None:
                report(changed)
                changes.append(changed)
    return changes


def read_predictions(path: Path) -> TilePredictions:
    """Read a prediction store as a push takes it: whole, by its checksums. Raises TiaftError."""
    store = read_store(path, verify=True)
    return predictions_of(store, Path(store.facts["slide"]["name"]))


def prepare(project: Project, predictions: TilePredictions, how: How, where: Where) -> Prepared:
    """Return the image that predictions belong to, the objects to write, and what to know of them.

    Needs no Java. Raises TiaftError.
    """
    entry = match_predictions(project, predictions, where.moved, where.images)
    frame = frame_of(entry, predictions.slide_size, predictions.bounds)
    tiles, notes = new_tiles(
        predictions, frame, min_probability=how.min_probability, classes=how.classes
    )
    return entry, merge_tiles(tiles) if how.areas else tiles, notes


def _read(predictions: Path | TilePredictions) -> TilePredictions:
    return read_predictions(predictions) if isinstance(predictions, Path) else predictions


def _name(predictions: Path | TilePredictions) -> str:
    return predictions.name if isinstance(predictions, Path) else predictions.slide.name


def _open(project: Path | str, dry_run: bool) -> Project:
    found = read_project(project)
    if not dry_run:
        check_writable(found)
    return found


def _refuse_second(done: dict[tuple[int, str], str], ready: Prepared, name: str) -> None:
    """Raise TiaftError for a model's second predictions of an image, which replace the first."""
    entry, new, _ = ready
    key = entry.id, new.origin.sha256
    if key in done:
        raise TiaftError(
            f"{done[key]} has {new.origin.model}'s objects of {entry.name} already, which {name} "
            "would replace: push one of the two"
        )
    done[key] = name


def _push(
    project: Project,
    entry: ImageEntry,
    new: NewTiles | NewAreas,
    notes: Sequence[str],
    dry_run: bool,
) -> Changed:
    origin = new.origin
    with rewrite(project, entry, dry_run=dry_run) as writing:
        image = open_image(entry)
        found = image.found()
        plan = plan_push(found, new)
        if not dry_run:
            image.remove(plan.remove)
            if isinstance(new, NewTiles):
                image.add_tiles(new, plan.add)
            else:
                image.add_areas(new, plan.add)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            writing.save(
                image,
                classes=list(zip(new.classes.names, new.classes.colours, strict=True)),
                forget=metadata_of_model(entry.metadata, origin.sha256),
                metadata=image_metadata(origin.model, origin.sha256, now),
            )
    return replace(_changed(entry, found, plan), notes=tuple(notes))


def _remove(project: Project, entry: ImageEntry, sha256: str, dry_run: bool) -> Changed | None:
    """Take a model's objects out of one image; None where it had none."""
    told = metadata_of_model(entry.metadata, sha256)
    if not entry.data.exists() and not told:
        return None
    with rewrite(project, entry, dry_run=dry_run) as writing:
        image = open_image(entry)
        found = image.found()
        plan = plan_remove(found, sha256)
        if not len(plan.remove) and not len(plan.corrected) and not told:
            return None
        if not dry_run and len(plan.remove):
            image.remove(plan.remove)
            writing.save(image, classes=[], forget=told, metadata={})
        elif not dry_run:
            set_image_metadata(project.path, entry.id, {}, told)
    return _changed(entry, found, plan)


def _meant(project: Project, model: str) -> str:
    """Return the SHA-256 of the model that is meant. Raises TiaftError."""
    told = [each for entry in project.images for each in models_of_metadata(entry.metadata)]
    try:
        return find_model(told, model)
    except TiaftError:
        # What objects say themselves is slower to read, and right where a push was interrupted.
        marks = [
            mark
            for entry in project.images
            if entry.data.exists()
            for mark in open_image(entry).found().marks
        ]
        return find_model([*told, *{(mark.model, mark.sha256) for mark in marks}], model)


def _changed(entry: ImageEntry, found: Found, plan: Plan) -> Changed:
    own = len(plan.remove) + len(plan.corrected)
    return Changed(
        entry.name,
        added=len(plan.add),
        removed=len(plan.remove),
        corrected=len(plan.corrected),
        others=len(found) - own + found.unmarked,
    )
