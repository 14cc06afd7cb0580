"""Objects on their way into a QuPath image, and those found in one: as columns, without Java."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
from shapely import MultiPolygon, Polygon

from tiaft_plugin.engine.predictions import Colour
from tiaft_plugin.qupath.marks import Mark

UNCLASSIFIED = -1


@dataclass(frozen=True)
class Origin:
    """Whose objects they are: the name and SHA-256 of a model, and the id of its tile grid."""

    model: str
    sha256: str
    grid: str


@dataclass(frozen=True)
class Classes:
    """The classes of a push, in the model's order: QuPath's names and colours (0 to 255)."""

    names: tuple[str, ...]  # as QuPath writes them: "Tumor: Positive"
    colours: tuple[Colour, ...]


@dataclass(frozen=True)
class NewTiles:
    """n tiles to write.

    `bounds` (n, 4) float64 x0, y0, x1, y1 in pixels of the QuPath image; `labels` (n,) int, the
    index of each tile's class or UNCLASSIFIED; `measurements` (n,) float32 by name.
    """

    origin: Origin
    classes: Classes
    ids: Sequence[UUID]
    bounds: np.ndarray
    labels: np.ndarray
    measurements: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class NewAreas:
    """Annotations to write, each an area of neighbouring tiles of one class, in image pixels."""

    origin: Origin
    classes: Classes
    ids: Sequence[UUID]
    areas: Sequence[Polygon | MultiPolygon]
    labels: np.ndarray
    measurements: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Found:
    """The objects in an image that carry a mark, of whatever model, one row each.

    `bounds` is (n, 4) float64 in image pixels; `classes` holds each one's class now, as QuPath
    writes it, or None; `shapes` is `marks.shape_text` of what it is now, empty for tiles.
    `unmarked` counts the objects without a mark: people's, or other programs'.
    """

    ids: Sequence[UUID]
    bounds: np.ndarray
    marks: Sequence[Mark]
    classes: Sequence[str | None]
    shapes: Sequence[str]
    unmarked: int = 0

    def __len__(self) -> int:
        return len(self.ids)
