"""Where TIAToolbox reads each tile of a slide, by its own arithmetic."""

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from tiaft_plugin.errors import TiaftError

if TYPE_CHECKING:
    from tiatoolbox.wsicore import WSIReader


@dataclass(frozen=True)
class Places:
    """What ``WSIReader.read_bounds`` makes of the tiles' coordinates, tile by tile.

    `baseline` and `at_level` are (N, 4) int64 x0, y0, x1, y1 in pixels of the baseline and of
    `level`; `size` is the (width, height) that a tile has in the end, in pixels.
    """

    level: int
    baseline: np.ndarray
    at_level: np.ndarray
    size: tuple[int, int]

    @property
    def resized(self) -> bool:
        """Whether tiles have another size in the slide than in the end."""
        return self.at_size != self.size

    @property
    def at_size(self) -> tuple[int, int]:
        """The (width, height) of a tile at the level it is read from."""
        x0, y0, x1, y1 = (int(value) for value in self.at_level[0])
        return x1 - x0, y1 - y0

    def inside(self, row: int, size: tuple[int, int], margin: int = 0) -> bool:
        """Whether a tile, and `margin` px around it, lies inside a level of `size` (w, h)."""
        x0, y0, x1, y1 = self.at_level[row]
        low = min(x0, y0) >= margin
        return bool(low and x1 <= size[0] - margin and y1 <= size[1] - margin)


def places_of(reader: "WSIReader", dataset: Any) -> Places:
    """Return the places of a dataset's tiles. Raises TiaftError for tiles of several sizes.

    x and y are independent in TIAToolbox's arithmetic, so that each column and each line of the
    grid is asked for once, and not each tile.
    """
    tiles = np.asarray(dataset.inputs)
    sizes = np.unique(tiles[:, 2:] - tiles[:, :2], axis=0)
    if len(sizes) != 1:
        raise TiaftError("tiles differ in size")
    size = sizes[0]
    columns, column_of = np.unique(tiles[:, 0], return_inverse=True)
    lines, line_of = np.unique(tiles[:, 1], return_inverse=True)
    found = []
    for x, y in zip_longest(columns, lines):
        corner = np.array([columns[-1] if x is None else x, lines[-1] if y is None else y])
        bounds = reader.bounds_at_resolution_to_baseline(
            np.concatenate([corner, corner + size]), dataset.resolution, dataset.units
        )
        level, at_level, *_ = reader.find_read_bounds_params(
            bounds, dataset.resolution, dataset.units
        )
        found.append((int(level), np.asarray(bounds), np.asarray(at_level)))
    (level,) = {level for level, *_ in found}
    baseline, at_level = (np.stack([place[part] for place in found]) for part in (1, 2))
    return Places(
        level,
        _by_tile(baseline, column_of, line_of),
        _by_tile(at_level, column_of, line_of),
        (int(size[0]), int(size[1])),
    )


def _by_tile(bounds: np.ndarray, column_of: np.ndarray, line_of: np.ndarray) -> np.ndarray:
    x, y = bounds[column_of], bounds[line_of]
    return np.stack([x[:, 0], y[:, 1], x[:, 2], y[:, 3]], axis=1).astype(np.int64)
