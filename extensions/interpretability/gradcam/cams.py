"""Grad-CAM++ and Grad-CAM: where in a tile a class gets its evidence from."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from tiaft_extensions.interpretability.pick import class_index
from tiaft_extensions.interpretability.subject import (
    BATCH,
    Subject,
    gradients_at,
    last_layer,
    trunk,
)
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network.outputs import probabilities_of

# Own code, as pytorch-grad-cam adds 1e-6 to the denominator of α: where a gradient is 1e-3, its
# weight becomes two thirds of the formula's, and at 1e-4 a fiftieth.


@dataclass(frozen=True)
class Maps:
    """Maps of N tiles for one class: `plus` by Grad-CAM++, `plain` by Grad-CAM.

    Each is (N, h, w) float32 at the layer's resolution, 0 or more, not normalised, so that tiles
    can be compared. `probability` (N,) is what the model gives the class.
    """

    plus: np.ndarray
    plain: np.ndarray
    probability: np.ndarray


def weights_plus(maps: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """Return Grad-CAM++'s weights (N, K) of maps A and slopes g = ∂score/∂A, (N, K, h, w).

    w = Σ α·ReLU(g) with α = g² / (2g² + g³·ΣA), 0 where the denominator is 0 (arXiv 1710.11063,
    eq. 19).
    """
    maps, slopes = maps.double(), slopes.double()  # the cube of a small gradient
    total = maps.sum(dim=(2, 3), keepdim=True)
    below = 2 * slopes**2 + slopes**3 * total
    alpha = torch.where(below == 0, 0.0, slopes**2 / torch.where(below == 0, 1.0, below))
    return (alpha * slopes.relu()).sum(dim=(2, 3))


def weights_plain(maps: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """Return Grad-CAM's weights (N, K): the mean gradient of each channel (arXiv 1610.02391)."""
    return slopes.double().mean(dim=(2, 3))


def combine(maps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return ReLU(Σ w_k A^k), (N, h, w) float32, of maps (N, K, h, w) and weights (N, K)."""
    return torch.einsum("nkhw,nk->nhw", maps.double(), weights).relu().float()


def cams(subject: Subject, tiles: np.ndarray, cls: str, layer: str | None = None) -> Maps:
    """Return the maps of uint8 tiles (N, H, W, 3) for the logit of a class.

    `layer` is by default the last one that gives a map (paper 2, section 2: "the last layer
    activations"). Raises TiaftError for an unknown class or layer, and without gradients.
    """
    column, layer = class_index(subject, cls), layer or usual_layer(subject)
    seen: list[torch.Tensor] = []
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []

    def logit(logits: torch.Tensor) -> torch.Tensor:
        seen.append(probabilities_of(logits.detach(), multilabel=subject.multilabel)[:, column])
        return logits[:, column]

    for start in range(0, len(tiles), BATCH):
        maps, slopes = gradients_at(subject, tiles[start : start + BATCH], layer, logit)
        parts.append(
            (
                combine(maps, weights_plus(maps, slopes)).cpu(),
                combine(maps, weights_plain(maps, slopes)).cpu(),
            )
        )
    plus, plain = (torch.cat(found).numpy() for found in zip(*parts, strict=True))
    return Maps(plus, plain, torch.cat(seen).float().cpu().numpy())


def usual_layer(subject: Subject) -> str:
    """Return the last layer that gives a map. Raises TiaftError for transformers, whose is early.

    Their blocks give rows of tokens, not maps.
    """
    if hasattr(trunk(subject), "num_prefix_tokens"):  # timm's
        raise TiaftError(
            f"{subject.name} is a vision transformer, whose blocks give no maps: Grad-CAM needs a "
            "convolutional network"
        )
    return last_layer(subject)


def weighted(maps: Maps) -> np.ndarray:
    """Return Grad-CAM++'s maps (N, h, w) times each tile's probability: to compare tiles by.

    A map of a logit is there whether the tile is of the class or not. Grad-CAM++ was derived for
    exp(logit), whose gradients are larger where the class is likelier; the probability is that,
    divided by what the softmax divides by.
    """
    return maps.plus * maps.probability[:, None, None]


def enlarged(maps: np.ndarray, size: int) -> np.ndarray:
    """Return maps (N, h, w) as (N, size, size), bilinear, each divided by its largest value."""
    large = F.interpolate(
        torch.from_numpy(maps)[:, None], (size, size), mode="bilinear", align_corners=False
    )[:, 0].numpy()
    most = large.max(axis=(1, 2), keepdims=True)
    return np.divide(large, most, out=np.zeros_like(large), where=most > 0)
