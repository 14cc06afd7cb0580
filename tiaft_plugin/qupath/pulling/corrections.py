"""Tiles of a model that people gave another class: where they lie, and what the model had said."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.names import as_written, measurement_name

_MARGIN = 0.03  # px: QuPath's GeoJSON rounds both ends of a tile to hundredths
_SAME = 0.01  # extents (µm) that differ by less, as a fraction, are one


@dataclass(frozen=True)
class Correction:
    """A corrected tile: `bounds` x0, y0, x1, y1 in baseline pixels, and its label.

    `predicted` is the class that the model gave it, empty where it gave none; the probabilities
    are the model's, None where the object does not have them.
    """

    id: str
    bounds: tuple[float, float, float, float]
    label: str
    predicted: str
    predicted_probability: float | None
    label_probability: float | None


def probability_of(measurements: Mapping[str, float], *class_names: str) -> float | None:
    """Return the probability of the first of `class_names` that has one among measurements."""
    prefix = measurement_name("")
    known = {
        as_written(name.removeprefix(prefix)): value
        for name, value in measurements.items()
        if name.startswith(prefix)
    }
    found = [known[as_written(name)] for name in class_names if as_written(name) in known]
    return found[0] if found else None


def extent_of(correction: Correction, mpp: tuple[float, float]) -> float:
    """Return the side of a tile in µm, on a slide of `mpp` (x, y) µm/px."""
    x0, y0, x1, y1 = correction.bounds
    return ((x1 - x0) * mpp[0] + (y1 - y0) * mpp[1]) / 2


_GRID = re.compile(r"(\d+) px at ([\d.e+-]+) mpp,.*")


@dataclass(frozen=True)
class Extent:
    """How large tiles are: `size` px on each side, at `mpp` µm/px."""

    size: int
    mpp: float

    def fits(self, extent: float) -> bool:
        """Whether a tile of so many µm covers what these tiles do."""
        return abs(extent / (self.size * self.mpp) - 1) < _SAME


def agreed_extent(
    extents: Sequence[float],
    baseline_mpp: float,
    size: int | None = None,
    mpp: float | None = None,
) -> Extent:
    """Return tile size and µm/px: what is given, and else what corrected tiles have.

    `extents` are the sides of the corrected tiles in µm; of several kinds the most frequent counts.
    Given one of `size` and `mpp`, the other follows; given none, tiles are as many pixels as the
    slide has there, `baseline_mpp` µm each. Raises TiaftError where nothing is known.
    """
    if size is not None and mpp is not None:
        return Extent(size, mpp)
    if not extents:
        raise TiaftError(
            "no tile was corrected whose size and µm/px could be taken: pass --tile-size and --mpp"
        )
    extent = _most_frequent(extents)
    if size is None:
        size = max(1, round(extent / (mpp or baseline_mpp)))
    # 223.99 µm is what is left of 224 by rounding: the roundest number within it was meant.
    return Extent(size, mpp or _roundest(extent / size, _MARGIN * baseline_mpp / extent))


def extent_of_grid(grid: str) -> Extent | None:
    """Return the size that the tiles of a model's grid have (`Mark.grid`), where it tells it."""
    found = _GRID.fullmatch(grid)
    return Extent(int(found[1]), float(found[2])) if found else None


def _most_frequent(extents: Iterable[float]) -> float:
    kinds: list[list[float]] = []
    for extent in sorted(extents):
        if kinds and extent / kinds[-1][0] - 1 < _SAME:
            kinds[-1].append(extent)
        else:
            kinds.append([extent])
    return float(np.median(max(kinds, key=len)))


def _roundest(number: float, margin: float) -> float:
    """Return the number with fewest digits that differs by less than a fraction of `margin`."""
    for digits in range(1, 12):
        rounded = float(f"{number:.{digits}g}")
        if abs(rounded / number - 1) <= margin:
            return rounded
    return number
