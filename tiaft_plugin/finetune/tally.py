"""Counting what a network does, on its device, and over all processes."""

from typing import Any

import numpy as np
import torch

from tiaft_plugin.finetune.evaluation import Evaluation


class Tally:
    """Sums over the training tiles of an epoch: loss, right answers, tiles seen.

    With several labels a tile, the share of labels that are right is counted.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        # Kept on the device: reading each batch's loss would make a GPU wait for it.
        self.sums = torch.zeros(3, dtype=torch.float64, device=_with_float64(device))

    def add(self, logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor) -> None:
        """Count a batch: logits (N, C), targets, and the loss of each tile, (N,)."""
        right = (
            (logits.argmax(1) == targets).double()
            if targets.ndim == 1
            else ((logits >= 0) == (targets > 0)).double().mean(dim=1)
        )
        counted = torch.stack([losses.double().sum(), right.sum(), torch.ones_like(right).sum()])
        self.sums += counted.detach().to(self.sums.device)

    def row(self) -> dict[str, float]:
        """Return mean loss and accuracy."""
        loss, right, seen = self.sums.tolist()
        return {"loss": loss / seen, "accuracy": right / seen}


class Outputs:
    """A network's outputs for all tiles of a set, put where each tile stands in it."""

    def __init__(self, tiles: int, classes: int):
        self.logits = torch.zeros(tiles, classes)
        self.losses = torch.zeros(tiles)

    def add(self, indices: torch.Tensor, logits: torch.Tensor, losses: torch.Tensor) -> None:
        """Note a batch: indices of its tiles (N,), logits (N, C) and losses (N,)."""
        self.logits[indices] = logits.float().cpu()
        self.losses[indices] = losses.float().cpu()

    def evaluation(self, classes: tuple[str, ...], targets: Any) -> Evaluation:
        """Return what a set's tiles, with `targets`, were given."""
        truth = np.array(targets, dtype=np.int64)
        several = truth.ndim == 2
        given = self.logits.sigmoid() if several else self.logits.softmax(dim=1)
        return Evaluation(classes, truth, given.numpy(), self.losses.numpy(), several)


def _with_float64(device: torch.device | str) -> torch.device:
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device
