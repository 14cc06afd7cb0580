"""How much of each tile of a grid lies in which area: geometry only, no slide and no file.

All in pixels of the grid. Nothing here loops over tiles: shapely works on whole arrays of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from shapely import MultiPolygon

from tiaft_plugin.qupath.regions import UnusableError, polygons_in, valid_area

_AT_ONCE = 50_000  # pieces of areas that are cut at once
_AREAS = (3, 6)  # shapely's type_id of polygons and multipolygons
DIGITS = 9  # of a coverage: what differs less is the same, whatever the order of summing


@dataclass(frozen=True)
class Grid:
    """The tiles of a slide: squares of `size` px, every `stride` px from its top left corner.

    There are `columns` × `rows`, counted row by row.
    """

    size: int
    stride: int
    columns: int
    rows: int

    def corners(self, tiles: np.ndarray) -> np.ndarray:
        """Return the top left corner (n, 2) int64 x, y of each tile (n,)."""
        return np.column_stack([tiles % self.columns, tiles // self.columns]) * self.stride


def grid_of(width: float, height: float, size: int, stride: int) -> Grid:
    """Return the grid of tiles that lie wholly on a slide of `width` × `height` px."""
    columns, rows = (
        max(0, (int(side + 1e-6) - size) // stride + 1) if side + 1e-6 >= size else 0
        for side in (width, height)
    )
    return Grid(size, stride, columns, rows)


@dataclass(frozen=True)
class Overlap:
    """Indices of two areas that lie over each other, and how much they do (px²)."""

    upper: int
    lower: int
    area: float


def seen_from_above(shapes: np.ndarray, ids: Sequence[str]) -> tuple[np.ndarray, list[Overlap]]:
    """Return what of each area (n,) no other covers, and all pairs that overlap.

    The smaller area lies on top, as people draw a small one inside a large one; of two of one size
    the one whose id sorts first, so that the order in the file decides nothing.
    """
    sizes = shapely.area(shapes).tolist()
    rank = np.empty(len(shapes), dtype=np.int64)
    order = sorted(range(len(shapes)), key=lambda i: (sizes[i], ids[i], i))
    rank[order] = np.arange(len(shapes))
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    above = rank[first] < rank[second]
    first, second = first[above], second[above]
    areas = shapely.area(shapely.intersection(shapes[first], shapes[second]))
    first, second, areas = first[areas > 0], second[areas > 0], areas[areas > 0]
    visible = shapes.copy()
    by_lower = np.lexsort((first, second))
    first, second, areas = first[by_lower], second[by_lower], areas[by_lower]
    for index in np.unique(second).tolist():
        uppers = shapes[first[slice(*np.searchsorted(second, [index, index + 1]))]]
        visible[index] = shapely.difference(shapes[index], shapely.union_all(uppers))
    pairs = zip(first.tolist(), second.tolist(), areas.tolist(), strict=True)
    return visible, [Overlap(*pair) for pair in pairs]


def scaled(shape: shapely.Geometry, scale: np.ndarray) -> shapely.Geometry:
    """Return a shape with x and y divided by `scale` (2,), valid as it was before."""
    moved = shapely.transform(shape, lambda corners: corners / scale)
    try:
        return moved if moved.is_valid else valid_area(moved)[0]
    except UnusableError:  # so thin that rounding closes it
        return shapely.Polygon()


@dataclass(frozen=True)
class Cover:
    """Which share of tile `tiles[k]` lies in area `areas[k]`: (k,) each, shares in ]0, 1]."""

    tiles: np.ndarray
    areas: np.ndarray
    shares: np.ndarray

    def best(self, count: int) -> np.ndarray:
        """Return the largest share that each of `count` areas has of a tile, (count,)."""
        shares = np.zeros(count)
        np.maximum.at(shares, self.areas, self.shares)
        return shares

    def useful(self, labelled: "Labelled", labels: np.ndarray) -> set[int]:
        """Return the areas that lie on a tile of their own label; `labels` is that of each."""
        label_of = np.full(self.tiles.max(initial=0) + 1, -1)
        label_of[labelled.tiles] = labelled.labels
        own = label_of[self.tiles] == labels[self.areas]
        return set(self.areas[own & (labels[self.areas] >= 0)].tolist())


def cover(shapes: np.ndarray, grid: Grid) -> Cover:
    """Return how much of the grid's tiles lies in each of `shapes` (n,), a row for each pair.

    Shapes are cut into halves of the grid, these into halves, and so on: what fills its part of
    the grid needs no further look, and an outline's many corners are met only where they are.
    """
    count = len(shapes)
    whole = np.tile([0, grid.columns, 0, grid.rows], (count, 1))
    waiting = [(shapes, np.arange(count), whole)]
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    while waiting:
        pieces, areas, ranges = _clipped(*waiting.pop(), grid)
        shares = shapely.area(pieces) / _extent(ranges, grid).prod(axis=1)
        counts = (ranges[:, 1::2] - ranges[:, ::2]).prod(axis=1)
        done = (counts == 1) | (shares > 1 - 10.0**-DIGITS)
        tiles, row = _tiles_in(ranges[done], grid)
        found.append((tiles, areas[done][row], shares[done][row]))
        halves = _halves(ranges[~done])
        pieces, areas = np.tile(pieces[~done], 2), np.tile(areas[~done], 2)
        for first in range(0, len(halves), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            waiting.append((pieces[some], areas[some], halves[some]))
    tiles, areas, shares = (np.concatenate([part[i] for part in found]) for i in range(3))
    order = np.lexsort((areas, tiles))
    shares = shares[order].round(DIGITS).clip(0, 1)
    touched = shares > 0
    return Cover(tiles[order][touched], areas[order][touched], shares[touched])


def _clipped(
    shapes: np.ndarray, areas: np.ndarray, ranges: np.ndarray, grid: Grid
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut each shape to its part of the grid, and that part to the tiles that the shape meets.

    `ranges` (n, 4) are first column, end of columns, first row, end of rows. What has no area or
    meets no tile is left out.
    """
    x0, y0, x1, y1 = np.nan_to_num(shapely.bounds(shapes), nan=-1.0).T
    ranges = np.column_stack([
        np.maximum(ranges[:, 0], np.floor((x0 - grid.size) / grid.stride).clip(-1) + 1),
        np.minimum(ranges[:, 1], np.ceil(x1 / grid.stride)),
        np.maximum(ranges[:, 2], np.floor((y0 - grid.size) / grid.stride).clip(-1) + 1),
        np.minimum(ranges[:, 3], np.ceil(y1 / grid.stride)),
    ]).astype(np.int64)  # fmt: skip
    some = (ranges[:, 0] < ranges[:, 1]) & (ranges[:, 2] < ranges[:, 3])
    shapes, areas, ranges = shapes[some], areas[some], ranges[some]
    x, y = ranges[:, 0] * grid.stride, ranges[:, 2] * grid.stride
    width, height = _extent(ranges, grid).T
    pieces = shapely.intersection(shapes, shapely.box(x, y, x + width, y + height))
    for index in np.flatnonzero(~np.isin(shapely.get_type_id(pieces), _AREAS)):
        pieces[index] = MultiPolygon(list(polygons_in(pieces[index])))
    some = shapely.area(pieces) > 0
    return pieces[some], areas[some], ranges[some]


def _extent(ranges: np.ndarray, grid: Grid) -> np.ndarray:
    """Return width and height (n, 2), px, of parts of the grid."""
    return (ranges[:, 1::2] - ranges[:, ::2] - 1) * grid.stride + grid.size


def _halves(ranges: np.ndarray) -> np.ndarray:
    """Cut each part of the grid in two across its longer side: first halves, then second ones."""
    first, second = ranges.copy(), ranges.copy()
    begin = 2 * (ranges[:, 3] - ranges[:, 2] > ranges[:, 1] - ranges[:, 0])
    row = np.arange(len(ranges))
    middle = (ranges[row, begin] + ranges[row, begin + 1]) // 2
    first[row, begin + 1] = middle
    second[row, begin] = middle
    return np.concatenate([first, second])


def _tiles_in(ranges: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the tiles of parts of the grid, and the row of `ranges` that each is of."""
    columns, rows = (ranges[:, 1::2] - ranges[:, ::2]).T
    count = columns * rows
    of = np.repeat(np.arange(len(ranges)), count)
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    column = ranges[of, 0] + number % columns[of]
    return (ranges[of, 2] + number // columns[of]) * grid.columns + column, of


@dataclass(frozen=True)
class Labelled:
    """Tiles with a label: (n,) each, ordered by tile.

    `areas` is the area of that label that covers most of it, `shares` what all of that label cover.
    """

    tiles: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    shares: np.ndarray


def label_tiles(found: Cover, labels: np.ndarray, min_share: float) -> Labelled:
    """Give each tile the label that covers most of it, if that is `min_share` or more.

    `labels` (n,) int is that of each area, -1 of those that only take place away. Of labels that
    cover as much, the first.
    """
    has = labels[found.areas] >= 0
    tiles, areas, shares = found.tiles[has], found.areas[has], found.shares[has]
    # The largest part of each tile and label first: it stands for them.
    order = np.lexsort((areas, -shares, labels[areas], tiles))
    tiles, areas, shares = tiles[order], areas[order], shares[order]
    keys = np.column_stack([tiles, labels[areas]])
    pairs, first, place = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    summed = np.bincount(place.ravel(), shares, len(pairs)).round(DIGITS).clip(0, 1)
    order = np.lexsort((pairs[:, 1], -summed, pairs[:, 0]))
    _, most = np.unique(pairs[order, 0], return_index=True)
    best = order[most]
    best = best[summed[best] >= round(min_share, DIGITS)]
    return Labelled(pairs[best, 0], pairs[best, 1], areas[first[best]], summed[best])
