"""A picture of a slide with its predicted tiles in colour, and what the colours mean."""

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tiaft_plugin.engine.predictions import Colour, TileBlock, TilePredictions, checked_blocks
from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.files import write_atomically

LONGEST_SIDE = 1600  # of the slide in the picture, in pixels
MOST_OPAQUE = 0.65  # the opacity of a tile of probability 1: the tissue stays visible
OUTLINED_FROM = 12  # outlines only around tiles of so many pixels: smaller ones would be all line
MOST_PIXELS_READ = 2**26  # at a time: a slide without a pyramid is read in bands
MOST_CLASSES = 30  # in the legend
MARGIN, LINE = 28, 30  # between the parts of the picture, and from line to line of the legend
INK, PALE, PAPER = (34, 34, 34), (120, 120, 120), (255, 255, 255)


def write_picture(predictions: TilePredictions, path: Path) -> None:
    """Write a PNG: the slide's thumbnail under half-transparent tiles, title and legend beside it.

    A tile has the colour of its most probable class, the stronger the more probable, and none where
    it is unclassified; where tiles overlap, their mean. Memory does not grow with the tiles.
    """
    thumbnail = read_thumbnail(predictions.slide, LONGEST_SIDE)
    layer = _TileLayer(predictions, thumbnail.shape[1], thumbnail.shape[0])
    for block in checked_blocks(predictions):
        layer.add(block)
    picture = _page(layer.over(thumbnail), predictions, layer.counts)
    with write_atomically(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def read_thumbnail(slide: Path, longest_side: int) -> np.ndarray:
    """Read a whole slide as uint8 (H, W, 3), its longest side at most `longest_side` pixels.

    Works without a resolution in the file. Raises TiaftError where the slide cannot be read.
    """
    from tiatoolbox.wsicore.wsireader import WSIReader

    try:
        reader = WSIReader.open(slide)
        width, height = reader.info.slide_dimensions
        fraction = min(1.0, longest_side / max(width, height))
        size = max(1, round(width * fraction)), max(1, round(height * fraction))
        bands = [
            _read_band(reader, fraction, (size[0], bottom - top), top, bottom)
            for top, bottom in _bands(reader.info, fraction, size[1])
        ]
    except Exception as error:  # every reader fails in its own way
        raise TiaftError(f"{slide} cannot be read for a picture: {first_line(error)}") from error
    return np.concatenate(bands)


def _bands(info: Any, fraction: float, height: int) -> list[tuple[int, int]]:
    """Cut `height` rows into bands, for each of which few pixels are read from the slide."""
    finer = [down for down in info.level_downsamples if down * fraction <= 1.001]
    pixels = np.prod(np.divide(info.slide_dimensions, max(finer, default=1.0)))
    count = min(height, int(np.ceil(pixels / MOST_PIXELS_READ)))
    edges = np.linspace(0, height, count + 1).round().astype(int).tolist()
    return list(pairwise(edges))


def _read_band(
    reader: Any, fraction: float, size: tuple[int, int], top: int, bottom: int
) -> np.ndarray:
    width, height = reader.info.slide_dimensions
    bounds = (0, int(top / fraction), width, min(height, int(np.ceil(bottom / fraction))))
    pixels = reader.read_bounds(bounds, resolution=fraction, units="baseline")[..., :3]
    if pixels.shape[1::-1] != size:  # the reader rounds as it likes
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return pixels.astype(np.uint8)


class _TileLayer:
    """What is drawn over a thumbnail of `width` × `height` pixels, summed up tile by tile."""

    def __init__(self, predictions: TilePredictions, width: int, height: int):
        self.classified = len(predictions.classes)
        classes = range(self.classified + predictions.multilabel)
        self.colours = np.array([predictions.colour(label) for label in classes], dtype=np.float64)
        self.counts = np.zeros(len(classes), dtype=int)
        self.scale = np.array([width, height] * 2) / np.array(predictions.slide_size * 2)
        self.limits = np.array([width, height])
        # Differences along both axes of opacity × colour (3), opacity, and number of tiles.
        self.edges = np.zeros((height + 1, width + 1, 5))
        self.lines = Image.new("RGBA", (width, height))

    def add(self, block: TileBlock) -> None:
        """Draw the tiles of a block."""
        labels = block.labels
        self.counts += np.bincount(labels, minlength=len(self.counts))
        corners = np.rint(block.bounds * self.scale).astype(int)
        start = corners[:, :2].clip(0, self.limits - 1)
        end = corners[:, 2:].clip(start + 1, self.limits)  # a tile is never less than a pixel
        opacity = MOST_OPAQUE * block.probabilities.max(axis=1, keepdims=True)
        opacity[labels == self.classified] = 0
        paint = np.hstack([self.colours[labels] * opacity, opacity, np.ones_like(opacity)])
        for x, y, sign in ((start, start, 1), (end, end, 1), (start, end, -1), (end, start, -1)):
            np.add.at(self.edges, (y[:, 1], x[:, 0]), sign * paint)
        large = ((end - start).min(axis=1) >= OUTLINED_FROM) & (labels < self.classified)
        self._outline(start[large], end[large], labels[large])

    def _outline(self, start: np.ndarray, end: np.ndarray, labels: np.ndarray) -> None:
        pen = ImageDraw.Draw(self.lines)
        for first, last, label in zip(start.tolist(), (end - 1).tolist(), labels, strict=True):
            colour = tuple(int(value * 0.75) for value in self.colours[label])
            pen.rectangle([*first, *last], outline=(*colour, 170))

    def over(self, thumbnail: np.ndarray) -> Image.Image:
        """Return the thumbnail, uint8 (H, W, 3), under the tiles."""
        sums = self.edges[:-1, :-1]
        for axis in (0, 1):
            np.cumsum(sums, axis=axis, out=sums)
        tiles = np.maximum(sums[..., 4:].round(), 1)
        paint, opacity = sums[..., :3] / tiles, sums[..., 3:4] / tiles
        mixed = thumbnail * (1 - opacity) + paint
        picture = Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))
        if tiles.max() > 1:  # outlines of overlapping tiles would show tiles that there are not
            return picture
        return Image.alpha_composite(picture.convert("RGBA"), self.lines).convert("RGB")


def _page(slide: Image.Image, predictions: TilePredictions, counts: np.ndarray) -> Image.Image:
    """Put the title above the slide and the legend to its right, where neither hides tissue."""
    legend = _legend(predictions, counts)
    top = MARGIN + 74
    width = slide.width + legend.width + 3 * MARGIN
    page = Image.new("RGB", (width, top + max(slide.height, legend.height) + MARGIN), PAPER)
    pen = ImageDraw.Draw(page)
    title = _shortened(predictions.slide.name, _font(26, bold=True), width - 2 * MARGIN)
    pen.text((MARGIN, MARGIN - 6), title, fill=INK, font=_font(26, bold=True))
    tiles = "1 tile" if predictions.count == 1 else f"{predictions.count:,} tiles"
    below = _shortened(f"{predictions.model} · {tiles}", _font(18), width - 2 * MARGIN)
    pen.text((MARGIN, MARGIN + 30), below, fill=PALE, font=_font(18))
    page.paste(slide, (MARGIN, top))
    pen.rectangle(
        [MARGIN - 1, top - 1, MARGIN + slide.width, top + slide.height], outline=(205, 205, 205)
    )
    page.paste(legend, (slide.width + 2 * MARGIN, top))
    return page


def _legend(predictions: TilePredictions, counts: np.ndarray) -> Image.Image:
    """Draw a line for each class, the most frequent first: colour, name, tiles and their share."""
    order = np.argsort(-counts, kind="stable")
    shown, font = order[:MOST_CLASSES].tolist(), _font(18)
    names = [_shortened(predictions.class_of(label), font, 260) for label in shown]
    numbers = [f"{counts[label]:,}" for label in shown]
    shares = [f"{counts[label] / max(1, counts.sum()):.1%}" for label in shown]
    name_end = 44 + max(_width(name, font) for name in names)
    number_end = name_end + 24 + max(_width(number, font) for number in numbers)
    share_end = number_end + 18 + max(_width(share, font) for share in shares)
    notes = ["stronger: more probable"]
    if len(order) > MOST_CLASSES:
        notes.insert(0, f"and {len(order) - MOST_CLASSES} rarer classes")
    width = max(share_end, *(_width(note, _font(15)) for note in notes)) + 2
    legend = Image.new("RGB", (width, LINE * (len(shown) + len(notes)) + 8), PAPER)
    pen = ImageDraw.Draw(legend)
    for line, label in enumerate(shown):
        y, ink = line * LINE, INK if counts[label] else PALE
        _swatch(pen, y + 3, predictions.colour(label))
        pen.text((44, y), names[line], fill=ink, font=font)
        pen.text((number_end, y), numbers[line], fill=ink, font=font, anchor="ra")
        pen.text((share_end, y), shares[line], fill=PALE, font=font, anchor="ra")
    for line, note in enumerate(notes, start=len(shown)):
        pen.text((0, line * LINE + 8), note, fill=PALE, font=_font(15))
    return legend


def _swatch(pen: ImageDraw.ImageDraw, y: int, colour: Colour) -> None:
    """Draw a class's colour as it fades with its probability, from 0 to 1."""
    for x in range(32):
        opacity = MOST_OPAQUE * (x + 1) / 32
        shade = tuple(round(255 * (1 - opacity) + value * opacity) for value in colour)
        pen.line([x, y, x, y + 17], fill=shade)
    pen.rectangle([0, y, 32, y + 17], outline=colour)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # carries DejaVu, which knows most scripts: every machine draws the same

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf" / name, size)


def _width(text: str, font: ImageFont.FreeTypeFont) -> int:
    return int(np.ceil(font.getlength(text)))


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return `text` on one line, its end cut where it is wider than `width` pixels."""
    text = " ".join(text.split()).encode("utf-8", "replace").decode()
    if _width(text, font) <= width:
        return text
    while text and _width(text + "…", font) > width:
        text = text[:-1]
    return text + "…"
