"""Counting what a network gets right, on its device."""

from time import perf_counter

import torch

from tiaft_plugin.finetune.evaluation import Evaluation


class Tally:
    """Predictions counted over an epoch; `seconds` runs from its making to the last batch."""

    def __init__(self, classes: tuple[str, ...], device: torch.device):
        self.classes = classes
        # Kept on the device: reading each batch's loss would make a GPU wait for it.
        self.confusion = torch.zeros(len(classes) ** 2, dtype=torch.int64, device=device)
        self.loss_sum = torch.zeros((), device=device)
        self.seen = 0
        self.started, self.seconds = perf_counter(), 0.0

    def add(self, logits: torch.Tensor, targets: torch.Tensor, loss: torch.Tensor) -> None:
        """Count a batch: logits (N, C), targets (N,) int64, and their mean loss."""
        cells = targets * len(self.classes) + logits.detach().argmax(1)
        self.confusion += torch.bincount(cells, minlength=len(self.confusion))
        self.loss_sum += loss.detach() * len(targets)
        self.seen += len(targets)
        self.seconds = perf_counter() - self.started

    def evaluation(self) -> Evaluation:
        """Return what was counted."""
        side = len(self.classes)
        confusion = self.confusion.view(side, side).cpu().numpy()
        return Evaluation(self.classes, confusion, float(self.loss_sum) / self.seen)
