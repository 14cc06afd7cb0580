"""Regions drawn in QuPath as a mask for TIAToolbox's tiles."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tiaft_plugin.qupath.regions import read_regions, regions_to_mask

if TYPE_CHECKING:
    from tiatoolbox.wsicore import WSIReader

_MASK_MPP = 4.0  # µm/px: a tile of 224 px at 0.5 µm/px is 28 mask pixels wide
_LONGEST_SIDE = 8192  # mask pixels, which bounds memory on any slide


def mask_of_regions(path: Path, classes: Sequence[str], reader: "WSIReader") -> np.ndarray:
    """Return a mask (h, w) uint8 of a GeoJSON file's regions, over the whole of an open slide.

    With `classes`, only regions of these. What is left out or repaired is logged as a warning.
    Raises TiaftError where none is left.
    """
    width, height = (int(value) for value in reader.info.slide_dimensions)
    regions = read_regions(path, classes or None, (width, height))
    for reason in regions.skipped:
        logging.getLogger(__name__).warning("%s: %s: left out", path, reason)
    for region in regions:
        if region.repaired:
            logging.getLogger(__name__).warning("%s: region repaired: %s", path, region.repaired)
    shrink = max(_MASK_MPP / float(reader.info.mpp[0]), max(width, height) / _LONGEST_SIDE, 1.0)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    return regions_to_mask(regions, (width, height), size).astype(np.uint8)
