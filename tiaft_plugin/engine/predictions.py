"""Tile predictions of one slide, as every sink takes them: in blocks, in baseline pixels."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network.card import UNCLASSIFIED
from tiaft_plugin.network.outputs import labels_of
from tiaft_plugin.plugins import each_plugin

if TYPE_CHECKING:
    from tiaft_plugin.engine.store import Store

Colour = tuple[int, int, int]

# Okabe and Ito's palette, told apart by colour-blind readers too, then tab20's paler half.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (0, 114, 178),
    (204, 121, 167), (120, 120, 120), (240, 228, 66), (174, 199, 232), (255, 187, 120),
    (152, 223, 138), (255, 152, 150), (197, 176, 213), (196, 156, 148), (247, 182, 210),
)  # fmt: skip
NO_COLOUR: Colour = (200, 200, 200)  # of unclassified tiles


@dataclass(frozen=True)
class TileBlock:
    """Some tiles: `bounds` (n, 4) float64 x0, y0, x1, y1 in baseline pixels of the slide.

    `probabilities` is (n, C) float32, `ids` n UUIDs that stay the same from run to run,
    `measurements` holds what plug-ins add, (n,) floats by name. With `multilabel` a tile has any
    number of the classes, and probabilities do not sum to 1.
    """

    bounds: np.ndarray
    probabilities: np.ndarray
    ids: list[UUID]
    measurements: dict[str, np.ndarray] = field(default_factory=dict)
    multilabel: bool = False

    @property
    def labels(self) -> np.ndarray:
        """The index of each tile's class, (n,) int: the most probable one.

        With `multilabel` it has to have 0.5 or more: where none has, the index is C, one more than
        any class has. ``TilePredictions.class_of`` knows them all.
        """
        return labels_of(self.probabilities, multilabel=self.multilabel)


@dataclass(frozen=True)
class TilePredictions:
    """All predicted tiles of one slide; `blocks()` reads them anew, never all at once.

    With `multilabel` a tile has any number of the classes, and may be unclassified. `grid` names
    the tile grid, `fingerprint` the slide's (docs/formats.md), `mpp` its µm/px at baseline
    (x, y); `bounds` is what the file says is scanned of it (x, y, width, height in baseline
    pixels), which QuPath shows alone, or None for all. Those are unknown (empty, None) where
    predictions were not read from a store.
    """

    slide: Path
    slide_size: tuple[int, int]  # width, height in baseline pixels
    classes: tuple[str, ...]
    model: str
    model_sha256: str
    count: int
    blocks: Callable[[], Iterator[TileBlock]]
    multilabel: bool = False
    grid: str = ""
    fingerprint: str = ""
    mpp: tuple[float, float] | None = None
    bounds: tuple[int, int, int, int] | None = None

    def class_of(self, label: int) -> str:
        """Return the name of a class; ``unclassified`` for the index that no class has."""
        return UNCLASSIFIED if self._is_none(label) else self.classes[label]

    def colour(self, label: int) -> Colour:
        """Return the red, green and blue (0 to 255) of a class; grey for unclassified tiles."""
        return NO_COLOUR if self._is_none(label) else PALETTE[label % len(PALETTE)]

    def _is_none(self, label: int) -> bool:
        return self.multilabel and label == len(self.classes)


class Sink(Protocol):
    """Writes tile predictions to `path`, atomically, in memory that does not grow with them."""

    def __call__(self, predictions: TilePredictions, path: Path) -> None:
        """Write every tile."""


def checked_blocks(predictions: TilePredictions) -> Iterator[TileBlock]:
    """Yield every block, refusing what a sink could only write wrong.

    Raises TiaftError where shapes disagree, a bound or probability is not finite, a tile has no
    area, an id stands twice in a block, or the tiles are not as many as `count` says.
    """
    seen = 0
    for block in predictions.blocks():
        fault = _fault(block, len(predictions.classes))
        if fault:
            raise TiaftError(
                f"{predictions.slide.name}: {fault} among tiles {seen} to "
                f"{seen + len(block.bounds) - 1} from {predictions.model}; predict it again"
            )
        seen += len(block.bounds)
        yield block
    if seen != predictions.count:
        raise TiaftError(
            f"{predictions.slide.name}: {seen} tiles came instead of {predictions.count}; "
            "predict it again"
        )


def _fault(block: TileBlock, class_count: int) -> str | None:
    count, bounds = len(block.bounds), block.bounds
    if bounds.shape != (count, 4) or block.probabilities.shape != (count, class_count):
        return f"{bounds.shape} bounds for {block.probabilities.shape} probabilities"
    if len(block.ids) != count or len(set(block.ids)) != count:
        return f"{len(set(block.ids))} different ids for {count} tiles"
    for name, values in block.measurements.items():
        if np.shape(values) != (count,):
            return f"measurement {name!r} of shape {np.shape(values)} for {count} tiles"
    if not np.isfinite(block.probabilities).all():
        return "a probability that is no number"
    if not np.isfinite(bounds).all() or not (bounds[:, :2] < bounds[:, 2:]).all():
        return "a tile without area"
    return None


def predictions_of(store: "Store", slide: Path) -> TilePredictions:
    """Return a prediction store as sinks take it; plug-ins add measurements block by block.

    Raises TiaftError for a feature store.
    """
    if store.kind != "predictions":
        raise TiaftError(f"{store.path} holds {store.kind}, not predictions")

    multilabel = store.multilabel

    def blocks() -> Iterator[TileBlock]:
        for bounds, probabilities in store.blocks():
            ids = store.tile_ids(bounds)
            block = TileBlock(bounds, probabilities, ids, multilabel=multilabel)
            measured_by: dict[str, str] = {}
            for plugin, measure in each_plugin("measure_tiles"):
                for added in measure(slide=slide, tiles=block, store=store.path):
                    for name, values in _checked(added, len(bounds)).items():
                        if name in measured_by:
                            raise TiaftError(
                                f"plug-ins {measured_by[name]} and {plugin} both measure {name!r}; "
                                f"TIAFT_DISABLE_PLUGINS={plugin} leaves the second out"
                            )
                        measured_by[name] = plugin
                        block.measurements[name] = values
            yield block

    facts, model = store.facts["slide"], store.facts["model"]
    width, height = facts["size"]
    return TilePredictions(
        slide,
        (width, height),
        store.classes,
        model["name"],
        model["sha256"],
        len(store),
        blocks,
        multilabel,
        grid=_grid_text(store.facts),
        fingerprint=facts["fingerprint"],
        mpp=tuple(facts["mpp"]),
        bounds=tuple(facts["bounds"]) if facts.get("bounds") else None,
    )


def _grid_text(facts: Mapping[str, Any]) -> str:
    """Return a tile grid for programs and people: "224 px at 0.5 mpp, 713a4dc647088e15"."""
    grid = facts["grid"]
    size, at = grid["tile_size"][0], f"{grid['resolution']:g} {grid['units']}"
    return f"{size} px at {at}, {facts['grid_id']}"


def _checked(measurements: dict, count: int) -> dict[str, np.ndarray]:
    checked = {str(name): np.asarray(values, float) for name, values in measurements.items()}
    for name, values in checked.items():
        if values.shape != (count,):
            raise TiaftError(
                f"a plug-in's measurement {name!r} has shape {values.shape} for {count} tiles"
            )
    return checked
