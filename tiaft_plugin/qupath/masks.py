"""Regions drawn in QuPath as a mask for TIAToolbox's tiles."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tiaft_plugin.engine.slides import fingerprint, slide_bounds
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.names import as_written
from tiaft_plugin.qupath.regions import (
    Region,
    Regions,
    UnusableError,
    read_regions,
    regions_to_mask,
    valid_area,
)

if TYPE_CHECKING:
    from tiatoolbox.wsicore import WSIReader

    from tiaft_plugin.qupath.project.project_file import ImageEntry

_MASK_MPP = 4.0  # µm/px: a tile of 224 px at 0.5 µm/px is 28 mask pixels wide
_LONGEST_SIDE = 8192  # mask pixels, which bounds memory on any slide


@dataclass(frozen=True)
class RegionMask:
    """The regions of a GeoJSON file, as a mask of whichever slide is open.

    With `classes`, only regions of these. What is left out or repaired is logged as a warning.
    """

    path: Path
    classes: tuple[str, ...] = ()

    def __call__(self, reader: "WSIReader") -> np.ndarray:
        """Return a mask (h, w) uint8 of the whole slide. Raises TiaftError without regions."""
        regions = read_regions(self.path, self.classes or None, _size(reader))
        return _mask(regions, reader, str(self.path))


@dataclass(frozen=True)
class ProjectMask:
    """Annotations of a QuPath project, of one of `classes`, as a mask of whichever slide is open.

    `moved` is as in `push.Where`. Needs QuPath.
    """

    project: Path
    classes: tuple[str, ...]
    moved: Sequence[tuple[str, str]] = ()

    def slides(self) -> list[Path]:
        """Return the slides of the project's images that have such annotations.

        Raises TiaftError where there is none, or one is of no file.
        """
        from tiaft_plugin.qupath.project.matching import locate
        from tiaft_plugin.qupath.project.project_file import read_project

        entries = [
            entry
            for entry in read_project(self.project).images
            if annotations_of(entry, self.classes)
        ]
        if not entries:
            raise TiaftError(
                f"{self.project} has no annotation of class {' or '.join(self.classes)} in any "
                "image: draw one in QuPath and save it"
            )
        slides = [locate(entry, self.moved) for entry in entries]
        for entry, slide in zip(entries, slides, strict=True):
            if slide is None:
                raise TiaftError(f"{entry.name} in {self.project} is no file: name its SLIDES")
        return [slide for slide in slides if slide]

    def __call__(self, reader: "WSIReader") -> np.ndarray:
        """Return a mask (h, w) uint8 of the whole slide.

        Raises TiaftError where the slide is not in the project, or has no such annotation.
        """
        from tiaft_plugin.qupath.project.frame import frame_of
        from tiaft_plugin.qupath.project.matching import match_image
        from tiaft_plugin.qupath.project.project_file import read_project

        slide, size, bounds = Path(reader.info.file_path), _size(reader), slide_bounds(reader)
        entry = match_image(
            read_project(self.project),
            slide=slide,
            name=slide.name,
            fingerprint=fingerprint(slide),
            size=size,
            bounds=bounds,
            moved=self.moved,
        )
        frame = frame_of(entry, size, bounds)
        drawn = Regions([], [])
        for each in annotations_of(entry, self.classes):
            try:
                area, repaired = valid_area(frame.geometry_to_slide(each.geometry))
                drawn.found.append(Region(area, each.class_name, repaired=repaired))
            except UnusableError as reason:
                drawn.skipped.append(f"annotation {each.id}: {reason}")
        if not drawn.found:
            raise TiaftError(
                f"{entry.name} has no annotation of class {' or '.join(self.classes)} in "
                f"{self.project}: draw one in QuPath and save it"
            )
        return _mask(drawn, reader, entry.name)


def annotations_of(entry: "ImageEntry", classes: Sequence[str]) -> list:
    """Return the annotations of a project's image that have one of `classes`."""
    from tiaft_plugin.qupath.java.image_data import open_image

    if not entry.data.exists():
        return []
    wanted = {as_written(name) for name in classes}
    return [each for each in open_image(entry).annotations() if each.class_name in wanted]


def _mask(regions: Regions, reader: "WSIReader", where: str) -> np.ndarray:
    log = logging.getLogger(__name__)
    for text in regions.skipped:
        log.warning("%s: %s: left out", where, text)
    for region in regions:
        if region.repaired:
            log.warning("%s: region repaired: %s", where, region.repaired)
    width, height = _size(reader)
    shrink = max(_MASK_MPP / float(reader.info.mpp[0]), max(width, height) / _LONGEST_SIDE, 1.0)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    return regions_to_mask(regions, (width, height), size).astype(np.uint8)


def _size(reader: "WSIReader") -> tuple[int, int]:
    width, height = (int(value) for value in reader.info.slide_dimensions)
    return width, height
