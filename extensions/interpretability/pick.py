"""The tiles that a model is most sure of: what the paper's figures show."""

import numpy as np
import torch

from tiaft_extensions.interpretability.subject import BATCH, Subject, on_device
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network.outputs import probabilities_of
from tiaft_plugin.progress import progress
from tiaft_plugin.tiles.images import read_image
from tiaft_plugin.tiles.tileset import TileSet

SURE = 0.99  # paper 2, figure 2: "for which probabilities of tumor are above 0.99"


def confident_tiles(
    subject: Subject,
    tileset: TileSet,
    cls: str,
    *,
    at_least: float = SURE,
    count: int,
    seed: int = 0,
) -> tuple[np.ndarray, list[int]]:
    """Return up to `count` tiles of class `cls` that the model gives it with p > `at_least`.

    Tiles are uint8 (n, H, W, 3), of the model's tile size; with them come their rows in the tile
    set. They are drawn at random (`seed`) from those labelled `cls`. Raises TiaftError where there
    is none, which says the highest p there is.
    """
    column = class_index(subject, cls)
    rows = [row for row, names in enumerate(tileset.names) if cls in names]
    if not rows:
        there = ", ".join(name for name, tiles in tileset.counts.items() if tiles)
        raise TiaftError(f"{tileset.root} has no tile of {cls}: it has {there}")
    order = np.random.default_rng(seed).permutation(rows).tolist()
    chosen: list[np.ndarray] = []
    found: list[int] = []
    highest = 0.0
    with progress(len(order), f"Looking for sure tiles of {cls}", wanted=None) as bar:
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            tiles = read_tiles(subject, tileset, some)
            sure = probabilities(subject, tiles)[:, column]
            highest = max(highest, float(sure.max()))
            for row, tile, p in zip(some, tiles, sure, strict=True):
                if p > at_least and len(found) < count:
                    chosen.append(tile)
                    found.append(row)
            bar.update(len(some))
            if len(found) == count:
                break
    if not found:
        raise TiaftError(
            f"{subject.name} gives no tile of {cls} in {tileset.root} p > {at_least:.12g}: the "
            f"highest is {highest:.6g}; choose a lower threshold (--at-least)"
        )
    return np.stack(chosen), found


def class_index(subject: Subject, cls: str) -> int:
    """Return the column of a class. Raises TiaftError that lists those there are."""
    if not subject.classes:
        raise TiaftError(f"{subject.name} gives features, not classes: a classifier is needed")
    if cls not in subject.classes:
        raise TiaftError(
            f"{subject.name} has no class {cls!r}: it has {', '.join(subject.classes)}"
        )
    return subject.classes.index(cls)


def read_tiles(subject: Subject, tileset: TileSet, rows: list[int]) -> np.ndarray:
    """Return tiles as uint8 (n, H, W, 3), resized to the model's tile size where they differ."""
    return np.stack([read_image(tileset.files[row], subject.tile_size) for row in rows])


def probabilities(subject: Subject, tiles: np.ndarray) -> np.ndarray:
    """Return the probabilities (N, C) float32 of uint8 tiles (N, H, W, 3)."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(tiles), BATCH):
            logits = subject.network(on_device(subject, tiles[start : start + BATCH]))
            found.append(probabilities_of(logits, multilabel=subject.multilabel).float().cpu())
    return torch.cat(found).numpy() if found else np.zeros((0, len(subject.classes)), np.float32)
