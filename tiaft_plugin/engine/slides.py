"""Slides: opened with a reason where they cannot be, fingerprinted, and searched for tissue."""

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiaft_plugin.errors import TiaftError, first_line

if TYPE_CHECKING:
    from tiatoolbox.wsicore import WSIReader

_BLOCK = 1 << 16  # bytes
_BLOCKS = 64
_LEAST_CONTRAST = 10  # grey levels (of 255) between tissue and glass; noise on glass makes about 3
_THUMBNAIL_MPP = 8.0  # µm/px, TIAToolbox's 1.25× for tissue masks


def open_slide(path: Path, mpp: float | None = None) -> "WSIReader":
    """Open a slide with TIAToolbox. `mpp` (µm/px at baseline) serves where the file has none.

    Raises TiaftError, with the remedy, for what cannot be opened or has no resolution.
    """
    from tiatoolbox.wsicore.wsireader import WSIReader

    if not path.exists():
        raise TiaftError("no such file")
    if not path.suffix and path.is_file():
        raise TiaftError("has no suffix, such as .svs, to know its format by")
    try:
        reader = WSIReader.open(path)
        known = reader.info.mpp is not None and None not in tuple(reader.info.mpp)
        if not known and mpp is not None:
            reader = WSIReader.open(path, mpp=(mpp, mpp))
    except TiaftError:
        raise
    except Exception as error:  # each slide library raises its own
        if path.is_dir():
            raise TiaftError("is a folder, not a slide: name the slides in it") from error
        if path.stat().st_size == 0:
            raise TiaftError("is empty") from error
        raise TiaftError(f"cannot be opened as a slide ({first_line(error)})") from error
    if known and mpp is not None and abs(reader.info.mpp[0] - mpp) > 0.02 * mpp:
        logging.getLogger(__name__).warning(
            "%s says %.4g µm/px itself: --mpp is for files that say nothing",
            path,
            reader.info.mpp[0],
        )
    if not known and mpp is None:
        raise TiaftError("has no resolution (µm/px) in the file: pass it with --mpp")
    return reader


def fingerprint(path: Path) -> str:
    """Return a SHA-256 of a slide's size and of 64 blocks of 64 KiB spread evenly over it.

    Whole slides of several GB would take longer to read than to tell apart. A folder (DICOM,
    MRXS, NGFF) is fingerprinted by all its files.
    """
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    companion = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and companion.is_dir():
        files += sorted(p for p in companion.rglob("*") if p.is_file())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if len(files) > 1 else ''}:{size}:".encode())
        with file.open("rb") as stream:
            for start in _block_starts(size):
                stream.seek(start)
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


def slide_mpp(reader: "WSIReader") -> tuple[float, float]:
    """Return µm/px at baseline, x and y."""
    x, y = reader.info.mpp
    return float(x), float(y)


def slide_bounds(reader: "WSIReader") -> tuple[int, int, int, int] | None:
    """Return what OpenSlide says is scanned: x, y, width, height in baseline pixels, or None.

    QuPath shows that part alone, TIAToolbox the whole plane.
    """
    properties = getattr(getattr(reader, "openslide_wsi", None), "properties", {})
    names = ("bounds-x", "bounds-y", "bounds-width", "bounds-height")
    try:
        x, y, width, height = (int(properties[f"openslide.{name}"]) for name in names)
    except (KeyError, ValueError):
        return None
    return x, y, width, height


def has_tissue(reader: "WSIReader") -> bool:
    """Whether a slide shows more than glass: Otsu's threshold must part what really differs.

    Otsu finds a threshold in noise, too, so that an empty slide would be all "tissue".
    """
    import cv2
    from skimage.filters import threshold_otsu

    thumbnail = reader.slide_thumbnail(resolution=_THUMBNAIL_MPP, units="mpp")
    grey = cv2.cvtColor(thumbnail[..., :3], cv2.COLOR_RGB2GRAY)
    if min(grey.shape) > 4:
        grey = grey[1:-1, 1:-1]  # TIAToolbox's TIFF thumbnails have a dark rim
    threshold = threshold_otsu(grey)
    dark, light = grey[grey < threshold], grey[grey >= threshold]
    return dark.size > 0 and light.mean() - dark.mean() >= _LEAST_CONTRAST


def tissue_fractions(mask: np.ndarray, coordinates: np.ndarray, shape: Any) -> np.ndarray:
    """Return the tissue fraction (N,) float32 of tiles `coordinates` (N, 4) in a slide of `shape`.

    `mask` is (h, w), `shape` (width, height) at the coordinates' resolution. Tiles are mapped to
    mask pixels as TIAToolbox's PatchExtractor.filter_coordinates does it.
    """
    height, width = mask.shape[:2]
    scale = np.tile(np.array([width, height]) / np.array(shape), 2)
    corners = np.clip(coordinates * scale.astype(np.float32), 0, [width, height] * 2).astype(int)
    x0, y0, x1, y1 = corners.T
    sums = np.zeros((height + 1, width + 1), dtype=np.int64)
    sums[1:, 1:] = (mask.reshape(height, width, -1)[..., 0] > 0).cumsum(0).cumsum(1)
    inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    area = np.maximum((x1 - x0) * (y1 - y0), 1)
    return (inside / area).astype(np.float32)


def _block_starts(size: int) -> list[int]:
    if size <= _BLOCK * _BLOCKS:
        return list(range(0, size, _BLOCK))
    return [round(i * (size - _BLOCK) / (_BLOCKS - 1)) for i in range(_BLOCKS)]
