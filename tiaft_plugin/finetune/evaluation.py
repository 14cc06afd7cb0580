"""How well held-out tiles are told apart: a confusion matrix, and what follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """Predictions counted: `confusion` is (C, C) int64, true classes in rows, predicted in columns.

    `loss` is the mean cross-entropy in nats.
    """

    classes: tuple[str, ...]
    confusion: np.ndarray
    loss: float

    @property
    def accuracy(self) -> float:
        """The share of tiles whose class is right, 0 to 1."""
        return float(self.confusion.trace() / self.confusion.sum())

    @property
    def recalls(self) -> dict[str, float]:
        """The share of each class's tiles that are right; classes without tiles are left out."""
        totals = self.confusion.sum(axis=1)
        return {
            name: float(self.confusion[i, i] / totals[i])
            for i, name in enumerate(self.classes)
            if totals[i]
        }

    @property
    def balanced_accuracy(self) -> float:
        """The mean of `recalls`: each class that has tiles counts the same."""
        return float(np.mean(list(self.recalls.values())))

    @property
    def absent(self) -> list[str]:
        """The classes that no tile here has."""
        return [name for name in self.classes if name not in self.recalls]

    def baseline(self, train_counts: Mapping[str, int]) -> float:
        """The accuracy of always saying the class that is most frequent among training tiles."""
        usual = max(self.classes, key=lambda name: train_counts.get(name, 0))
        row = self.confusion[self.classes.index(usual)]
        return float(row.sum() / self.confusion.sum())

    def metrics(self, train_counts: Mapping[str, int]) -> dict[str, float]:
        """Return loss, accuracy, balanced accuracy and baseline by name."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "majority_baseline": self.baseline(train_counts),
        }

    def table(self) -> str:
        """Return the confusion matrix as text, with each class's share of right tiles."""
        longest = max(map(len, self.classes))
        # Long names head no columns: cut short, two could look the same.
        heads = self.classes if longest <= 10 else [f"[{i}]" for i in range(len(self.classes))]
        names = (
            self.classes if longest <= 10 else map(" ".join, zip(heads, self.classes, strict=True))
        )
        left = max(longest + 6, len("true class"))
        width = max(7, *map(len, heads)) + 1
        lines = ["true class".ljust(left) + "".join(f"{h:>{width}}" for h in heads) + "   right"]
        for label, name, row in zip(names, self.classes, self.confusion, strict=True):
            right = f"{self.recalls[name]:8.3f}" if name in self.recalls else "       -"
            lines.append(label.ljust(left) + "".join(f"{n:{width}d}" for n in row) + right)
        return "\n".join(lines)
