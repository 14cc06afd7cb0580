"""Which tiles of a slide get a label, and their pixels.

Each slide has one grid of tiles, from its top left corner at the stride, as `tiaft predict` has it:
whatever is drawn, a tile lies in one place. Tiles that reach past the slide are left out.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely

from tiaft_plugin.errors import Stopped, TiaftError, first_line
from tiaft_plugin.qupath.pulling.corrections import Correction
from tiaft_plugin.qupath.pulling.cover import (
    Overlap,
    cover,
    grid_of,
    label_tiles,
    scaled,
    seen_from_above,
)

if TYPE_CHECKING:
    from tiatoolbox.wsicore import WSIReader

_AT_ONCE = 64  # tiles in memory
MOST_PLACES = 1e8  # on a slide, of tiles: a mistake in µm/px, which would take all memory


@dataclass(frozen=True)
class Area:
    """An annotation in baseline pixels of a slide; without a label it only lies over others."""

    id: str
    geometry: shapely.Geometry
    label: str | None


@dataclass(frozen=True)
class Tile:
    """A labelled tile: its top left corner in pixels at the tiles' µm/px, and why it has its label.

    `annotation` is the id of the object that covers most of it, `coverage` the share of it that all
    of its label cover; of a corrected tile, `correction` says what the model had said.
    """

    x: int
    y: int
    label: str
    annotation: str
    coverage: float
    correction: Correction | None = None


@dataclass(frozen=True)
class Planned:
    """The tiles of a slide, the pairs of annotations with different labels that overlap, and each
    annotation that gives no tile, with the reason.
    """  # fmt: skip

    tiles: list[Tile]
    overlaps: list[tuple[Area, Area, float]]
    without: list[tuple[Area, str]]


def plan_tiles(
    areas: Sequence[Area],
    slide_size: tuple[int, int],
    scale: np.ndarray,
    size: int,
    stride: int,
    min_coverage: float,
    over: Sequence[shapely.Geometry] = (),
) -> Planned:
    """Return the tiles that annotations label.

    `slide_size` is in baseline pixels, `scale` (x, y) what makes those of pixels at the tiles'
    µm/px; `size` and `stride` are in the latter. Where annotations overlap, the smaller one counts;
    what lies in `over` (baseline pixels) counts for none. A tile gets the label that covers most of
    it, the first by name of two that cover as much, if that is `min_coverage` of it or more.
    Overlaps are in square pixels at the tiles' µm/px. Raises TiaftError where tiles are so small
    that a slide has more than 1e8.
    """
    if not areas:
        return Planned([], [], [])
    width, height = np.asarray(slide_size) / scale
    if (places := (width / stride) * (height / stride)) > MOST_PLACES:
        raise TiaftError(
            f"{places:.3g} tiles of {size} px would lie on the slide: a larger --mpp or --stride "
            "makes fewer"
        )
    shapes = np.array([scaled(area.geometry, scale) for area in areas], dtype=object)
    visible, overlaps = seen_from_above(shapes, [area.id for area in areas])
    if over:
        taken = shapely.union_all([scaled(shape, scale) for shape in over])
        visible = shapely.difference(visible, taken)
    names = sorted({area.label for area in areas if area.label is not None})
    labels = np.array([-1 if a.label is None else names.index(a.label) for a in areas])
    grid = grid_of(width, height, size, stride)
    found = cover(visible, grid)
    labelled = label_tiles(found, labels, min_coverage)
    corners, of = grid.corners(labelled.tiles).tolist(), labelled.areas.tolist()
    tiles = [
        Tile(x, y, areas[area].label or "", areas[area].id, share)
        for (x, y), area, share in zip(corners, of, labelled.shares.tolist(), strict=True)
    ]
    useful, best = found.useful(labelled, labels), found.best(len(areas))
    slide = shapely.box(0, 0, width, height)
    without = [
        (area, _why_none(shapes[row], visible[row], slide, best[row]))
        for row, area in enumerate(areas)
        if area.label is not None and row not in useful
    ]
    return Planned(tiles, _between_labels(overlaps, areas), without)


def _why_none(
    shape: shapely.Geometry, visible: shapely.Geometry, slide: shapely.Geometry, best: float
) -> str:
    if not shapely.intersection(shape, slide).area:
        return "it lies outside the slide"
    if not visible.area:
        return "others lie over all of it"
    if not best:
        return "no whole tile of the slide's grid lies on it"
    return f"it covers {best:.0%} of a tile at most"


def _between_labels(
    overlaps: Sequence[Overlap], areas: Sequence[Area]
) -> list[tuple[Area, Area, float]]:
    """Return pairs that overlap by a pixel or more, upper and lower, and differ in their label."""
    pairs = ((areas[o.upper], areas[o.lower], o.area) for o in overlaps if o.area >= 1)
    return [pair for pair in pairs if pair[0].label != pair[1].label and pair[1].label is not None]


def place_corrections(
    corrections: Sequence[Correction], scale: np.ndarray
) -> tuple[list[Tile], list[str]]:
    """Return corrected tiles at their places, and notes on those that contradict each other."""
    by_place: dict[tuple[int, int], Tile] = {}
    labels: dict[tuple[int, int], set[str]] = {}
    for each in corrections:
        x, y = (int(value) for value in np.rint(np.asarray(each.bounds[:2]) / scale))
        labels.setdefault((x, y), set()).add(each.label)
        by_place.setdefault((x, y), Tile(x, y, each.label, each.id, 1.0, each))
    torn = [place for place, names in labels.items() if len(names) > 1]
    notes = [
        f"{by_place[place].annotation} left out: the same tile was given the classes "
        f"{' and '.join(sorted(labels[place]))}"
        for place in torn
    ]
    return [tile for place, tile in by_place.items() if place not in torn], notes


def cut_tiles(
    reader: "WSIReader", tiles: Sequence[Tile], size: int, mpp: float
) -> Iterator[tuple[Tile, np.ndarray]]:
    """Yield each tile with its pixels, uint8 (size, size, 3), read as TIAToolbox's engines do it.

    Raises Stopped where the slide cannot be read there.
    """
    for tile in tiles:
        bounds = (tile.x, tile.y, tile.x + size, tile.y + size)
        try:
            pixels = reader.read_bounds(
                bounds,
                resolution=mpp,
                units="mpp",
                pad_constant_values=255,
                coord_space="resolution",
            )
        except Exception as error:  # each slide library raises its own
            raise Stopped(f"cannot be read at {bounds[:2]}: {first_line(error)}") from error
        yield tile, np.ascontiguousarray(pixels[..., :3])


def write_tiles(cut: Iterator[tuple[Tile, np.ndarray]], paths: Sequence[Path]) -> Iterator[Tile]:
    """Write tiles as PNG to `paths`, one after the other in their order, and yield each."""
    from PIL import Image

    def save(pixels: np.ndarray, path: Path) -> None:
        Image.fromarray(pixels).save(path, format="PNG")

    # Slide libraries are not all safe in threads: one reads, several compress.
    with ThreadPoolExecutor() as executor:
        waiting: list[tuple[Tile, Future]] = []
        for (tile, pixels), path in zip(cut, paths, strict=True):
            waiting.append((tile, executor.submit(save, pixels, path)))
            if len(waiting) >= _AT_ONCE:
                done, future = waiting.pop(0)
                future.result()
                yield done
        for done, future in waiting:
            future.result()
            yield done
