"""What a network's logits mean: probabilities, and the class that a tile is given."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

LEAST = 0.5  # a label of several is a tile's class from this probability on


def probabilities_of(logits: "torch.Tensor", *, multilabel: bool) -> "torch.Tensor":
    """Return probabilities (N, C) of logits (N, C): softmax, or a sigmoid for each label."""
    return logits.sigmoid() if multilabel else logits.softmax(dim=-1)


def labels_of(probabilities: Any, *, multilabel: bool) -> Any:
    """Return the index of the class (N,) int that each tile of (N, C) probabilities is given.

    It is the most probable one. Of several labels it has to reach 0.5: where none does, it is C,
    one more than any class has, and the tile is unclassified. Takes dask's arrays as numpy's.
    """
    best = np.argmax(probabilities, axis=-1)
    if not multilabel:
        return best
    return np.where(np.max(probabilities, axis=-1) >= LEAST, best, probabilities.shape[-1])
