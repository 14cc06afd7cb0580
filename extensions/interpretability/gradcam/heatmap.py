"""Maps over tissue: on a tile, and of a whole slide as a pyramidal TIFF in its coordinates."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tiaft_plugin.engine.picture import read_thumbnail
from tiaft_plugin.files import write_atomically

FINER = 16  # pixels along a cell of a tile's map, so that tissue can be told under it
LONGEST_SIDE = 6144  # px, which takes some 400 MB of memory
SMALLEST_LEVEL = 512  # px, of the pyramid
BRIGHTEST = 99  # percentile of the slide's map that is drawn as 1: one hot spot must not dim all
MOST_OPAQUE = 0.65  # the tissue stays visible
HALF = 0.5  # of the maximum, where a line is drawn


def over(pixels: np.ndarray, heat: np.ndarray, *, outline: bool = False) -> np.ndarray:
    """Return uint8 pixels (H, W, 3) with heat (H, W), 0 to 1, over them; 0 leaves them alone.

    `outline` draws a line where the heat is half of what it can be.
    """
    heat = np.clip(heat, 0, 1)[..., None]
    opacity = MOST_OPAQUE * heat
    mixed = pixels * (1 - opacity) + _colours()[(heat[..., 0] * 255).astype(np.uint8)] * opacity
    drawn = np.ascontiguousarray(mixed.round().astype(np.uint8))
    if outline:
        inside = (heat[..., 0] >= HALF).astype(np.uint8)
        lines, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, lines, -1, (0, 0, 0), max(1, len(pixels) // 150))
    return drawn


def key(width: int = 256, height: int = 12) -> np.ndarray:
    """Return the colours from 0 to 1 on white, uint8 (height, width, 3)."""
    white = np.full((height, width, 3), 255, np.uint8)
    return over(white, np.tile(np.linspace(0, 1, width), (height, 1)))


class SlideMap:
    """Maps of tiles laid on a slide of `size` (width, height) baseline pixels; overlaps averaged.

    `cell` is the side of a map's cell in baseline pixels: the canvas is some times finer. What is
    as large as `brightest` is drawn as 1; without, the 99th percentile of all is.
    """

    def __init__(self, size: tuple[int, int], cell: float, brightest: float | None = None):
        self.size, self.brightest = size, brightest
        self.downsample = max(cell / FINER, max(size) / LONGEST_SIDE, 1.0)
        width, height = (max(1, round(side / self.downsample)) for side in size)
        self.sums = np.zeros((height, width), np.float32)
        self.counts = np.zeros((height, width), np.uint16)

    def add(self, bounds: np.ndarray, maps: np.ndarray) -> None:
        """Lay maps (n, h, w) on tiles of `bounds` (n, 4), x0, y0, x1, y1 in baseline pixels."""
        height, width = self.sums.shape
        scale = np.array([width, height] * 2) / np.array(self.size * 2)
        for (x0, y0, x1, y1), one in zip(np.rint(bounds * scale).astype(int), maps, strict=True):
            large = cv2.resize(one, (max(1, x1 - x0), max(1, y1 - y0)))
            left, top = max(0, -x0), max(0, -y0)  # tiles may reach over the slide's edge
            part = large[top : max(0, height - y0), left : max(0, width - x0)]
            here = (
                slice(y0 + top, y0 + top + part.shape[0]),
                slice(x0 + left, x0 + left + part.shape[1]),
            )
            self.sums[here] += part
            self.counts[here] += 1

    def heat(self) -> np.ndarray:
        """Return the map, 0 to 1, float32 (height, width); 0 where there is no tile."""
        mean = self.sums / np.maximum(self.counts, 1)
        warm = mean[mean > 0]
        if not warm.size:
            return mean
        return np.minimum(mean / (self.brightest or np.percentile(warm, BRIGHTEST)), 1)

    def over_slide(self, slide: Path | None) -> np.ndarray:
        """Return the map over the slide's own pixels, or white, uint8 (height, width, 3)."""
        height, width = self.sums.shape
        if slide is None:
            return over(np.full((height, width, 3), 255, np.uint8), self.heat())
        pixels = read_thumbnail(slide, max(height, width))
        if pixels.shape[:2] != (height, width):
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        return over(pixels, self.heat())


def write_pyramid(path: Path, pixels: np.ndarray, mpp: tuple[float, float]) -> None:
    """Write uint8 pixels (H, W, 3) of `mpp` µm/px (x, y) as a pyramidal OME-TIFF, atomically.

    QuPath and TIAToolbox open it as a slide of its own, of the same size in µm.
    """
    import tifffile

    levels = [pixels]
    while max(levels[-1].shape) > SMALLEST_LEVEL:
        height, width = (max(1, side // 2) for side in levels[-1].shape[:2])
        levels.append(cv2.resize(levels[-1], (width, height), interpolation=cv2.INTER_AREA))
    layout: dict[str, Any] = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
    about: dict[str, Any] = {
        "axes": "YXS",
        "PhysicalSizeX": mpp[0],
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp[1],
        "PhysicalSizeYUnit": "µm",
    }
    with (
        write_atomically(path) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=True, ome=True) as file,
    ):
        for number, level in enumerate(levels):
            where = 1e4 / (np.array(mpp) * 2**number)
            file.write(
                level,
                subifds=len(levels) - 1 if number == 0 else None,
                subfiletype=0 if number == 0 else 1,
                metadata=about if number == 0 else None,
                resolution=(float(where[0]), float(where[1])),
                resolutionunit="CENTIMETER",
                **layout,
            )


def _colours() -> np.ndarray:
    """Return 256 colours, blue to green to yellow, (256, 3): stained tissue has none of them."""
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0.35, 1, 256))[:, :3] * 255
