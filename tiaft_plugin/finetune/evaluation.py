"""How well held-out tiles are told apart: predictions tile by tile, and what follows from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tiaft_plugin.network.outputs import LEAST

BINS = 15  # of the calibration, as in Guo et al. 2017 (On calibration of modern neural networks)


@dataclass(frozen=True, eq=False)
class Calibration:
    """How far probabilities can be believed, in bins of equal width from 0 to 1.

    `counts` (15,) int64 are predictions a bin, `claimed` and `right` (15,) float64 their mean
    probability and the share that was right; NaN in empty bins. `error` is the expected
    calibration error: the mean distance between the two, each prediction counting the same.
    """

    counts: np.ndarray
    claimed: np.ndarray
    right: np.ndarray
    error: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions of N tiles for C `classes`, in the order of the tile set's files.

    `targets` are int64 (N,), or with `multilabel` (N, C) of 0 and 1; `probabilities` float32
    (N, C), softmax or sigmoid; `losses` float32 (N,), cross-entropy in nats (with `multilabel` the
    mean over labels). What follows is over classes that tiles here have; others have no measure.
    """

    classes: tuple[str, ...]
    targets: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray
    multilabel: bool = False

    @property
    def count(self) -> int:
        """The number of tiles."""
        return len(self.targets)

    @property
    def loss(self) -> float:
        """The mean of `losses`."""
        return float(self.losses.mean(dtype=np.float64))

    @cached_property
    def truth(self) -> np.ndarray:
        """Which classes each tile has, int64 (N, C) of 0 and 1."""
        return self.targets if self.multilabel else _one_hot(self.targets, len(self.classes))

    @cached_property
    def said(self) -> np.ndarray:
        """Which classes each tile is said to have, int64 (N, C) of 0 and 1.

        The most probable one, or with `multilabel` those of a probability of 0.5 or more.
        """
        if self.multilabel:
            return (self.probabilities >= LEAST).astype(np.int64)
        return _one_hot(self.probabilities.argmax(1), len(self.classes))

    @property
    def accuracy(self) -> float:
        """The share of tiles whose class is right, or with `multilabel` of labels; 0 to 1."""
        right = self.truth == self.said
        return float(right.mean() if self.multilabel else right.all(axis=1).mean())

    @cached_property
    def confusion(self) -> np.ndarray:
        """Return counts (C, C) int64, true classes in rows; not for `multilabel`."""
        from sklearn.metrics import confusion_matrix

        labels = range(len(self.classes))
        return confusion_matrix(self.truth.argmax(1), self.said.argmax(1), labels=labels)

    @property
    def counts(self) -> dict[str, int]:
        """How many tiles have each class."""
        return self._named(self.truth.sum(axis=0))

    @property
    def prevalence(self) -> dict[str, float]:
        """The share of tiles that have each class."""
        return self._named(self.truth.mean(axis=0))

    @property
    def absent(self) -> list[str]:
        """The classes that no tile here has."""
        return [name for name, count in self.counts.items() if not count]

    @property
    def recalls(self) -> dict[str, float]:
        """The share of each class's tiles that are said to have it."""
        false, true = self._cells[:, 1].T
        return self._named(_ratio(true, true + false))

    @property
    def precisions(self) -> dict[str, float]:
        """The share of tiles said to be of a class that are; without classes never said."""
        false, true = self._cells[:, :, 1].T
        return self._named(_ratio(true, true + false))

    @property
    def f1(self) -> dict[str, float]:
        """The harmonic mean of recall and precision of each class that tiles here have."""
        (_, false), (missed, true) = self._cells.transpose(1, 2, 0)
        scores = _ratio(2 * true, 2 * true + false + missed)
        return self._named(np.where(self.truth.any(axis=0), scores, np.nan))

    @property
    def balanced_accuracy(self) -> float:
        """The mean of `recalls`: each class that has tiles counts the same.

        With `multilabel` the mean over labels of half the recall and half the share of tiles
        without the label that are said to be without.
        """
        if not self.multilabel:
            return _mean(self.recalls)
        (_, _), (missed, true) = self._cells.transpose(1, 2, 0)
        right, false = self._cells[:, 0].T
        both = (_ratio(true, true + missed) + _ratio(right, right + false)) / 2
        return _mean(self._named(both))

    @property
    def macro_f1(self) -> float:
        """The mean of `f1`."""
        return _mean(self.f1)

    @cached_property
    def auroc(self) -> dict[str, float]:
        """The area under the ROC curve of each class that some tiles have and some have not."""
        from sklearn.metrics import roc_auc_score

        return self._ranked(roc_auc_score)

    @cached_property
    def auprc(self) -> dict[str, float]:
        """The average precision of each class that some tiles have and some have not."""
        from sklearn.metrics import average_precision_score

        return self._ranked(average_precision_score)

    @cached_property
    def calibration(self) -> Calibration:
        """How far the probability of the answer, or with `multilabel` of each label, is right."""
        if self.multilabel:
            return _calibration(self.probabilities.ravel(), self.truth.ravel())
        right = (self.truth * self.said).any(axis=1)
        return _calibration(self.probabilities.max(axis=1), right)

    def baseline(self, train_counts: Mapping[str, int]) -> float:
        """The accuracy of always saying the class that is most frequent among training tiles.

        With `multilabel`, of saying for each label what most tiles here have: no answer that looks
        at no tile is better.
        """
        if self.multilabel:
            shares = self.truth.mean(axis=0)
            return float(np.maximum(shares, 1 - shares).mean())
        usual = max(self.classes, key=lambda name: train_counts.get(name, 0))
        return self.prevalence[usual]

    def metrics(self, train_counts: Mapping[str, int]) -> dict[str, float]:
        """Return the overall measures by name; those that these tiles cannot give are left out."""
        measures = {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "majority_baseline": self.baseline(train_counts),
            "calibration_error": self.calibration.error,
        }
        if self.multilabel:
            measures |= {"auroc": _mean(self.auroc), "auprc": _mean(self.auprc)}
        return {name: value for name, value in measures.items() if np.isfinite(value)}

    def table(self) -> str:
        """Return the confusion matrix as text, with each class's share of right tiles.

        With `multilabel`, a line a label: how many tiles have it, and how well it is told.
        """
        if self.multilabel:
            return self._label_table()
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

    def _label_table(self) -> str:
        left = max(*map(len, self.classes), len("label"))
        lines = [f"{'label':{left}}   tiles  prevalence   AUROC   AUPRC"]
        for name, count in self.counts.items():
            ranked = [
                f"{m[name]:8.3f}" if name in m else "       -" for m in (self.auroc, self.auprc)
            ]
            share = f"{self.prevalence[name]:12.3f}"
            lines.append(f"{name:{left}}{count:8d}{share}{''.join(ranked)}")
        return "\n".join(lines)

    @cached_property
    def _cells(self) -> np.ndarray:
        """Return (C, 2, 2) int64 counts: has the class or not, by said to have it or not."""
        from sklearn.metrics import multilabel_confusion_matrix

        return multilabel_confusion_matrix(self.truth, self.said)

    def _named(self, values: np.ndarray) -> dict:
        """Return values by class, without those that are NaN."""
        named = zip(self.classes, values.tolist(), strict=True)
        return {name: value for name, value in named if value == value}

    def _ranked(self, score) -> dict[str, float]:
        columns = zip(self.truth.T, self.probabilities.T, strict=True)
        scores = [score(t, p) if 0 < t.sum() < len(t) else np.nan for t, p in columns]
        return self._named(np.array(scores))


def _calibration(probabilities: np.ndarray, right: np.ndarray) -> Calibration:
    probabilities = probabilities.astype(np.float64)
    bins = np.clip(np.ceil(probabilities * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    claimed = _ratio(np.bincount(bins, probabilities, BINS), counts)
    found = _ratio(np.bincount(bins, right, BINS), counts)
    error = float(np.nansum(np.abs(claimed - found) * counts) / counts.sum())
    return Calibration(counts, claimed, found, error)


def _one_hot(indices: np.ndarray, classes: int) -> np.ndarray:
    return (indices[:, None] == np.arange(classes)).astype(np.int64)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; NaN where there is nothing to divide by."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(measures: Mapping[str, float]) -> float:
    return float(np.mean(list(measures.values()))) if measures else float("nan")
