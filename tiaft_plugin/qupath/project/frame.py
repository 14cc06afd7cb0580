"""How pixels of a slide, as TIAToolbox counts them, and of an image in QuPath go together."""

from dataclasses import dataclass

import numpy as np
import shapely

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.project.project_file import ImageEntry
from tiaft_plugin.qupath.project.server import Box, Size

# (cosine, sine) of QuPath's ROTATE_90 and so on, which turn clockwise as seen on the screen.
_TURNS = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}


@dataclass(frozen=True)
class Frame:
    """QuPath shows what begins at `offset` (x, y) of the slide, turned by `rotation` degrees.

    Sizes are width and height: `slide_size` in baseline pixels, `image_size` in pixels of QuPath.
    A pixel is equally large in both. `rotation` is 0, 90, 180 or 270, clockwise.
    """

    offset: tuple[int, int]
    rotation: int
    slide_size: Size
    image_size: Size

    def to_image(self, bounds: np.ndarray) -> np.ndarray:
        """Return boxes (n, 4) x0, y0, x1, y1 of the slide in pixels of the image, float64."""
        return _boxes(bounds, self._forth())

    def geometry_to_slide(self, geometry: shapely.Geometry) -> shapely.Geometry:
        """Return a shape of the image in baseline pixels of the slide."""
        return _shape(geometry, self._back())

    def _forth(self) -> np.ndarray:
        """The (2, 3) matrix from slide to image."""
        cosine, sine = _TURNS[self.rotation]
        width, height = self.image_size
        # The corner of the slide's part that becomes the image's: turned, it lies at one of four.
        corner = {0: (0, 0), 90: (width, 0), 180: (width, height), 270: (0, height)}
        matrix = np.array([[cosine, -sine], [sine, cosine]], dtype=np.float64)
        shift = np.array(corner[self.rotation]) - matrix @ self.offset
        return np.column_stack([matrix, shift])

    def _back(self) -> np.ndarray:
        matrix, shift = np.hsplit(self._forth(), [2])
        return np.column_stack([matrix.T, -matrix.T @ shift])


def frame_of(entry: ImageEntry, slide_size: Size, slide_bounds: Box | None = None) -> Frame:
    """Return how a slide of `slide_size` (baseline pixels) lies in an image of a project.

    OpenSlide knows of some slides, MRXS mostly, which part was scanned (`slide_bounds`: x, y,
    width, height in baseline pixels); QuPath shows only that, TIAToolbox the whole. Raises
    TiaftError where sizes disagree, and for images that QuPath shows in a way other than cropped
    and turned.
    """
    if entry.odd:
        raise TiaftError(
            f"{entry.name} is transformed in QuPath ({entry.odd}): only cropped images and those "
            "turned by 90, 180 or 270 degrees can be matched with the slide; add the slide itself"
        )
    if entry.size is None or (entry.crop and entry.base_size is None):
        raise TiaftError(
            f"{entry.name}: the project does not say how large the image is: open it once in "
            "QuPath and save the project"
        )
    shown = entry.crop[2:] if entry.crop else _turned(entry.size, entry.rotation)
    base = entry.base_size if entry.crop and entry.base_size else shown
    offset = _offset(base, entry.args, slide_size, slide_bounds)
    if offset is None or _turned(shown, entry.rotation) != entry.size:
        raise TiaftError(
            f"{entry.name} is {_text(entry.size)} px in QuPath, the slide is "
            f"{_text(slide_size)}: another slide, or another series of it"
        )
    x, y = entry.crop[:2] if entry.crop else (0, 0)
    return Frame((offset[0] + x, offset[1] + y), entry.rotation, slide_size, entry.size)


def fits(entry: ImageEntry, slide_size: Size, slide_bounds: Box | None = None) -> bool:
    """Whether `frame_of` finds a frame."""
    try:
        frame_of(entry, slide_size, slide_bounds)
    except TiaftError:
        return False
    return True


def _offset(
    base: Size, args: tuple[str, ...], slide_size: Size, bounds: Box | None
) -> tuple[int, int] | None:
    """Return where QuPath's image of the file begins on the slide; None if sizes disagree."""
    if bounds is not None and "--no-crop" not in args and base == bounds[2:]:
        return bounds[:2]
    return (0, 0) if base == slide_size else None


def _turned(size: Size, rotation: int) -> Size:
    return (size[1], size[0]) if rotation % 180 else size


def _boxes(bounds: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    corners = np.asarray(bounds, dtype=np.float64).reshape(-1, 2, 2) @ matrix[:, :2].T
    corners += matrix[:, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def _shape(geometry: shapely.Geometry, matrix: np.ndarray) -> shapely.Geometry:
    return shapely.transform(geometry, lambda points: points @ matrix[:, :2].T + matrix[:, 2])


def _text(size: Size) -> str:
    return f"{size[0]} × {size[1]}"
