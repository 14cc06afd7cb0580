"""The pictures of a slide: attention over its tissue, and the tiles that have the most."""

from io import BytesIO

import cv2
import numpy as np

from tiaft_extensions.histotransfer.maps.study import SlideAttention
from tiaft_extensions.interpretability.gradcam.heatmap import FINER, SlideMap, key
from tiaft_plugin.page import drawing, visible

LONGEST_SIDE = 1400  # px, of a slide in its picture
DECADES = 1.0  # of attention, up and down from the mean tile's, that colours tell apart
COLUMNS, SIDE, GAP = 4, 224, 8  # tiles in a row, and px
DPI = 100


def heat_of(times: np.ndarray) -> np.ndarray:
    """Return attention (N,), 1 being the mean tile's, as heat: 0 at a tenth, 1 at ten times.

    The scale is the same for all slides, so that they can be compared.
    """
    logs = np.log10(np.maximum(times, 10**-DECADES))
    return ((logs + DECADES) / (2 * DECADES)).clip(0, 1).astype(np.float32)


def map_of(found: SlideAttention) -> np.ndarray:
    """Return a slide's map over its thumbnail, or over white without, uint8 (height, width, 3)."""
    width, height = found.store.facts["slide"]["size"]
    cell = FINER * max(width, height) / LONGEST_SIDE
    canvas = SlideMap((width, height), cell, brightest=1.0)
    canvas.add(found.bounds, heat_of(found.times)[:, None, None])
    return canvas.over_slide(found.slide)


def draw_map(found: SlideAttention) -> bytes:
    """Return a slide's map with a title, and what its colours mean beside it, as PNG."""
    pixels = map_of(found)
    height, width = pixels.shape[:2]
    font = max(12, height // 60)  # px, as all here
    page = np.full((max(height, 12 * font) + 3 * font, width + 13 * font, 3), 255, np.uint8)
    page[2 * font : 2 * font + height, :width] = pixels
    bar = np.rot90(key(8 * font, font))
    left, top = width + font, 4 * font
    page[top : top + len(bar), left : left + font] = bar
    said = f", held out predicted {found.predicted}" if found.predicted else ""
    words: list[tuple[float, float, str]] = [
        (0, font, f"{found.name}: {found.label}{said}"),
        (left, 2.5 * font, "Attention"),
    ]
    ticks = ("10 × or more", "the mean tile’s", "⅒ or less")
    for place, tick in zip((0, 0.5, 1), ticks, strict=True):
        words.append((left + 1.5 * font, top + place * len(bar), tick))
    return _lettered(page, words, font)


def draw_tiles(found: SlideAttention, rows: list[int], tiles: np.ndarray) -> bytes:
    """Return tiles, uint8 (n, H, W, 3), in their order, each with its attention, as PNG."""
    columns, font = min(COLUMNS, len(rows)), 13
    lines = -(-len(rows) // columns)
    across, down = SIDE + GAP, SIDE + GAP + 3 * font
    page = np.full((lines * down, columns * across, 3), 255, np.uint8)
    words: list[tuple[float, float, str]] = []
    for place, (row, tile) in enumerate(zip(rows, tiles, strict=True)):
        x, y = place % columns * across, place // columns * down + 3 * font
        page[y : y + SIDE, x : x + SIDE] = cv2.resize(tile, (SIDE, SIDE), interpolation=_how(tile))
        at = "x {:.0f}  y {:.0f}".format(*found.bounds[row, :2])
        words.append((x, y - 2.1 * font, f"{place + 1}. {found.times[row]:.3g} × mean"))
        words.append((x, y - 0.9 * font, at))
    return _lettered(page, words, font)


def _how(tile: np.ndarray) -> int:
    return cv2.INTER_AREA if len(tile) > SIDE else cv2.INTER_CUBIC


def _lettered(page: np.ndarray, words: list[tuple[float, float, str]], font: int) -> bytes:
    """Return pixels with words on them, their left and middle at x and y, as PNG."""
    from matplotlib.figure import Figure

    height, width = page.shape[:2]
    with drawing():
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        figure.figimage(page, origin="upper")
        for x, y, text in words:
            figure.text(
                x / width, 1 - y / height, visible(text), va="center", fontsize=font * 72 / DPI
            )
        buffer = BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
