"""The losses: categorical cross-entropy (paper 1, section 3.2), or one label beside another."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F


def losses_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return each tile's loss in nats, (N,), of logits (N, C).

    `targets` are class indices (N,), or 0 and 1 for each label, (N, C): then it is the mean of the
    labels' binary cross-entropies.
    """
    if targets.ndim == 1:
        return F.cross_entropy(logits, targets, reduction="none")
    each = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    return each.mean(dim=1)


def weights_of(targets: torch.Tensor, class_weights: torch.Tensor) -> torch.Tensor:
    """Return what each tile's loss is multiplied with, (N,): the weight of its class.

    A tile with several labels has the mean of theirs, one without any 1.
    """
    if targets.ndim == 1:
        return class_weights[targets]
    labels = targets.sum(dim=1)
    mean = (targets * class_weights).sum(dim=1) / labels.clamp(min=1)
    return torch.where(labels > 0, mean, torch.ones_like(mean))


def class_weights(counts: Mapping[str, int]) -> np.ndarray:
    """Return a weight for each class, (C,) float64, that makes every class count the same.

    They are inverse to the number of tiles, and 1 in the mean over tiles (scikit-learn's
    "balanced"). A batch's weighted losses are divided by its tiles, as in Keras, not by their
    weights, as in torch.
    """
    numbers = np.array(list(counts.values()), dtype=np.float64)
    return numbers.sum() / (len(numbers) * np.maximum(numbers, 1))
