"""Which models' preprocessing can be done on the device, of whole batches of uint8 tiles."""

from collections.abc import Callable
from typing import Any

import torch
from tiatoolbox.models.architecture import idars
from tiatoolbox.models.dataset.classification import _TorchPreprocCaller
from tiatoolbox.models.models_abc import ModelABC
from torchvision import transforms

OnDevice = Callable[[torch.Tensor], torch.Tensor]


def on_device(preprocess: Any) -> OnDevice | None:
    """Return a function of uint8 tiles (N, H, W, 3) that gives what `preprocess` does of each.

    The same to the bit. None where `preprocess` is not known: then it has to be called, tile by
    tile, where tiles are read. Known are

    - none at all (`ModelABC.preproc`): tiaft's models, TIAToolbox's backbones;
    - `ToTensor`, with or without `Normalize`, as TIAToolbox wraps it for its ``*-kather100k`` and
      ``*-pcam`` models;
    - that of its IDaRS models.
    """
    if preprocess is None or preprocess is ModelABC.preproc:
        return _as_it_is
    if preprocess is idars.IDaRS.preproc:
        return _of_steps(idars.TRANSFORM.transforms)
    if type(preprocess) is _TorchPreprocCaller and type(preprocess.func) is transforms.Compose:
        return _of_steps(preprocess.func.transforms)
    return None


def _as_it_is(tiles: torch.Tensor) -> torch.Tensor:
    return tiles


def _of_steps(steps: list[Any]) -> OnDevice | None:
    kinds = [type(step) for step in steps]
    if kinds == [transforms.ToTensor]:
        return _scaled
    if kinds != [transforms.ToTensor, transforms.Normalize]:
        return None
    mean, std = (torch.as_tensor(values) for values in (steps[1].mean, steps[1].std))

    def normalised(tiles: torch.Tensor) -> torch.Tensor:
        pixels = _scaled(tiles)
        return (pixels - mean.to(pixels)) / std.to(pixels)

    return normalised


def _scaled(tiles: torch.Tensor) -> torch.Tensor:
    # By a tensor there: of a number, a GPU would take the reciprocal, and lose the last bit.
    return tiles.to(torch.float32) / torch.tensor(255.0, device=tiles.device)
