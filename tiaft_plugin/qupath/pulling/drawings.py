"""What people drew and corrected, from GeoJSON files and the images of QuPath projects.

Java is needed for projects only. All is in pixels of the image as QuPath shows it.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import shapely

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.marks import Mark, shape_text
from tiaft_plugin.qupath.objects import Found
from tiaft_plugin.qupath.project.frame import Frame, frame_of
from tiaft_plugin.qupath.project.server import Box, Size
from tiaft_plugin.qupath.pushing.plan import is_corrected
from tiaft_plugin.qupath.regions import (
    ANNOTATION,
    Region,
    Skipped,
    UnusableError,
    iter_regions,
    valid_area,
)
from tiaft_plugin.tiles.words import some

if TYPE_CHECKING:
    from tiaft_plugin.qupath.java.image_data import Annotation, ImageData
    from tiaft_plugin.qupath.project.project_file import ImageEntry

GEOJSON = (".geojson", ".json")
# What a folder is searched for; slides that are folders are to be named themselves.
_SLIDES = {
    ".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".dcm",
    ".jp2", ".czi", ".zvi", ".qptiff", ".isyntax", ".png", ".jpg", ".jpeg",
}  # fmt: skip
_UNSAFE = re.compile(r'[\x00-\x1f<>:"/\\|?*]')  # what QuPath's names lose as names of files


@dataclass(frozen=True)
class Drawing:
    """What people drew on one image; `source` is the file or image, for messages.

    `annotations` have a class, `changed` are tiles of a model whose class a person changed. `notes`
    tell what was left out. `frame` tells how the image lies on the slide, from the slide's size and
    OpenSlide's bounds; `mpp` (µm/px) is what QuPath knows. `models` are name and SHA-256 of those
    that have objects there.
    """

    source: str
    slide: Path
    annotations: Sequence[Region]
    changed: Sequence[Region]
    notes: Sequence[str]
    frame: Callable[[Size, Box | None], Frame]
    mpp: float | None = None
    models: Collection[tuple[str, str]] = ()


@dataclass(frozen=True)
class NoDrawing:
    """An image or file that could not be read, and why."""

    source: str
    reason: str


def read_drawings(
    sources: Sequence[Path], slides: Sequence[Path], moved: Sequence[tuple[str, str]] = ()
) -> Iterator[Drawing | NoDrawing]:
    """Yield what was drawn on each image of `sources`: projects, GeoJSON files, folders of them.

    `slides` are slides and folders of slides; without, a GeoJSON file's lies beside it. `moved` are
    folders of slides as a project has them, and where they are. What is wrong with one image does
    not stop the others; TiaftError is raised for a source that is neither, and without Java.
    """
    files: list[Path] = []
    for source in sources:
        if is_project(source):
            yield from _of_project(source, slides_in(slides), moved)
        else:
            files += geojson_in(source)
    files = list(dict.fromkeys(files))
    for file in files:
        try:
            known = slides_in(slides or [file.parent])
            slide = slide_of(file, known, only=len(files) == 1 and bool(slides))
            yield _drawing(str(file), slide, iter_regions(file), _as_exported)
        except TiaftError as error:
            yield NoDrawing(str(file), str(error))


def is_project(path: Path) -> bool:
    """Whether a path is QuPath's project: its folder, or its ``.qpproj``."""
    return path.suffix == ".qpproj" or (path.is_dir() and any(path.glob("*.qpproj")))


def geojson_in(path: Path) -> list[Path]:
    """Return a GeoJSON file, or those in a folder. Raises TiaftError where there is none."""
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() == GEOJSON[0])
        if not found:
            raise TiaftError(f"{path} holds neither a QuPath project nor GeoJSON (.geojson)")
        return found
    if not path.exists():
        raise TiaftError(f"{path}: no such file")
    if path.suffix.lower() not in GEOJSON:
        raise TiaftError(f"{path} is neither a QuPath project nor GeoJSON (.geojson)")
    return [path]


def slides_in(paths: Iterable[Path]) -> list[Path]:
    """Return slides: files themselves, and those of a slide's suffix in folders.

    A folder without any is a slide itself. Raises TiaftError for what is not there.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise TiaftError(f"{path}: no such slide or folder")
        inside = sorted(p for p in path.iterdir() if _is_slide(p)) if path.is_dir() else []
        found += inside or [path]
    return found


def slide_of(file: Path, slides: Sequence[Path], *, only: bool = False) -> Path:
    """Return the slide that a file is named after: ``a.geojson`` or ``a.svs.geojson`` of a.svs.

    With `only`, a single slide needs no likeness. Raises TiaftError for none and for several.
    """
    name = file.name[: -len(file.suffix)]
    for alike in (_is_name, _is_stem):
        found = [slide for slide in slides if alike(name, slide)]
        # A picture that tiaft or a person made of a slide, and that lies beside it.
        whole = [p for p in found if p.suffix.lower() not in (".png", ".jpg", ".jpeg")]
        found = whole or found
        if len(found) == 1:
            return found[0]
        if found:
            raise TiaftError(
                f"{file} may belong to {some([str(slide) for slide in found])}: name one with "
                "--slides"
            )
    if only and len(slides) == 1:
        return slides[0]
    raise TiaftError(f"{file}: no slide of that name: say with --slides where it is")


def _is_name(name: str, slide: Path) -> bool:
    return _key(name) == _key(slide.name)


def _is_stem(name: str, slide: Path) -> bool:
    stem = slide.stem  # QuPath takes .ome.tif for one suffix
    return _key(name) in (_key(stem), _key(stem.removesuffix(".ome")))


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", _UNSAFE.sub("_", name)).casefold()


def _is_slide(path: Path) -> bool:
    return path.suffix.lower() in _SLIDES and path.is_file() and not path.name.startswith(".")


def _as_exported(slide_size: Size, bounds: Box | None) -> Frame:
    """Return the frame of an image that QuPath shows as it opens the slide itself."""
    x, y, width, height = bounds or (0, 0, *slide_size)
    return Frame((x, y), 0, slide_size, (width, height))


def _of_project(
    path: Path, slides: Sequence[Path], moved: Sequence[tuple[str, str]]
) -> Iterator[Drawing | NoDrawing]:
    from tiaft_plugin.qupath.project.project_file import read_project

    project = read_project(path)
    _start_java(path)
    for entry in project.images:
        if not entry.data.exists():
            continue  # nobody drew anything
        source = f"{entry.name} in {path}"
        try:
            drawing = _of_image(source, entry)
            if drawing.annotations or drawing.changed or drawing.notes:
                yield replace(drawing, slide=_located(entry, slides, moved))
        except TiaftError as error:
            yield NoDrawing(source, str(error))


def _start_java(path: Path) -> None:
    try:
        from tiaft_plugin.qupath.java.start import start_java

        start_java()
    except TiaftError as error:
        raise TiaftError(
            f"{path}: a project is read with QuPath ({error}); without it, export the annotations "
            "as GeoJSON in QuPath and pull these files, with --slides"
        ) from error


def _of_image(source: str, entry: "ImageEntry") -> Drawing:
    from tiaft_plugin.qupath.java.image_data import open_image

    def frame(slide_size: Size, bounds: Box | None) -> Frame:
        return frame_of(entry, slide_size, bounds)

    image = open_image(entry)
    found = image.found()
    things = [*_annotations(image.annotations()), *_tiles(image, found)]
    drawing = _drawing(source, Path(entry.file_name), things, frame)
    models = {(mark.model, mark.sha256) for mark in found.marks}
    return replace(drawing, mpp=entry.mpp[0] if entry.mpp else None, models=models)


def _annotations(found: Sequence["Annotation"]) -> Iterator[Region | Skipped]:
    for number, each in enumerate(found, start=1):
        head = Region(
            shapely.Polygon(), each.class_name, name=each.name, id=each.id, locked=each.locked,
            mark=each.mark,
        )  # fmt: skip
        try:
            geometry, repaired = valid_area(each.geometry)
            yield replace(head, geometry=geometry, repaired=repaired)
        except UnusableError as reason:
            yield Skipped(number, str(reason), head)


def _tiles(image: "ImageData", found: Found) -> Iterator[Region]:
    """Yield models' tiles that a person gave another class; the others stay with Java."""
    rows = [
        row for row, mark in enumerate(found.marks) if not mark.shape and is_corrected(found, row)
    ]
    measured = image.measurements(rows) if rows else []
    for row, measurements in zip(rows, measured, strict=True):
        box = shapely.box(*found.bounds[row])
        yield Region(
            box, found.classes[row], "tile", id=str(found.ids[row]), mark=found.marks[row],
            measurements=measurements,
        )  # fmt: skip


def _located(entry: "ImageEntry", slides: Sequence[Path], moved: Sequence[tuple[str, str]]) -> Path:
    from tiaft_plugin.qupath.project.matching import locate

    there = locate(entry, moved)
    if there is not None and there.exists():
        return there
    found = [slide for slide in slides if _is_name(entry.file_name, slide)]
    if len(found) == 1:
        return found[0]
    where = f"its slide is not at {there}" if there else "it has no file"
    raise TiaftError(f"{where}: say with --map OLD=NEW or --slides where {entry.file_name} is")


def _drawing(
    source: str,
    slide: Path,
    things: Iterable[Region | Skipped],
    frame: Callable[[Size, Box | None], Frame],
) -> Drawing:
    """Sort out what an image has: labels, corrections, and what is neither."""
    annotations: list[Region] = []
    changed: list[Region] = []
    notes: list[str] = []
    counts: Counter[str] = Counter()
    models: set[tuple[str, str]] = set()
    for number, thing in enumerate(things, start=1):
        if isinstance(thing, Skipped):
            if thing.head is None or thing.head.object_type == ANNOTATION:
                name = _name_of(thing.head, thing.number) if thing.head else f"object {number}"
                notes.append(f"{name} left out: {thing.reason}")
            else:
                counts["object{s} that {are} no annotation"] += 1
            continue
        if thing.mark is not None:
            models.add((thing.mark.model, thing.mark.sha256))
        fault = _not_a_label(thing)
        if fault:
            counts[fault] += 1
            continue
        named = replace(thing, id=_name_of(thing, number))
        (annotations if thing.object_type == ANNOTATION else changed).append(named)
        if thing.repaired:
            notes.append(f"{named.id} repaired: {thing.repaired}")
    notes += [_counted(what, count) for what, count in counts.items()]
    return Drawing(source, slide, annotations, changed, notes, frame, models=models)


def _not_a_label(region: Region) -> str:
    """Return why an object is nobody's label, or an empty text."""
    if region.mark is not None and not _is_changed(region, region.mark):
        return "prediction{s} that nobody changed"
    if region.mark is None and region.object_type != ANNOTATION:
        return "object{s} that {are} no annotation"
    if not region.class_name:
        what = "annotation{s}" if region.object_type == ANNOTATION else "corrected tile{s}"
        return what + " without a class"
    return ""


def _is_changed(region: Region, mark: Mark) -> bool:
    """Whether a person gave a model's object another class or, where it is an area, outline."""
    if (region.class_name or "") != mark.given:
        return True
    return bool(mark.shape) and _is_redrawn(region.geometry, mark.shape)


def _is_redrawn(geometry: shapely.Geometry, shape: str) -> bool:
    """Whether an outline is another one than its mark tells; GeoJSON keeps hundredths of pixels."""
    now = shape_text(geometry.bounds, geometry.area).split()
    before = shape.split()
    try:
        away = [abs(float(a) - float(b)) for a, b in zip(now, before, strict=True)]
    except ValueError:
        return True
    return max(away[:4]) > 1 or away[4] > 1 + 0.01 * geometry.length


def _name_of(region: Region, number: int) -> str:
    return region.id or f"object {number}"


def _counted(what: str, count: int) -> str:
    return f"{count} " + what.format(s="s" * (count != 1), are="are" if count != 1 else "is")
