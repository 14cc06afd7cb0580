"""Haralick's texture measures of a tile, the concepts of the paper's figure 3."""

import numpy as np
from skimage.color import rgb2gray
from skimage.feature import graycomatrix, graycoprops

PROPERTIES = {
    "asm": "ASM",
    "contrast": "contrast",
    "correlation": "correlation",
    "energy": "energy",
    "dissimilarity": "dissimilarity",
}  # our name: scikit-image's


def cooccurrence(tile: np.ndarray) -> np.ndarray:
    """Return the grey levels' co-occurrences (256, 256) in a uint8 tile (H, W, 3); their sum is 1.

    As in the paper's code: luminance in 256 levels, neighbours at distance 1 px to the right,
    counted both ways.
    """
    grey = np.rint(rgb2gray(tile) * 255).astype(np.uint8)
    return graycomatrix(grey, [1], [0], levels=256, symmetric=True, normed=True)[:, :, 0, 0]


class Texture:
    """A measure of one of Haralick's properties: ``measure(tile)``."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, tile: np.ndarray) -> float:
        """Return the property of a uint8 tile (H, W, 3); NaN for the correlation of one grey."""
        counts = cooccurrence(tile)
        if self.name == "correlation" and np.count_nonzero(counts) == 1:
            return float("nan")  # scikit-image says 1
        return float(graycoprops(counts[:, :, None, None], PROPERTIES[self.name])[0, 0])
