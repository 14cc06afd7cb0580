"""What colour alone says of a tile: the baseline that features have to beat."""

import math

import numpy as np

from tiaft_plugin.errors import TiaftError

BINS = 16  # of 256 levels
COLOUR_WIDTH = 3 * (2 + BINS)
_LEVELS = np.arange(256)


def colour_features(tiles: np.ndarray) -> np.ndarray:
    """Return (N, 54) float32 of uint8 RGB tiles (N, H, W, 3).

    Columns are the means of red, green and blue, their standard deviations (both of pixels scaled
    to 0…1), and a histogram of 16 bins of each, as fractions. Pixels are counted in whole numbers,
    so that the result is the same to the bit on every machine. Raises TiaftError for other arrays.
    """
    if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[3] != 3 or 0 in tiles.shape:
        raise TiaftError(f"tiles are {tiles.dtype} {tiles.shape}: uint8 (N, H, W, 3) expected")
    return np.stack([_of_counts(_counts(tile)) for tile in tiles])


def _counts(tile: np.ndarray) -> np.ndarray:
    """Return how many pixels have each of 256 levels, (3, 256) int64."""
    import cv2

    if tile[..., 0].size >= 1 << 24:  # beyond it, OpenCV's float32 counts are not exact
        return np.stack([np.bincount(tile[..., c].ravel(), minlength=256) for c in range(3)])
    tile = np.ascontiguousarray(tile)
    counts = [cv2.calcHist([tile], [c], None, [256], [0, 256])[:, 0] for c in range(3)]
    return np.stack(counts).astype(np.int64)


def _of_counts(counts: np.ndarray) -> np.ndarray:
    pixels = int(counts[0].sum())
    total, squares = counts @ _LEVELS, counts @ _LEVELS**2
    # Python's integers: n Σv² of a tile with ten million pixels is more than int64 holds.
    deviation = [
        math.sqrt(pixels * square - level**2) / pixels / 255
        for level, square in zip(total.tolist(), squares.tolist(), strict=True)
    ]
    histogram = counts.reshape(3, BINS, -1).sum(axis=2) / pixels
    return np.concatenate([total / pixels / 255, deviation, histogram.ravel()]).astype(np.float32)
