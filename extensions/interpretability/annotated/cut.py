"""Labelled tiles out of annotated slides: ASAP's XML, GeoJSON, QuPath projects.

All but the XML, and the tissue that nobody annotated, is the work of `tiaft qupath pull`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely

from tiaft_extensions.interpretability.annotated.asap import read_asap
from tiaft_plugin.engine.slides import has_tissue, open_slide, slide_bounds
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.project.frame import Frame
from tiaft_plugin.qupath.project.server import Box, Size
from tiaft_plugin.qupath.pulling.asked import How, Pulled, Where
from tiaft_plugin.qupath.pulling.drawings import (
    GEOJSON,
    Drawing,
    NoDrawing,
    is_project,
    read_drawings,
    slide_of,
    slides_in,
)
from tiaft_plugin.qupath.pulling.pull import pull_drawings
from tiaft_plugin.qupath.regions import Region, UnusableError, valid_area

if TYPE_CHECKING:
    from tiatoolbox.wsicore import WSIReader

XML = ".xml"
_TISSUE_MPP = 8.0  # µm/px of the tissue mask, TIAToolbox's 1.25×


def cut_annotated(
    slides: Path,
    annotations: Path,
    out: Path,
    how: How,
    where: Where | None = None,
    *,
    rest: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> list[Pulled]:
    """Cut the tiles that annotations label into the folder `out`, as `tiaft qupath pull` does.

    `slides` is a slide or a folder of them; `annotations` a file or a folder of files that are
    named after their slides, or a QuPath project. With `rest`, tissue that no annotation covers
    gets this label, also on slides without a file. Raises TiaftError where there is no tile.
    """
    where = where or Where()
    known = slides_in([slides])
    drawings: list[Drawing] = []
    failed: list[Pulled] = []
    bare = {slide.resolve(): slide for slide in known}  # as far as it is known
    for slide, found in _drawings(annotations, known):
        if isinstance(found, Drawing):
            drawings.append(found)
        else:
            failed.append(Pulled(found.source, reason=found.reason))
        if slide is None:
            bare = {}  # any of them may be the one
        else:
            bare.pop(slide.resolve(), None)
    if rest is not None:
        for slide in [*{drawing.slide: None for drawing in drawings}, *bare.values()]:
            try:
                drawings.append(_rest(slide, drawings, rest, how, where.mpp))
            except TiaftError as error:
                failed.append(Pulled(slide.name, reason=str(error)))
        bare = {}
    results = pull_drawings(
        drawings, out, how, where, failed, overwrite=overwrite, dry_run=dry_run
    )  # fmt: skip
    note = "no annotations of it (--rest NAME gives its tissue a label)"
    return [*results, *(Pulled(slide.name, notes=[note]) for slide in bare.values())]


def _drawings(
    annotations: Path, slides: Sequence[Path]
) -> Iterator[tuple[Path | None, Drawing | NoDrawing]]:
    """Yield what each file or image has, and before it its slide where that is known."""
    if is_project(annotations):
        for found in read_drawings([annotations], slides):
            yield found.slide if isinstance(found, Drawing) else None, found
        return
    files = _files(annotations)
    for file in files:
        slide = None
        try:
            slide = slide_of(file, slides, only=len(files) == 1)
            if file.suffix.lower() == XML:
                regions, notes = read_asap(file)
                yield slide, Drawing(str(file), slide, regions, [], notes, _whole)
            else:
                yield slide, next(read_drawings([file], [slide]))
        except TiaftError as error:
            yield slide, NoDrawing(str(file), str(error))


def _files(annotations: Path) -> list[Path]:
    if not annotations.exists():
        raise TiaftError(f"{annotations}: no such file or folder")
    if not annotations.is_dir():
        if annotations.suffix.lower() not in (XML, *GEOJSON):
            raise TiaftError(
                f"{annotations} is neither ASAP's XML (.xml) nor GeoJSON (.geojson) nor a QuPath "
                "project"
            )
        return [annotations]
    kinds = (XML, GEOJSON[0])
    found = sorted(path for path in annotations.iterdir() if path.suffix.lower() in kinds)
    if not found:
        raise TiaftError(f"{annotations} holds neither ASAP's XML (.xml) nor GeoJSON (.geojson)")
    return found


def _whole(slide_size: Size, bounds: Box | None) -> Frame:
    """Return the frame of coordinates that are the slide's own: ASAP shows all of a slide."""
    return Frame((0, 0), 0, slide_size, slide_size)


def _rest(
    slide: Path, drawings: Sequence[Drawing], label: str, how: How, mpp: float | None
) -> Drawing:
    """Return the tissue of a slide that no annotation covers, as a drawing of one region."""
    known = [each for each in drawings if each.slide.resolve() == slide.resolve()]
    reader = open_slide(slide, mpp or next((each.mpp for each in known if each.mpp), None))
    width, height = (int(side) for side in reader.info.slide_dimensions)
    covered = [
        each.frame((width, height), slide_bounds(reader)).geometry_to_slide(region.geometry)
        for each in known
        for region in each.annotations
        if how.labels.lies_on_top(region.class_name or "")
    ]
    notes: list[str] = []
    regions: list[Region] = []
    left = shapely.difference(_tissue(reader), shapely.union_all(covered))
    try:
        area, _ = valid_area(left)
        regions.append(Region(area, label, id="tissue without annotation"))
    except UnusableError:
        notes.append(f"no tissue is left for {label}")
    return Drawing(str(slide), slide, regions, [], notes, _whole)


def _tissue(reader: "WSIReader") -> shapely.Geometry:
    """Return where a slide has tissue (Otsu, as TIAToolbox's engines have it), baseline pixels."""
    if not has_tissue(reader):
        return shapely.MultiPolygon()
    mask = reader.tissue_mask(method="otsu", resolution=_TISSUE_MPP, units="mpp").img
    mask = np.asarray(mask).reshape(*mask.shape[:2], -1)[..., 0] > 0
    scale = np.array(reader.info.slide_dimensions) / mask.shape[::-1]
    return shapely.transform(areas_of(mask), lambda corners: corners * scale)


def areas_of(mask: np.ndarray) -> shapely.Geometry:
    """Return the area of a mask's pixels, bool (h, w), in pixels of the mask."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, begins = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    return shapely.union_all(shapely.box(begins, rows, ends, rows + 1))
