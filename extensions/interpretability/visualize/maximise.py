"""Activation maximisation: pictures that make channels of a layer respond as strongly as can be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from tiaft_extensions.interpretability.subject import Subject, device_of, layers_of
from tiaft_extensions.interpretability.subject import layer as find_layer
from tiaft_extensions.interpretability.visualize.fourier import FourierImages, noise
from tiaft_extensions.interpretability.visualize.response import Response
from tiaft_extensions.interpretability.visualize.transforms import LIGHT, STANDARD, Transform
from tiaft_plugin.errors import TiaftError, reason

SIZE = 128  # px, of the paper's pictures
LOOKS = 40  # times that the response is measured on the way
AT_ONCE = 16  # pictures that are made together
_CUT_OFF = 10  # px that the light transforms take off a side


@dataclass(frozen=True)
class Stage:
    """A part of the work: Adam's steps and learning rate, what pictures have to withstand, and
    how much their total variation counts.
    """  # fmt: skip

    steps: int
    learning_rate: float
    transforms: tuple[Transform, ...]
    total_variation: float = 0.0


# Paper 2's repository: 3,584 steps, as in its section 2 ("up to 3,584 steps to converge").
STAGES = (
    Stage(512, 0.1, STANDARD),
    Stage(1024, 0.1, LIGHT, 0.025),
    Stage(2048, 0.01, STANDARD, 0.0025),
)


@dataclass(frozen=True)
class Pictures:
    """What channels respond to.

    `images` are uint8 (K, size, size, 3), one for each of `channels`. `steps` (L,) are those at
    which the response to each picture was measured, and `responses` (K, L) is what it was: the
    mean of the channel's map.
    """

    layer: str
    channels: tuple[int, ...]
    images: np.ndarray
    steps: np.ndarray
    responses: np.ndarray


def visualize(
    subject: Subject,
    layer: str,
    channels: Sequence[int],
    *,
    size: int = SIZE,
    stages: Sequence[Stage] = STAGES,
    steps_scale: float = 1.0,
    seed: int = 0,
    moved: Callable[[int], object] = lambda steps: None,
) -> Pictures:
    """Make a picture of `size`×`size` px for each channel of a layer.

    Each begins with the same noise (`seed`), so that pictures differ only by what their channels
    respond to, and is made by Adam, stage after stage, to heighten the mean of the channel's map
    (paper 2, section 2). `steps_scale` multiplies all numbers of steps. `moved` is called with
    steps × pictures done. Raises TiaftError for an unknown layer or channel.
    """
    response = check(subject, layer, channels, size)
    stages = scaled(stages, steps_scale)
    parts = [
        _together(response, channels[start : start + AT_ONCE], size, stages, seed, moved)
        for start in range(0, len(channels), AT_ONCE)
    ]
    images, steps, responses = zip(*parts, strict=True)
    return Pictures(
        layer, tuple(channels), np.concatenate(images), steps[0], np.concatenate(responses)
    )


def scaled(stages: Sequence[Stage], factor: float) -> tuple[Stage, ...]:
    """Return stages with `factor` times as many steps, at least one each."""
    return tuple(
        Stage(max(1, round(s.steps * factor)), s.learning_rate, s.transforms, s.total_variation)
        for s in stages
    )


def responses_to(
    subject: Subject, layer: str, channels: Sequence[int], images: np.ndarray
) -> np.ndarray:
    """Return how strongly channels respond to pictures, uint8 (K, H, W, 3), one each: (K,)."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return _measured(Response(subject, layer), pixels.to(device_of(subject)), channels)


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Return how much each of the images (N, 3, H, W) changes from pixel to pixel, (N,)."""
    down, right = images.diff(dim=2).abs(), images.diff(dim=3).abs()
    return down.sum(dim=(1, 2, 3)) + right.sum(dim=(1, 2, 3))


def _together(
    response: Response,
    channels: Sequence[int],
    size: int,
    stages: Sequence[Stage],
    seed: int,
    moved: Callable[[int], object],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pictures, the steps at which responses were measured, and the responses."""
    start = noise(size, seed).expand(len(channels), -1, -1, -1)
    pictures = FourierImages(start.to(device_of(response.subject)))
    random = Random(seed)
    total = sum(stage.steps for stage in stages)
    looks = set(np.linspace(0, total, LOOKS + 1).round().astype(int).tolist())
    steps, measured, done = [0], [_measured(response, pictures(), channels)], 0
    for stage in stages:
        adam = torch.optim.Adam(pictures.parameters(), lr=stage.learning_rate)
        for _ in range(stage.steps):
            adam.zero_grad()
            images = pictures()
            changed = images
            for transform in stage.transforms:
                changed = transform(changed, random)
            loss = -_of(response(changed), channels).sum()
            if stage.total_variation:
                loss = loss + stage.total_variation * total_variation(images).sum()
            loss.backward()
            adam.step()
            done += 1
            moved(len(channels))
            if done in looks:
                steps.append(done)
                measured.append(_measured(response, pictures(), channels))
    with torch.no_grad():
        pixels = (pictures() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels, np.array(steps), np.stack(measured, axis=1)


def _of(maps: torch.Tensor, channels: Sequence[int]) -> torch.Tensor:
    """Return the mean of each picture's own channel, (N,)."""
    return maps[torch.arange(len(channels)), list(channels)].mean(dim=(1, 2))


def _measured(response: Response, images: torch.Tensor, channels: Sequence[int]) -> np.ndarray:
    with torch.no_grad():
        return _of(response(images), channels).cpu().numpy()


def check(subject: Subject, layer: str, channels: Sequence[int], size: int = SIZE) -> Response:
    """Return the layer's response.

    Raises TiaftError where a layer is unknown or lacks one of `channels`, where none is named, and
    where pictures of `size` px are too small for it.
    """
    width = width_of(subject, layer)
    wrong = [channel for channel in channels if not 0 <= channel < width]
    if wrong:
        raise TiaftError(
            f"{subject.name}: {layer} has no channel {', '.join(map(str, wrong))}: it has {width}, "
            f"0 to {width - 1}"
        )
    if not channels:
        raise TiaftError(f"no channel of {layer} is named: it has 0 to {width - 1}")
    response = Response(subject, layer)
    smallest = torch.full((1, 3, *[size - _CUT_OFF] * 2), 0.5, device=device_of(subject))
    try:
        _measured(response, smallest, channels[:1])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise TiaftError(
            f"{subject.name}: {layer} takes no pictures of {size} px ({reason(error)}): pass "
            f"--size {max(subject.tile_size, size + 1)}"
        ) from error
    return response


def width_of(subject: Subject, layer: str) -> int:
    """Return how many channels a layer has. Raises TiaftError for an unknown layer."""
    find_layer(subject, layer)
    return layers_of(subject)[layer.removeprefix("part_a.")]
