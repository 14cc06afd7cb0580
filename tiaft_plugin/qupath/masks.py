"""Regions drawn in QuPath as a mask for TIAToolbox's tiles."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tiaft_plugin.qupath.regions import read_regions, regions_to_mask

if TYPE_CHECKING:
    from tiatoolbox.wsicore import WSIReader

_MASK_MPP = 4.0  # µm/px: a tile of 224 px at 0.5 µm/px is 28 mask pixels wide
_LONGEST_SIDE = 8192  # mask pixels, which bounds memory on any slide


@dataclass(frozen=True)
class RegionMask:
    """The regions of a GeoJSON file, as a mask of whichever slide is open.

    With `classes`, only regions of these. What is left out or repaired is logged as a warning.
    """

    path: Path
    classes: tuple[str, ...] = ()

    def __call__(self, reader: "WSIReader") -> np.ndarray:
        """Return a mask (h, w) uint8 of the whole slide. Raises TiaftError without regions."""
        width, height = (int(value) for value in reader.info.slide_dimensions)
        regions = read_regions(self.path, self.classes or None, (width, height))
        log = logging.getLogger(__name__)
        for text in regions.skipped:
            log.warning("%s: %s: left out", self.path, text)
        for region in regions:
            if region.repaired:
                log.warning("%s: region repaired: %s", self.path, region.repaired)
        longest = max(width, height)
        shrink = max(_MASK_MPP / float(reader.info.mpp[0]), longest / _LONGEST_SIDE, 1.0)
        size = max(1, round(width / shrink)), max(1, round(height / shrink))
        return regions_to_mask(regions, (width, height), size).astype(np.uint8)
