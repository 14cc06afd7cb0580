"""Tile predictions of one slide, as every sink takes them: in blocks, in baseline pixels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from uuid import UUID

import numpy as np

Colour = tuple[int, int, int]

# Okabe and Ito's palette, told apart by colour-blind readers too, then tab20's paler half.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178),
    (213, 94, 0), (204, 121, 167), (120, 120, 120), (174, 199, 232), (255, 187, 120),
    (152, 223, 138), (255, 152, 150), (197, 176, 213), (196, 156, 148), (247, 182, 210),
)  # fmt: skip


@dataclass(frozen=True)
class TileBlock:
    """Some tiles: `bounds` (n, 4) float64 x0, y0, x1, y1 in baseline pixels of the slide.

    `probabilities` is (n, C) float32, `ids` n UUIDs that stay the same from run to run,
    `measurements` holds what plug-ins add, (n,) floats by name.
    """

    bounds: np.ndarray
    probabilities: np.ndarray
    ids: list[UUID]
    measurements: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        """The index of each tile's most probable class, (n,) int."""
        return self.probabilities.argmax(axis=1)


@dataclass(frozen=True)
class TilePredictions:
    """All predicted tiles of one slide; `blocks()` reads them anew, never all at once."""

    slide: Path
    slide_size: tuple[int, int]  # width, height in baseline pixels
    classes: tuple[str, ...]
    model: str
    model_sha256: str
    count: int
    blocks: Callable[[], Iterator[TileBlock]]

    def colour(self, label: int) -> Colour:
        """Return the red, green and blue (0 to 255) of a class."""
        return PALETTE[label % len(PALETTE)]


class Sink(Protocol):
    """Writes tile predictions to `path`, atomically, in memory that does not grow with them."""

    def __call__(self, predictions: TilePredictions, path: Path) -> None: ...
