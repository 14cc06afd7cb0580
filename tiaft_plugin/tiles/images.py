"""Tile images: checked by their headers before long work, read whole when they are needed."""

from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tiaft_plugin.errors import Stopped, TiaftError, first_line
from tiaft_plugin.tiles.threads import in_threads
from tiaft_plugin.tiles.words import some

Header = tuple[tuple[int, int], str]  # width and height in px, and a fault or an empty string


def check_images(files: Sequence[Path], root: Path) -> int:
    """Return the side, in px, of tiles that are all square, of one size, and 8-bit RGB.

    Only headers are read. Raises TiaftError that names those that are not, or cannot be opened.
    """
    headers = list(in_threads(_header, files, "Checking tiles"))
    sizes = Counter(size for size, fault in headers if not fault)
    usual = sizes.most_common(1)[0][0] if sizes else (0, 0)
    faults = [
        f"{_shown(file, root)} ({fault or _size_fault(size, usual)})"
        for file, (size, fault) in zip(files, headers, strict=True)
        if fault or _size_fault(size, usual)
    ]
    if faults:
        raise TiaftError(
            f"{root}: {len(faults)} of {len(files)} tiles cannot be used: {some(faults)}: "
            "repair or remove them"
        )
    return usual[0]


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """Return a tile as uint8 (H, W, 3), resized to `size` px (bicubic, antialiased) where given.

    Raises TiaftError that names a file which cannot be decoded: `check_images` saw its header only.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode != "RGB":
                raise TiaftError(f"{path} is a tile of mode {image.mode}, not RGB")
            if size is not None and image.size != (size, size):
                return np.array(image.resize((size, size), Image.Resampling.BICUBIC))
            return np.array(image)
    except TiaftError:
        raise
    except Exception as error:  # each of Pillow's formats fails in its own way
        raise Stopped(
            f"{path} cannot be decoded ({first_line(error)}): copy it again, or remove it"
        ) from error


def fault_of(content: bytes) -> str:
    """Return why a file's content is no 8-bit RGB image that can be decoded, or an empty text."""
    try:
        with Image.open(BytesIO(content)) as image:
            fault = _mode_fault(image)
            image.load()
            return fault
    except UnidentifiedImageError:  # its text tells an address in memory
        return "not an image that can be read"
    except Exception as error:  # each of Pillow's formats fails in its own way
        return first_line(error)


def _header(path: Path) -> Header:
    try:
        if path.exists() and not path.is_file():
            return (0, 0), "not a file"  # to open a pipe is to wait for ever
        with Image.open(path) as image:
            return image.size, _mode_fault(image)
    except FileNotFoundError:
        return (0, 0), "no such file"
    except Exception:  # each of Pillow's formats fails in its own way
        return (0, 0), "not an image that can be read"


def _mode_fault(image: Image.Image) -> str:
    # Pillow opens 16-bit colour as RGB and drops half of it; only the raw mode tells.
    if "16" in image.mode or ";16" in str(getattr(image, "tile", "")):
        return "16 bits a channel, not 8"
    if image.mode == "RGB":
        return ""
    names = {"1": "black and white", "L": "grey", "LA": "grey", "P": "palette"}
    return f"{names.get(image.mode, image.mode)}, not RGB"


def _size_fault(size: tuple[int, int], usual: tuple[int, int]) -> str:
    if size != usual:
        return f"{size[0]}×{size[1]} px, most are {usual[0]}×{usual[1]}"
    return "" if size[0] == size[1] else f"{size[0]}×{size[1]} px, not square"


def _shown(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
