"""From a tile as it was read to what the network gets, and what else is kept of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from tiaft_plugin.tiles.colour import colour_features

Stain = Callable[[np.ndarray], tuple[np.ndarray, bool]]


class Prepare:
    """Normalises a tile's stains, measures its colour, and preprocesses it as the model wants."""

    def __init__(self, preprocess: Callable, stain: Stain | None = None, *, colour: bool = False):
        self.preprocess, self.stain, self.colour = preprocess, stain, colour

    def __call__(self, tile: np.ndarray) -> dict[str, Any]:
        """Return "image" of a tile (H, W, 3), "normalised" (bool) where there is a `stain`.

        With `colour` there is "colour" (54,) float32 of an 8-bit RGB tile, as the network sees it.
        """
        beside: dict[str, Any] = {}
        if self.stain is not None:
            tile, beside["normalised"] = self.stain(tile)
        if self.colour and tile.dtype == np.uint8 and tile.ndim == 3 and tile.shape[2] == 3:
            beside["colour"] = colour_features(tile[None])[0]
        return {"image": self.preprocess(tile), **beside}

    def batch(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        """Return the same of tiles (n, H, W, 3), each an array of n."""
        made = [self(tile) for tile in tiles]
        return {name: np.stack([np.asarray(each[name]) for each in made]) for name in made[0]}

    def image(self, tile: np.ndarray) -> Any:
        """Return the image alone: what TIAToolbox takes for preprocessing."""
        return self(tile)["image"]


class PreparedTiles(Dataset):
    """TIAToolbox's dataset of a slide's tiles, prepared in whichever process reads them."""

    def __init__(self, tiles: Any, prepare: Prepare):
        self.tiles, self.prepare = tiles, prepare
        tiles.preproc_func = None  # `prepare` does that

    @property
    def coordinates(self) -> np.ndarray:
        """Where tiles lie, (N, 4) x0, y0, x1, y1 at the read resolution."""
        return self.tiles.inputs

    def first(self) -> dict[str, Any]:
        """Return the first tile, and close the slide again.

        Workers must each open it: forked ones would share one position in one file, and what is
        open cannot be sent to spawned ones.
        """
        tile = self[0]
        self.tiles.reader = None
        return tile

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.prepare(self.tiles[row]["image"])
