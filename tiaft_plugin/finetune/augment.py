"""Augmentations: tiles changed at random in training, so that what does not matter is not learnt.

Each takes a tile, uint8 (H, W, 3), and a numpy Generator that alone decides what becomes of it; it
returns another array of that shape and dtype. Ranges are relative: 0.1 is a tenth up or down.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.plugins import Owned, call_hook, collect

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
# Natural optical density of a pixel value; of 0, which has none, that of a value just darker than 1
_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)


@dataclass(frozen=True)
class Flips:
    """Mirrors a tile left to right and, unless `horizontal` only, top to bottom, each in half.

    Both: Graziani et al. 2019. Horizontal only: Peng et al. 2021.
    """

    horizontal: bool = False

    def __call__(self, tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the tile, mirrored or not."""
        import cv2

        across = rng.random() < 0.5
        down = not self.horizontal and rng.random() < 0.5
        if not across and not down:
            return tile
        return cv2.flip(tile, -1 if across and down else int(across))


@dataclass(frozen=True)
class Rotations:
    """Turns a tile by quarters; by halves, where it is not square."""

    def __call__(self, tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the tile turned, or as it is."""
        import cv2

        square = tile.shape[0] == tile.shape[1]
        quarters = int(rng.integers(4)) if square else 2 * int(rng.integers(2))
        return cv2.rotate(tile, quarters - 1) if quarters else tile


@dataclass(frozen=True)
class Colour:
    """Jitters brightness, contrast and saturation by factors, hue by a part of a whole turn.

    Factors and order are torchvision's ColorJitter's. Hue turns at constant luma (YIQ), so that
    the whole is one linear map: a haematoxylin blue turned in HSV gets brighter or darker, too.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the tile in other colours."""
        import cv2

        brightness, contrast, saturation = 1 + rng.uniform(-1, 1, 3) * (
            self.brightness,
            self.contrast,
            self.saturation,
        )
        angle = 2 * math.pi * rng.uniform(-self.hue, self.hue)
        chroma = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        in_yiq = np.eye(3)
        in_yiq[1:, 1:] = saturation * chroma
        grey = brightness * float(_LUMA @ cv2.mean(tile)[:3])
        matrix = np.empty((3, 4))
        matrix[:, :3] = brightness * contrast * np.linalg.solve(_YIQ, in_yiq @ _YIQ)
        matrix[:, 3] = (1 - contrast) * grey
        return cv2.transform(tile, matrix)


@dataclass(frozen=True)
class Hed:
    """Jitters how much haematoxylin, eosin and rest (Ruifrok's stains) a tile has.

    Each stain's density c becomes a·c + b, with a from 1 ± `scale` and b from 0 ± `shift` (natural
    optical density), after Tellez et al., whole-slide mitosis detection (IEEE TMI 2018).
    """

    scale: float
    shift: float

    def __call__(self, tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the tile stained otherwise."""
        import cv2
        from skimage.color import hed_from_rgb, rgb_from_hed

        scales = 1 + rng.uniform(-self.scale, self.scale, 3)
        shifts = rng.uniform(-self.shift, self.shift, 3)
        matrix = np.empty((3, 4))
        matrix[:, :3] = (hed_from_rgb * scales @ rgb_from_hed).T
        matrix[:, 3] = shifts @ rgb_from_hed
        density = cv2.transform(cv2.LUT(tile, _DENSITY), matrix)
        pixels = np.exp(-density, out=density)
        pixels *= 256
        pixels -= 0.5  # of the 1 that was added half, to round
        return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)


@dataclass(frozen=True)
class Crop:
    """Enlarges a random part of a tile to the size of the whole (bilinear).

    `scale` is the part's area, `ratio` its width by its height; the defaults and how they are
    drawn are those of torchvision's RandomResizedCrop, which Peng et al. 2021 use.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a part of the tile, enlarged."""
        import cv2

        height, width = tile.shape[:2]
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(*np.log(self.ratio)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                break
        else:
            w, h = width, height
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        part = tile[top : top + h, left : left + w]
        return cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)


# The ranges of colours are in none of the papers: they were chosen by looking at tiles, so that
# colours vary about as much as between laboratories and tissue still looks like tissue.
BUILT_IN: Mapping[str, Augment] = {
    "flips": Flips(),
    "mirror": Flips(horizontal=True),
    "rotations": Rotations(),
    "colour": Colour(brightness=0.15, contrast=0.15, saturation=0.25, hue=0.02),
    "hue": Colour(hue=0.03),
    "brightness": Colour(brightness=0.2),
    "hed": Hed(scale=0.2, shift=0.04),
    "crop": Crop(),
}


@dataclass(frozen=True)
class Steps:
    """Augmentations one after the other. Raises Stopped that says whose failed."""

    steps: tuple[Owned, ...]

    def __call__(self, tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the tile after all steps."""
        for step in self.steps:
            tile = _unspoiled(step, tile, step(tile, rng))
        return tile


def compose(names: Sequence[str]) -> Augment | None:
    """Return augmentations by name, done in that order, or None for no names.

    Raises TiaftError for a name that nobody registered.
    """
    known = collect("register_augmentations") if names else {}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise TiaftError(
            f"no augmentation {', '.join(unknown)}: there is {', '.join(sorted(known))}"
        )
    steps = (known[name] for name in names)
    owned = tuple(Owned(step.thing, step.plugin, f"augmentation {step.name}") for step in steps)
    for step in owned:
        if not callable(step.function):
            raise TiaftError(f"{step} is {step.function!r}, no function")
    return Steps(owned) if owned else None


def augmentation_of(stage: int, tile_size: int, names: Sequence[str]) -> Augment | None:
    """Return what a plug-in chooses for a stage, or else the augmentations of those names."""
    chosen: Any = call_hook("choose_augmentation", stage=stage, tile_size=tile_size)
    if chosen is None:
        return compose(names)
    if not isinstance(chosen, Owned):
        raise TiaftError(f"choose_augmentation gave {chosen!r}, which is no function")
    return Steps((chosen,))


def _unspoiled(step: Owned, tile: np.ndarray, changed: Any) -> np.ndarray:
    shape = getattr(changed, "shape", "")
    dtype = getattr(changed, "dtype", type(changed).__name__)
    if dtype != np.uint8 or shape != tile.shape:
        made = f"{dtype} {shape}".strip()
        raise Stopped(
            f"{step} made {made} of a uint8 tile {tile.shape}: it must keep shape and dtype"
        )
    return np.ascontiguousarray(changed)
