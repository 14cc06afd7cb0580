"""Neighbouring tiles of one class made into areas with clean outlines."""

from collections.abc import Iterator
from uuid import UUID, uuid5

import numpy as np
import shapely
from shapely import Polygon

from tiaft_plugin.qupath.objects import UNCLASSIFIED, NewAreas, NewTiles

TILES = "Tiles"  # the measurement of an area that counts its tiles


def merge_tiles(tiles: NewTiles) -> NewAreas:
    """Return an area for all tiles of one class that share an edge or overlap, holes kept.

    Areas that touch at a corner alone stay apart. Edges up to 1 px apart are one, and outlines lie
    on whole pixels, which QuPath keeps exactly; where tiles measure less than 8 px the step is
    smaller, too. Unclassified tiles belong to no area. An area measures the mean of
    what its tiles do, "Probability: Tumor (mean)", and counts them. Its id stays the same as long
    as its outline, class and first tile do.
    """
    order = np.lexsort((tiles.bounds[:, 0], tiles.bounds[:, 1]))
    order = order[tiles.labels[order] != UNCLASSIFIED]
    labels = tiles.labels[order]
    edges = _snapped(tiles.bounds[order])
    areas: list[Polygon] = []
    area_of = np.full(len(order), -1, dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        of_class, numbers = _merged(edges[rows])
        area_of[rows] = numbers + len(areas)
        areas.extend(of_class)
    return _described(tiles, areas, order, area_of)


def _described(
    tiles: NewTiles, areas: list[Polygon], order: np.ndarray, area_of: np.ndarray
) -> NewAreas:
    """Return areas with ids, labels and measurements; `area_of` has the area of tiles `order`."""
    counts = np.bincount(area_of, minlength=len(areas))
    first = np.unique(area_of, return_index=True)[1]  # tile, from the top, of each area
    labels = tiles.labels[order[first]]
    measurements = {TILES: counts.astype(np.float32)}
    for name, values in tiles.measurements.items():
        sums = np.bincount(area_of, values[order].astype(np.float64), len(areas))
        measurements[f"{name} (mean)"] = (sums / counts).astype(np.float32)
    ids = _ids([tiles.ids[row] for row in order[first]], labels, areas, tiles.classes.names)
    return NewAreas(tiles.origin, tiles.classes, ids, areas, labels, measurements)


def _ids(
    first_tiles: list[UUID], labels: np.ndarray, areas: list[Polygon], names: tuple[str, ...]
) -> list[UUID]:
    """Return each area's id. That of its first tile stands for slide, grid and model."""
    outlines = shapely.to_wkb(shapely.normalize(areas), hex=True, byte_order=1)
    return [
        uuid5(tile, f"{names[label]}:{outline}")
        for tile, label, outline in zip(first_tiles, labels, outlines, strict=True)
    ]


def _snapped(bounds: np.ndarray) -> np.ndarray:
    """Return bounds (n, 4) on whole steps, edges up to a step apart on the same one.

    A step is a pixel, or what is at most an eighth of the smallest tile. No tile loses its area.
    """
    if not len(bounds):
        return bounds
    smallest = (bounds[:, 2:] - bounds[:, :2]).min()
    step = min(1.0, 2.0 ** np.floor(np.log2(smallest / 8)))
    snapped = np.empty_like(bounds)
    for axis in (0, 1):
        values, where = np.unique(bounds[:, [axis, axis + 2]], return_inverse=True)
        starts = np.array(list(_starts(values, step)))
        nearest = np.floor(values[starts] / step + 0.5) * step
        group = np.searchsorted(starts, np.arange(len(values)), side="right") - 1
        snapped[:, [axis, axis + 2]] = nearest[group][where].reshape(-1, 2)
    return snapped


def _starts(values: np.ndarray, step: float) -> Iterator[int]:
    """Give where in sorted `values` each group begins that is no wider than a step."""
    position = 0
    while position < len(values):
        yield position
        position = int(np.searchsorted(values, values[position] + step, side="right"))


def _merged(bounds: np.ndarray) -> tuple[list[Polygon], np.ndarray]:
    """Return the areas that tiles of one class cover, and the number of each tile's area (n,)."""
    union = shapely.disjoint_subset_union_all(shapely.box(*bounds.T))
    areas = shapely.get_parts(shapely.simplify(union, 0))
    centres = shapely.points((bounds[:, :2] + bounds[:, 2:]) / 2)
    number, tile = shapely.STRtree(centres).query(areas, predicate="contains")
    return list(areas), number[np.argsort(tile)]
