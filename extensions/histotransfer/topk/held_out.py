"""Bags that nothing learnt from: the tuned encoder against the frozen one, by patient."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_csv
from tiaft_plugin.probes.metrics import class_metrics
from tiaft_plugin.probes.statistics import Difference, cluster_weights, interval, paired_bootstrap

MARGIN = 0.02  # of AUROC: how much a tuned encoder may lose and still be called non-inferior
DRAWS = 2000
# All tiles of a bag are seen, as in the paper, or those k that the tuned head attends to the most.
FROZEN, TUNED, OF_K = "frozen", "top-k", "top-k, k tiles"
_FIXED = ("fold", "key", "group", "label")


@dataclass(frozen=True)
class HeldOut:
    """N bags, `keys`, `groups` (N,) text, and log probabilities (N, C) float64 by name: `scores`.

    `codes` (N,) int64 are their classes; `folds` (N,) int64 say which head and encoder it was.
    """

    classes: tuple[str, ...]
    folds: np.ndarray
    keys: np.ndarray
    groups: np.ndarray
    codes: np.ndarray
    scores: dict[str, np.ndarray]

    def of_fold(self, fold: int) -> "HeldOut":
        """Return the bags of one fold."""
        of = self.folds == fold
        arrays = {name: getattr(self, name)[of] for name in ("folds", "keys", "groups", "codes")}
        scores = {name: values[of] for name, values in self.scores.items()}
        return replace(self, **arrays, scores=scores)


@dataclass(frozen=True)
class Compared:
    """AUROC of each (mean over classes, each against the rest), with 95 % intervals.

    `models` maps a name to AUROC, low, high, and balanced accuracy; `differences` a tuned one's to
    what it has more than the frozen one. `bags` and `groups` say of how many.
    """

    models: dict[str, tuple[float, float, float, float]]
    differences: dict[str, Difference]
    bags: int
    groups: int

    @property
    def difference(self) -> Difference:
        """The tuned encoder's by all tiles of a bag, as the paper's test has them."""
        return self.differences[TUNED]

    @property
    def verdict(self) -> str:
        """What that difference says, by a margin of 2 points of AUROC."""
        return verdict(self.difference)


def compare(found: HeldOut, seed: int = 0) -> Compared:
    """Compare the models by a bootstrap of groups (patients), the same draws for all.

    Where several folds are pooled, each group's models learnt from the others, and intervals are
    wider for it (see ``probes.statistics``).
    """
    folds = len(np.unique(found.folds))
    groups = len(np.unique(found.groups))
    weights = cluster_weights(found.groups, DRAWS, seed)
    models, draws = {}, {}
    for name, scores in found.scores.items():
        whole = class_metrics(scores, found.codes, found.classes)
        drawn = class_metrics(scores, found.codes, found.classes, weights)["AUROC", ""]
        auroc, balanced = (float(whole[what, ""]) for what in ("AUROC", "balanced accuracy"))
        low, high = (float(end) for end in interval(drawn, groups, folds))
        models[name] = (auroc, low, high, balanced)
        draws[name] = drawn
    differences = {}
    for name in (name for name in models if name != FROZEN):
        less, drawn = models[name][0] - models[FROZEN][0], draws[name] - draws[FROZEN]
        change = paired_bootstrap(less, drawn, groups, folds)
        low, high = (float(np.clip(end, -1, 1)) for end in (change.low, change.high))
        differences[name] = Difference(float(change.value), low, high, float(change.p))
    return Compared(models, differences, len(found.codes), groups)


def verdict(difference: Difference, margin: float = MARGIN) -> str:
    """Say whether a model is non-inferior by `margin`, by the 95 % interval of a difference."""
    points = f"a margin of {100 * margin:g} points of AUROC"
    low, high = difference.low, difference.high
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"nothing can be said by {points}: too few held-out patients, or of one class"
    ends = f"the 95 % interval of the difference is {signed(low)} to {signed(high)}"
    if low > 0:
        return f"better than the frozen encoder, so non-inferior by {points}: {ends}"
    if low > -margin:
        return f"non-inferior by {points}: {ends}"
    if high < -margin:
        return f"inferior by {points}: {ends}"
    return f"not shown to be non-inferior by {points}: {ends}"


def signed(value: float) -> str:
    """Return a difference with its sign and three digits."""
    return f"{value:+.3f}".replace("-", "−")


def write_held_out(path: Path, found: HeldOut) -> None:
    """Write a row a bag: what it is, and log probabilities, exact to the last bit."""
    named = [f"{name}: {label}" for name in found.scores for label in found.classes]
    rows = []
    for row in range(len(found.keys)):
        label = found.classes[found.codes[row]]
        values = [repr(float(v)) for scores in found.scores.values() for v in scores[row]]
        rows.append([found.folds[row], found.keys[row], found.groups[row], label, *values])
    write_csv(path, [*_FIXED, *named], rows)


def read_held_out(paths: Sequence[Path], classes: Sequence[str]) -> HeldOut:
    """Return what `write_held_out` wrote into several files, together. Raises TiaftError."""
    rows: list[dict[str, str]] = []
    for path in paths:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows += csv.DictReader(file)
        except (OSError, ValueError, csv.Error) as error:
            raise TiaftError(f"{path} cannot be read: run the same command again") from error
    codes = {label: code for code, label in enumerate(classes)}
    return HeldOut(
        tuple(classes),
        np.array([int(row["fold"]) for row in rows]),
        np.array([row["key"] for row in rows]),
        np.array([row["group"] for row in rows]),
        np.array([codes[row["label"]] for row in rows]),
        {name: _scores(rows, name, classes) for name in (FROZEN, TUNED, OF_K)},
    )


def _scores(rows: Sequence[dict[str, str]], name: str, classes: Sequence[str]) -> Any:
    return np.array([[float(row[f"{name}: {label}"]) for label in classes] for row in rows])
