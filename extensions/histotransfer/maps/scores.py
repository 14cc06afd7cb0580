"""Attention as measurements of tiles, beside the probabilities that QuPath gets."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tiaft_extensions.interpretability.gradcam.scores import Kind, keep_scores
from tiaft_plugin.engine.store import Store, read_store
from tiaft_plugin.errors import TiaftError

if TYPE_CHECKING:  # every run with predictions asks for scores, and needs no torch for them
    from tiaft_extensions.histotransfer.kept import AttentionRun
    from tiaft_extensions.histotransfer.maps.study import SlideAttention

ATTENTION = Kind(".attention.npz", "tiaft histotransfer maps")


def measurement_names(run: "AttentionRun") -> tuple[str, str]:
    """Return what attention, and its percentile in the slide, are called in QuPath."""
    name = f"{run.folder.parent.parent.resolve().name}/{run.name}"
    return f"Attention times mean: {name}", f"Attention percentile: {name}"


def keep_attention_beside(run: "AttentionRun", found: "SlideAttention", predictions: Store) -> int:
    """Keep attention beside a store of predictions of the same slide; return for how many tiles.

    Features and predictions may be of different models: a tile is known by its place. All tiles of
    the predictions are kept, NaN where there is no attention, so that other runs' stays. Raises
    TiaftError where no tile has the same place.
    """
    if not len(predictions):
        raise TiaftError(f"{predictions.path} has no tiles")
    bounds = predictions.bounds()
    row_at = {place: row for row, place in enumerate(_places(found.bounds))}
    pairs = [(row, row_at[place]) for row, place in enumerate(_places(bounds)) if place in row_at]
    if not pairs:
        raise TiaftError(
            f"{predictions.path} has no tile where {found.store.path} has one: extract and predict "
            "with the same tile size, stride and resolution"
        )
    there, own = (list(rows) for rows in zip(*pairs, strict=True))
    columns = np.full((2, len(bounds)), np.nan)
    columns[:, there] = found.times[own], found.percentile[own]
    scores = dict(zip(measurement_names(run), columns, strict=True))
    keep_scores(predictions.path, predictions.tile_ids(bounds), scores, ATTENTION)
    return len(pairs)


def same_slide(found: Store, other: Store) -> bool:
    """Whether two stores are of the same slide."""
    return found.facts["slide"]["fingerprint"] == other.facts["slide"]["fingerprint"]


def read_predictions(path: Path) -> Store:
    """Open a store of predictions. Raises TiaftError for any other."""
    store = read_store(path)
    if store.kind != "predictions":
        raise TiaftError(f"{path} holds {store.kind}: `tiaft predict` makes stores of predictions")
    return store


def _places(bounds: np.ndarray) -> list[tuple[float, ...]]:
    return [tuple(place) for place in bounds.round(3).tolist()]  # as tiles' ids are rounded
