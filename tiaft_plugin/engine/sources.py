"""Tiles as TIAToolbox would read them, faster: one source for each kind of its readers.

A source does what the reader's ``read_bounds`` does, with TIAToolbox's own functions for padding
and resizing, but takes pixels from pieces that were decoded once. Threads may share one.
"""

import copy
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tifffile
from tiatoolbox.utils.image import crop_and_pad_edges, safe_padded_read, sub_pixel_read
from tiatoolbox.utils.transforms import background_composite, imresize
from tiatoolbox.wsicore import wsireader

from tiaft_plugin.engine.pieces import Mosaic, PieceCache
from tiaft_plugin.engine.places import Places, places_of
from tiaft_plugin.errors import TiaftError

LEAST_CACHE = 64 << 20  # bytes
MOST_CACHE = 1 << 30
_GLASS = 255  # what TIAToolbox's datasets pad with
# Vendors whose pieces lie on whole pixels at the baseline, so that a block and a tile of it are
# painted alike. Others' (MIRAX, Trestle, Ventana) overlap or lie between pixels.
_ON_WHOLE_PIXELS = ("aperio", "dicom", "generic-tiff", "hamamatsu", "leica", "philips")
_WIDEST_BLOCK = 1 << 24  # px


class Source(Protocol):
    """Where tiles come from."""

    how: str  # in words, for a run's summary

    def tiles(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Return tiles, uint8 (H, W, 3), in the order of `rows`."""

    def decoded(self) -> int | None:
        """Return how many compressed pieces were decoded; None where nobody counts."""

    def fetching(self) -> float | None:
        """Return the seconds in which threads waited for the file's bytes; None if not known."""


def open_source(dataset: Any, cache: int | None = None, refused: Sequence[str] = ()) -> Source:
    """Open a dataset's slide anew, as the dataset itself does, for fast reading.

    `cache` is the memory for decoded pieces in bytes; by default what two lines of tiles need.
    `refused` are ways (`how`) not to be used. Raises TiaftError where no way is left.
    """
    reader = _open(dataset)
    places = places_of(reader, dataset)
    kinds: list[tuple[type, Callable[..., Source]]] = [
        (wsireader.OpenSlideWSIReader, SvsSource),
        (wsireader.OpenSlideWSIReader, OpenSlideSource),
        (wsireader.TIFFWSIReader, TiffSource),
        (wsireader.DICOMWSIReader, DicomSource),
        (wsireader.JP2WSIReader, Jp2Source),
    ]
    why = f"no fast way to read with {type(reader).__name__}"
    for kind, make in kinds:
        if type(reader) is not kind:
            continue
        try:
            source = make(reader, places, cache)
        except TiaftError as error:
            why = str(error)
            continue
        if source.how not in refused:
            return source
        why = f"{source.how}: other pixels than TIAToolbox's"
    raise TiaftError(why)


class OneByOne:
    """Tiles as the dataset gives them; each thread opens the slide for itself."""

    def __init__(self, dataset: Any, why: str = ""):
        self.how = f"one by one ({why})" if why else "one by one"
        self._dataset, self._own = dataset, threading.local()

    def tiles(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Return tiles as ``dataset[row]["image"]`` gives them without preprocessing."""
        if not hasattr(self._own, "dataset"):
            self._own.dataset = copy.copy(self._dataset)
            self._own.dataset.reader = None  # an open slide is not to be shared
            self._own.dataset.preproc_func = None
        return [self._own.dataset[row]["image"] for row in rows]

    def decoded(self) -> None:
        """Nobody counts."""

    def fetching(self) -> None:
        """TIAToolbox's readers read and decode in one call."""


class OpenSlideSource:
    """OpenSlide, whose cache of decoded pieces is made large enough; in blocks where it is exact.

    OpenSlide's functions may be called by several threads on one slide.
    """

    def __init__(self, reader: Any, places: Places, cache: int | None):
        import openslide

        self._reader, self._places = reader, places
        self._slide = reader.openslide_wsi
        self._level_size = tuple(reader.info.level_dimensions[places.level])
        properties = self._slide.properties
        names = (f"openslide.level[{places.level}].tile-{side}" for side in ("width", "height"))
        piece = [int(properties.get(name, 256)) for name in names]
        if cache is None:
            cache = cache_for(places, self._level_size, (piece[1], piece[0]), channels=4)
        if hasattr(openslide, "OpenSlideCache"):
            self._slide.set_cache(openslide.OpenSlideCache(cache))
        vendor = properties.get("openslide.vendor", "")
        self._blocks = places.level == 0 and vendor in _ON_WHOLE_PIXELS
        self.how = "OpenSlide, in blocks" if self._blocks else "OpenSlide"

    def tiles(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Return tiles, uint8 (H, W, 3)."""
        if not self._blocks:
            return [self._finished(self._read(self._places.baseline[row]), row) for row in rows]
        tiles: list[np.ndarray] = []
        for block in blocks_of(self._places.at_level, rows):
            bounds = self._places.at_level[block]
            left, top = bounds[:, :2].min(axis=0)
            pixels = self._read((left, top, *bounds[:, 2:].max(axis=0)))
            for row, (x0, y0, x1, y1) in zip(block, bounds, strict=True):
                tile = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
                tiles.append(self._finished(tile, row))
        return tiles

    def decoded(self) -> int | None:
        """OpenSlide does not count."""
        return None

    def fetching(self) -> float | None:
        """OpenSlide reads and decodes in one call."""
        return None

    def _read(self, bounds: Any) -> np.ndarray:
        """Return RGBA (h, w, 4) from a corner at baseline; at level 0, of what `bounds` hold."""
        width, height = self._places.at_size
        if self._blocks:
            width, height = int(bounds[2] - bounds[0]), int(bounds[3] - bounds[1])
        corner = (int(bounds[0]), int(bounds[1]))
        region = self._slide.read_region(corner, self._places.level, (width, height))
        return np.asarray(region)

    def _finished(self, tile: np.ndarray, row: int) -> np.ndarray:
        if not self._places.inside(row, self._level_size):
            tile = _padded(tile, self._places.at_level[row], self._level_size)
        if self._places.resized:
            tile = imresize(img=np.ascontiguousarray(tile), output_size=self._places.size)
        if self._reader.post_proc is not None:
            tile = self._reader.post_proc(tile)
        if tile.shape[2] == 3 or (tile[..., 3] == 255).all():
            return tile[..., :3]  # opaque: nothing shines through
        return background_composite(image=tile, alpha=False)


class SvsSource(OpenSlideSource):
    """What OpenSlide reads from JPEG tiles of a TIFF file (SVS), decoded without OpenSlide.

    Both decode with libjpeg-turbo; painting takes OpenSlide longer than decoding.
    """

    def __init__(self, reader: Any, places: Places, cache: int | None):
        self._reader, self._places = reader, places
        vendor = reader.openslide_wsi.properties.get("openslide.vendor", "")
        if places.level != 0 or vendor not in ("aperio", "generic-tiff") or reader.post_proc:
            raise TiaftError("no SVS file at its full resolution")
        width, height = self._level_size = tuple(reader.info.level_dimensions[0])
        page = tifffile.TiffFile(reader.input_path).pages[0]
        _refuse_page(page, (height, width, 3))
        if page.compression != tifffile.COMPRESSION.JPEG or not all(page.databytecounts):
            raise TiaftError("not all tiles are JPEG")  # OpenSlide has its way with missing ones
        self._cache, self._level = _mosaic_of(page, places, cache)
        self.how = "JPEG tiles, each once"

    def tiles(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Return tiles, uint8 (H, W, 3)."""
        return [self._tile(row) for row in rows]

    def decoded(self) -> int:
        """Return how many of the file's tiles were decoded."""
        return self._cache.decoded

    def fetching(self) -> float:
        """Return the seconds in which threads waited for the file's bytes."""
        return self._cache.fetching

    def _tile(self, row: int) -> np.ndarray:
        left, top, right, bottom = (max(int(value), 0) for value in self._places.at_level[row])
        tile = self._level[top:bottom, left:right]
        if self._places.resized:  # OpenSlide's have alpha, and OpenCV's last pixels depend on it
            opaque = np.full((*tile.shape[:2], 1), 255, dtype=np.uint8)
            tile = np.concatenate([tile, opaque], axis=2)
        return self._finished(tile, row)


class TiffSource:
    """TIFF and OME-TIFF: pieces are the file's own tiles, decoded by tifffile.

    TIAToolbox's zarr store decodes in one thread for the whole process; here each decodes.
    """

    how = "tifffile, each compressed tile once"

    def __init__(self, reader: Any, places: Places, cache: int | None):
        self._reader, self._places = reader, places
        height, width, channels = reader.level_arrays[places.level].shape
        page = _page_of(reader, (int(height), int(width), int(channels)))
        self._cache, self._level = _mosaic_of(page, places, cache)

    def tiles(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Return tiles, uint8 (H, W, 3)."""
        return [self._tile(row) for row in rows]

    def decoded(self) -> int:
        """Return how many of the file's tiles were decoded."""
        return self._cache.decoded

    def fetching(self) -> float:
        """Return the seconds in which threads waited for the file's bytes."""
        return self._cache.fetching

    def _tile(self, row: int) -> np.ndarray:
        x0, y0, x1, y1 = (int(value) for value in self._places.at_level[row])
        size = (self._level.shape[1], self._level.shape[0])
        if not self._places.resized and self._places.inside(row, size):
            tile = self._level[y0:y1, x0:x1]
        else:
            tile = sub_pixel_read(
                image=self._level,
                bounds=self._places.at_level[row],
                output_size=np.array(self._places.size),
                interpolation="optimize",
                pad_constant_values=_GLASS,
                pad_at_baseline=False,
            )
            tile = imresize(img=tile, output_size=self._places.size)
        return tile if self._reader.post_proc is None else self._reader.post_proc(tile)


class DicomSource:
    """DICOM by wsidicom: pieces are the frames."""

    how = "wsidicom, each frame once"

    def __init__(self, reader: Any, places: Places, cache: int | None):
        self._reader, self._places = reader, places
        level = reader.wsi.levels[places.level]
        self._level_size = (level.size.width, level.size.height)
        piece = (level.tile_size.height, level.tile_size.width)
        if cache is None:
            cache = cache_for(places, self._level_size, piece)
        self._cache, lock = PieceCache(cache), threading.Lock()

        def decode(row: int, column: int) -> np.ndarray:
            top, left = row * piece[0], column * piece[1]
            width, height = self._level_size
            size = (min(piece[1], width - left), min(piece[0], height - top))
            with lock:  # nothing says that wsidicom is safe among threads
                return np.asarray(reader.wsi.read_region((left, top), level.level, size))

        width, height = self._level_size
        self._level = Mosaic((height, width, 3), piece, decode, self._cache)

    def tiles(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Return tiles, uint8 (H, W, 3)."""
        return [self._tile(row) for row in rows]

    def decoded(self) -> int:
        """Return how many frames were decoded."""
        return self._cache.decoded

    def fetching(self) -> None:
        """Wsidicom reads and decodes in one call."""

    def _tile(self, row: int) -> np.ndarray:
        x0, y0, x1, y1 = (max(int(value), 0) for value in self._places.at_level[row])
        tile = self._level[y0:y1, x0:x1]
        if not self._places.inside(row, self._level_size):
            tile = _padded(tile, self._places.at_level[row], self._level_size)
        if self._places.resized:
            tile = imresize(img=tile, output_size=self._places.size)
        return tile if self._reader.post_proc is None else self._reader.post_proc(tile)


class Jp2Source:
    """JPEG 2000 files by glymur, whole or as pieces of 1024 px; at the baseline only.

    TIAToolbox reads coarser levels with a stride from wherever a tile begins.
    """

    how = "glymur, each piece once"
    _PIECE = (1024, 1024)

    def __init__(self, reader: Any, places: Places, cache: int | None):
        if places.level != 0:
            raise TiaftError("no fast way to read coarser levels of JPEG 2000 files")
        self._reader, self._places = reader, places
        image, lock = reader.glymur_jp2, threading.Lock()
        height, width = image.shape[:2]
        if cache is None:
            cache = cache_for(places, (width, height), self._PIECE)
        self._cache = PieceCache(cache)

        def decode(row: int, column: int) -> np.ndarray:
            top, left = row * self._PIECE[0], column * self._PIECE[1]
            bottom, right = top + self._PIECE[0], left + self._PIECE[1]
            with lock:  # glymur notes what it reads in the image itself
                return np.asarray(image[top : min(bottom, height), left : min(right, width)])

        self._level = Mosaic(image.shape, self._PIECE, decode, self._cache)

    def tiles(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Return tiles, uint8 (H, W, 3)."""
        return [self._tile(row) for row in rows]

    def decoded(self) -> int:
        """Return how many pieces were decoded."""
        return self._cache.decoded

    def fetching(self) -> None:
        """Glymur reads and decodes in one call."""

    def _tile(self, row: int) -> np.ndarray:
        tile = safe_padded_read(self._level, self._places.baseline[row], pad_constant_values=_GLASS)
        if self._places.at_size != self._places.size:
            tile = imresize(img=tile, output_size=self._places.size)
        if self._reader.post_proc is not None:
            tile = self._reader.post_proc(tile)
        return background_composite(image=tile, alpha=False)


def cache_for(
    places: Places, level_size: tuple[int, int], piece: tuple[int, int], channels: int = 3
) -> int:
    """Return the bytes of decoded pieces (h, w) that the next line of tiles finds again.

    Tiles come line by line, so that a piece is needed again a whole line later.
    """
    bounds = places.at_level
    width = min(int(bounds[:, 2].max() - bounds[:, 0].min()), level_size[0])
    lines = -(-places.at_size[1] // piece[0]) + 1
    columns = -(-width // piece[1]) + 1
    # Half as much again: several lines are under way at once.
    needed = lines * columns * piece[0] * piece[1] * channels * 3 // 2
    return min(max(needed, LEAST_CACHE), MOST_CACHE)


def blocks_of(bounds: np.ndarray, rows: Sequence[int]) -> list[list[int]]:
    """Cut `rows`, in their order, where tiles `bounds` (N, 4) are no neighbours in one line."""
    blocks: list[list[int]] = []
    for row in rows:
        if blocks and _neighbours(bounds[blocks[-1][0]], bounds[blocks[-1][-1]], bounds[row]):
            blocks[-1].append(row)
        else:
            blocks.append([row])
    return blocks


def _neighbours(first: np.ndarray, last: np.ndarray, tile: np.ndarray) -> bool:
    width, height = tile[2:] - tile[:2]
    in_line = tile[1] == last[1] and tile[3] == last[3]
    near = last[0] <= tile[0] <= last[2] + width // 4
    return bool(in_line and near and (tile[2] - first[0]) * height <= _WIDEST_BLOCK)


def _open(dataset: Any) -> Any:
    """Open a dataset's slide as its ``__getitem__`` does."""
    about = dataset.reader_info
    return wsireader.WSIReader.open(dataset.img_path, mpp=about.mpp, power=about.objective_power)


def _padded(tile: np.ndarray, bounds: np.ndarray, level_size: tuple[int, int]) -> np.ndarray:
    return crop_and_pad_edges(
        bounds=tuple(bounds),
        max_dimensions=level_size,
        region=tile,
        pad_mode="constant",
        pad_constant_values=_GLASS,
    )


def _page_of(reader: Any, shape: tuple[int, int, int]) -> Any:
    """Return the page with the tiles of a level of `shape`. Raises TiaftError if it is not one."""
    levels = reader.tiff.series[reader.series_n].levels
    found = [level for level in levels if tuple(level.shape) == shape]
    if len(found) != 1 or found[0].axes not in ("YXS", "YXC") or len(found[0].pages) != 1:
        raise TiaftError("no fast way to read a TIFF file with this order of pixels")
    _refuse_page(found[0].pages[0], shape)
    return found[0].pages[0]


def _refuse_page(page: Any, shape: tuple[int, int, int]) -> None:
    simple = page.is_tiled and page.planarconfig == 1 and page.imagedepth == 1
    if not simple or tuple(page.shape) != shape or page.dtype != np.uint8:
        raise TiaftError("no fast way to read a TIFF file with this order of pixels")


def _mosaic_of(page: Any, places: Places, cache: int | None) -> tuple[PieceCache, Mosaic]:
    """Return a level (H, W, C) made of the compressed tiles of a page of a TIFF file."""
    height, width, channels = page.shape
    piece = (page.tilelength, page.tilewidth)
    pieces = PieceCache(cache or cache_for(places, (width, height), piece, channels))
    across = -(-width // page.tilewidth)
    # tifffile reads and makes these when first asked for, which threads must not do at once.
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.keyframe.jpegheader}
    _ = page.dataoffsets, page.databytecounts, page.keyframe.decode

    def decode(row: int, column: int) -> np.ndarray:
        return _decode(page, row * across + column, tables, pieces)

    return pieces, Mosaic((height, width, channels), piece, decode, pieces)


def _decode(page: Any, number: int, tables: dict[str, Any], pieces: PieceCache) -> np.ndarray:
    """Return a page's compressed tile, uint8 (h, w, C); `pieces` counts how long it was read."""
    offset, count = page.dataoffsets[number], page.databytecounts[number]
    frame = page.keyframe
    if not offset or not count:
        return np.zeros((frame.tilelength, frame.tilewidth, frame.samplesperpixel), np.uint8)
    handle, started = page.parent.filehandle, time.perf_counter()
    if hasattr(os, "pread"):
        data = os.pread(handle.fileno(), count, offset)
    else:  # Windows: one position a file, for all threads
        with _windows:
            handle.seek(offset)
            data = handle.read(count)
    pieces.fetched(time.perf_counter() - started)
    if len(data) != count:
        raise OSError("the file ends inside a compressed tile")
    return frame.decode(data, number, **tables)[0][0]


_windows = threading.Lock()
