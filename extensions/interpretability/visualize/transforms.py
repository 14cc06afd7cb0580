"""Small random changes that a picture has to withstand while it is made.

Each takes images (N, 3, H, W) in 0…1 and a random generator, and changes all alike.
"""

from collections.abc import Callable, Sequence
from random import Random

import torch
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

Transform = Callable[[torch.Tensor, Random], torch.Tensor]
GREY = 0.5


def pad(width: int) -> Transform:
    """Return a transform that puts `width` px of grey around the images."""
    return lambda images, random: F.pad(images, [width] * 4, value=GREY)


def jitter(most: int) -> Transform:
    """Return a transform that shifts the images, and cuts off `most` px of both sides."""

    def change(images: torch.Tensor, random: Random) -> torch.Tensor:
        down, right = random.randint(0, most), random.randint(0, most)
        height, width = images.shape[2] - most, images.shape[3] - most
        return images[:, :, down : down + height, right : right + width]

    return change


def scale(factors: Sequence[float]) -> Transform:
    """Return a transform that resizes the images by one of `factors`."""

    def change(images: torch.Tensor, random: Random) -> torch.Tensor:
        factor = random.choice(factors)
        size = [max(1, int(side * factor)) for side in images.shape[2:]]
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False)

    return change


def turn(degrees: Sequence[float]) -> Transform:
    """Return a transform that rotates the images by one of `degrees`; corners become grey."""

    def change(images: torch.Tensor, random: Random) -> torch.Tensor:
        angle = random.choice(degrees)
        if not angle:
            return images
        return rotate(images, angle, InterpolationMode.BILINEAR, fill=[GREY])

    return change


_FACTORS = [1 + step / 50 for step in range(-5, 6)]  # 0.90 to 1.10
_DEGREES = [*range(-10, 11), *[0] * 5]
# Lucid's standard transforms, and the lighter ones of the second stage (paper 2's repository).
STANDARD: tuple[Transform, ...] = (
    pad(12), jitter(8), scale(_FACTORS), turn(_DEGREES), jitter(4),
)  # fmt: skip
LIGHT: tuple[Transform, ...] = (jitter(8), turn(_DEGREES), jitter(2))
