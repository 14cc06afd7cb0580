"""Tile predictions made ready for a QuPath image: its pixels, its names of classes, columns."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np

from tiaft_plugin.engine.predictions import TileBlock, TilePredictions, checked_blocks
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.measurements import measurements_of
from tiaft_plugin.qupath.names import as_written, path_classes
from tiaft_plugin.qupath.objects import UNCLASSIFIED, Classes, NewTiles, Origin

if TYPE_CHECKING:
    from tiaft_plugin.qupath.project.frame import Frame


def new_tiles(
    predictions: TilePredictions,
    frame: "Frame",
    *,
    min_probability: float | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[NewTiles, list[str]]:
    """Return a slide's tiles as columns, and notes for people on what became of them.

    A tile has the class that its model gives it: the most probable one; of several labels it has
    to have 0.5 or more. Where that class has less than `min_probability`, the tile is unclassified.
    With `classes`, named as the model or as QuPath has them, tiles of others are left out, and
    unclassified ones, too. Probabilities are the model's float32, bit for bit.

    Tiles where QuPath shows no part of the slide (OpenSlide's bounds) are left out, those over the
    image's edge stay whole. Raises TiaftError for damaged predictions, class names that QuPath
    refuses or the model lacks, tiles that lie on no part of the slide or all outside the image.
    """
    if min_probability is not None and not 0 <= min_probability <= 1:
        raise TiaftError(f"a least probability of {min_probability:g}: choose one from 0 to 1")
    names = tuple(": ".join(parts) for parts in path_classes(predictions.classes))
    wanted = _indices(classes, names) if classes is not None else None
    columns, became = _Columns(predictions.count), Counter[str]()
    for block in checked_blocks(predictions):
        labels = _labels(block, min_probability, became)
        bounds = np.asarray(frame.to_image(block.bounds), dtype=np.float64)
        keep = _on_image(block, bounds, frame, became)
        if wanted is not None:
            of_class = np.isin(labels, wanted)
            became["of other classes: left out"] += int((keep & ~of_class).sum())
            keep &= of_class
        columns.add(np.flatnonzero(keep), block, bounds, labels, predictions.classes)
    _refuse(predictions, columns, became)
    colours = tuple(predictions.colour(label) for label in range(len(names)))
    origin = Origin(predictions.model, predictions.model_sha256, predictions.grid)
    tiles = columns.tiles(origin, Classes(names, colours))
    return tiles, [
        f"{count} of {predictions.count} tiles {what}" for what, count in became.items() if count
    ]


_BELOW = "below the least probability: unclassified"
_OFF_SLIDE = "outside the slide"
_OFF_IMAGE = "outside what QuPath shows of the slide: left out"
_OVER_EDGE = "over the edge of the image: left whole"


def _labels(block: TileBlock, least: float | None, became: Counter[str]) -> np.ndarray:
    """Return the index of each tile's class, or UNCLASSIFIED: (n,) int64."""
    labels = np.asarray(block.labels, dtype=np.int64)
    labels = np.where(labels < block.probabilities.shape[1], labels, UNCLASSIFIED)
    if least is not None:
        below = (labels != UNCLASSIFIED) & (block.probabilities.max(axis=1) < least)
        became[_BELOW] += int(below.sum())
        labels[below] = UNCLASSIFIED
    return labels


def _on_image(
    block: TileBlock, bounds: np.ndarray, frame: "Frame", became: Counter[str]
) -> np.ndarray:
    """Tell which tiles lie on the image, wholly or in part: (n,) bool."""
    touching, within = _lie_on(bounds, frame.image_size)
    became[_OFF_SLIDE] += int((~_lie_on(block.bounds, frame.slide_size)[0]).sum())
    became[_OFF_IMAGE] += int((~touching).sum())
    became[_OVER_EDGE] += int((touching & ~within).sum())
    return touching


def _lie_on(bounds: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Tell which of `bounds` (n, 4) share area with 0, 0, width, height, and which lie within."""
    first, last = bounds[:, :2], bounds[:, 2:]
    touching = (last > 0) & (first < size)
    within = (first >= 0) & (last <= size)
    return touching[:, 0] & touching[:, 1], within[:, 0] & within[:, 1]


def _indices(classes: Sequence[str], names: tuple[str, ...]) -> list[int]:
    wanted = []
    for name in classes:
        if as_written(name) not in names:
            raise TiaftError(f"the model has no class {name!r}, only {', '.join(names)}")
        wanted.append(names.index(as_written(name)))
    return wanted


def _refuse(predictions: TilePredictions, columns: "_Columns", became: Counter[str]) -> None:
    total, slide = predictions.count, predictions.slide.name
    if became[_OFF_SLIDE]:
        width, height = predictions.slide_size
        raise TiaftError(
            f"{slide}: {became[_OFF_SLIDE]} of {total} tiles lie outside the slide, "
            f"{width} × {height} pixels: predict it again"
        )
    if total and became[_OFF_IMAGE] == total:
        raise TiaftError(
            f"{slide}: all {total} tiles lie outside the part of the slide that QuPath shows: was "
            "another slide predicted?"
        )
    if len(set(columns.ids)) != len(columns.ids):
        raise TiaftError(f"{slide}: tiles of {predictions.model} share ids: predict it again")


class _Columns:
    """The columns of up to `count` tiles, filled block by block."""

    def __init__(self, count: int):
        self.ids: list[UUID] = []
        self.bounds = np.empty((count, 4))
        self.labels = np.empty(count, dtype=np.int64)
        self.measurements: dict[str, np.ndarray] = {}

    def add(
        self,
        keep: np.ndarray,
        block: TileBlock,
        bounds: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
    ) -> None:
        """Add the rows `keep` of a block; what another block measured and this did not is NaN."""
        at = slice(len(self.ids), len(self.ids) + len(keep))
        self.ids.extend(block.ids[row] for row in keep)
        self.bounds[at], self.labels[at] = bounds[keep], labels[keep]
        for name, values in measurements_of(block, classes).items():
            if name not in self.measurements:
                self.measurements[name] = np.full(len(self.labels), np.nan, dtype=np.float32)
            with np.errstate(over="ignore"):  # a plug-in's float64 may be more than float32 holds
                self.measurements[name][at] = values[keep]

    def tiles(self, origin: Origin, classes: Classes) -> NewTiles:
        """Return what was added."""
        count = len(self.ids)
        measurements = {name: values[:count] for name, values in self.measurements.items()}
        bounds, labels = self.bounds[:count], self.labels[:count]
        return NewTiles(origin, classes, self.ids, bounds, labels, measurements)
