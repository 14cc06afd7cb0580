"""Which image of a QuPath project a slide's predictions belong to."""

import difflib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.project.frame import fits
from tiaft_plugin.qupath.project.places import file_name, mapped, path_text
from tiaft_plugin.qupath.project.project_file import ImageEntry, Project
from tiaft_plugin.qupath.project.server import Box, Size

if TYPE_CHECKING:
    from tiaft_plugin.engine.predictions import TilePredictions

_NAMED = 6  # candidates in a message


class NotInProjectError(TiaftError):
    """No image of a project is of a slide."""


def match_predictions(
    project: Project,
    predictions: "TilePredictions",
    moved: Sequence[tuple[str, str]] = (),
    images: Sequence[str] = (),
) -> ImageEntry:
    """Return the image that predictions belong to, as `match_image` finds it."""
    return match_image(
        project,
        slide=predictions.slide,
        name=predictions.slide.name,
        fingerprint=predictions.fingerprint,
        size=predictions.slide_size,
        bounds=predictions.bounds,
        moved=moved,
        images=images,
    )


def match_image(
    project: Project,
    *,
    slide: Path | None,
    name: str,
    fingerprint: str,
    size: Size,
    bounds: Box | None = None,
    moved: Sequence[tuple[str, str]] = (),
    images: Sequence[str] = (),
) -> ImageEntry:
    """Return the image of a slide: found by its path, else its file name, else its content.

    `name` and `fingerprint` are the slide's as its predictions know them, `size` is in baseline
    pixels, `bounds` as in `frame_of`. `moved` are folders as the project knows them, and where they
    are now. Of several, as the series of one file, the one whose size fits is taken. With `images`,
    ids or names as QuPath shows them, only these come into question, and a single one needs no
    likeness. Raises NotInProjectError where there is none, TiaftError for several and where the
    file is not what was predicted.
    """
    if not project.images:
        raise NotInProjectError(
            f"{name} is not in {project.path}, which has no images: add the slide with --slides"
        )
    if images:
        project = replace(project, images=_chosen(project, images))
    contents = _Contents(fingerprint, name, moved)
    found = _by_path(project, slide, moved)
    if found and contents.differs(found[0]):
        raise TiaftError(
            f"{name} is not what was predicted: {locate(found[0], moved)} has another content now; "
            "predict it again"
        )
    if not found:
        named = _by_name(project, name)
        if len(images) == 1 and not named:
            named = list(project.images)
        found = [entry for entry in named if not contents.differs(entry)]
        others = [entry for entry in named if entry not in found]
    if not found and fingerprint:
        fitting = (entry for entry in project.images if fits(entry, size, bounds))
        found = [entry for entry in fitting if contents.same(entry)]
    if not found:
        raise NotInProjectError(_not_found(project, name, others))
    return found[0] if len(found) == 1 else _one_of(found, project, name, size, bounds)


def locate(entry: ImageEntry, moved: Sequence[tuple[str, str]] = ()) -> Path | None:
    """Return where an image's file lies on this machine, after `moved`; it need not exist."""
    text = path_text(entry.uris[0]) if entry.uris else None
    there = mapped(text, moved) if text else None
    return Path(there) if there else entry.path


class _Contents:
    """Compares files with the fingerprint of what was predicted, each only once."""

    def __init__(self, fingerprint: str, name: str, moved: Sequence[tuple[str, str]]):
        self._wanted, self._name, self._moved = fingerprint, name, moved
        self._known: dict[Path, str | None] = {}

    def same(self, entry: ImageEntry) -> bool:
        return bool(self._wanted) and self._of(entry) == self._wanted

    def differs(self, entry: ImageEntry) -> bool:
        """Whether it surely is another: its file is at hand and has another content."""
        return bool(self._wanted) and self._of(entry) not in (None, self._wanted)

    def _of(self, entry: ImageEntry) -> str | None:
        from tiaft_plugin.engine.slides import fingerprint

        path = locate(entry, self._moved)
        if path is None:
            return None
        if _key(path.name) != _key(self._name) and _key(path.parent.name) == _key(self._name):
            path = path.parent  # a slide that is a folder; QuPath opens a file in it
        if path not in self._known:
            try:
                self._known[path] = fingerprint(path)
            except (OSError, ValueError):
                self._known[path] = None
        return self._known[path]


def _by_path(
    project: Project, slide: Path | None, moved: Sequence[tuple[str, str]]
) -> list[ImageEntry]:
    if slide is None:
        return []
    wanted = _resolved(slide)
    found = []
    for entry in project.images:
        path = locate(entry, moved)
        if path is not None and wanted in ((there := _resolved(path)), there.parent):
            found.append(entry)
    return found


def _by_name(project: Project, name: str) -> list[ImageEntry]:
    """Images of a file of that name (or a folder, for slides that are one), else shown by it."""
    ways: tuple[Callable[[ImageEntry], str], ...] = (
        lambda entry: entry.file_name,
        _folder_name,
        lambda entry: entry.name,
    )
    for name_of in ways:
        found = [entry for entry in project.images if _key(name_of(entry)) == _key(name)]
        if found:
            return found
    return []


def _folder_name(entry: ImageEntry) -> str:
    text = path_text(entry.uris[0]) if entry.uris else None
    return file_name(text[: -len(file_name(text))] or "/") if text and file_name(text) else ""


def _chosen(project: Project, images: Sequence[str]) -> tuple[ImageEntry, ...]:
    for text in images:
        if not any(text in (str(entry.id), entry.name) for entry in project.images):
            raise TiaftError(f"{project.path} has no image {text!r}: {_nearest(project, text)}")
    return tuple(e for e in project.images if str(e.id) in images or e.name in images)


def _one_of(
    found: list[ImageEntry], project: Project, name: str, size: Size, bounds: Box | None
) -> ImageEntry:
    fitting = [entry for entry in found if fits(entry, size, bounds)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise TiaftError(
            f"{name}: predictions were made on {size[0]} × {size[1]} px, which none of its "
            f"{len(found)} images in {project.path} has: {_listed(found)}"
        )
    raise TiaftError(
        f"{name} may be any of {len(fitting)} images in {project.path}: {_listed(fitting)}: say "
        "which with `tiaft qupath push --image`"
    )


def _not_found(project: Project, name: str, others: list[ImageEntry]) -> str:
    if others:
        return (
            f"{name} is not in {project.path}: another slide of this name is ({_listed(others)}); "
            "add the one that was predicted"
        )
    return (
        f"{name} is not in {project.path}: {_nearest(project, name)}; add it there, or name the "
        "image with `tiaft qupath push --image`"
    )


def _nearest(project: Project, name: str) -> str:
    """Return the images whose names, of file or image, are most alike."""
    likeness = {
        entry.id: max(
            difflib.SequenceMatcher(None, _key(name), _key(other)).ratio()
            for other in (entry.name, entry.file_name)
        )
        for entry in project.images
    }
    nearest = sorted(project.images, key=lambda entry: -likeness[entry.id])[:3]
    return f"the nearest of its {len(project.images)} images: {_listed(nearest)}"


def _listed(entries: Sequence[ImageEntry]) -> str:
    texts = [_described(entry) for entry in entries[:_NAMED]]
    more = len(entries) - _NAMED
    return ", ".join(texts) + (f" and {more} more" if more > 0 else "")


def _described(entry: ImageEntry) -> str:
    facts = [f"{entry.size[0]} × {entry.size[1]} px"] if entry.size else []
    facts += [" ".join(entry.args)] if entry.args else []
    return f"image {entry.id} {entry.name!r}" + (f" ({', '.join(facts)})" if facts else "")


def _key(name: str) -> str:
    """Return a file name as no system tells it apart: macOS decomposes letters with accents."""
    return unicodedata.normalize("NFC", name).casefold()


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        return path
