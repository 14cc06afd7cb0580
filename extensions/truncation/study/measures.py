"""How well held-out tiles are ranked: AUROC and AUPRC, one class against the rest (paper 3)."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.metrics import binary_metrics
from tiaft_plugin.tiles.tileset import TileSet

MEAN = ""  # the name under which the mean over classes stands
METRICS = ("auroc", "auprc", "auprc_trapezoid", "prevalence")
Measured = dict[str, dict[str, float]]  # by class and metric


@dataclass(frozen=True, eq=False)
class Scores:
    """Probabilities (N, C) of N tiles, and which classes they have, (N, C) of 0 and 1."""

    classes: tuple[str, ...]
    truth: np.ndarray
    probabilities: np.ndarray

    def measured(self) -> Measured:
        """Return the metrics of each class that some tiles have and some have not, and the mean.

        ``auprc`` is the average precision; ``auprc_trapezoid`` joins the curve's points by straight
        lines, as the paper does, which flatters a little.
        """
        found: Measured = {}
        for name, truth, scores in zip(
            self.classes, self.truth.T, self.probabilities.T, strict=True
        ):
            if 0 < truth.sum() < len(truth):
                found[name] = _binary(scores, truth)
        return {MEAN: _mean(found), **found}

    def draws(self, metric: str, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return ``AUROC`` or ``AUPRC`` by class in a bootstrap, (B,) each, of weights (B, N)."""
        found = {}
        for name, truth, scores in zip(
            self.classes, self.truth.T, self.probabilities.T, strict=True
        ):
            if 0 < truth.sum() < len(truth):
                found[name] = binary_metrics(scores, truth, weights)[metric, ""]
        there = np.array(list(found.values())).reshape(-1, len(weights))  # of no class, too
        counted = np.isfinite(there).sum(axis=0)
        mean = np.nansum(there, axis=0) / np.where(counted, counted, np.nan)
        return {MEAN: mean, **found}


def _binary(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import auc, precision_recall_curve

    measured = binary_metrics(scores, truth)
    precision, recall, _ = precision_recall_curve(truth, scores)
    return {
        "auroc": float(measured["AUROC", ""]),
        "auprc": float(measured["AUPRC", ""]),
        "auprc_trapezoid": float(auc(recall, precision)),
        "prevalence": float(truth.mean()),
    }


def _mean(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    rows = list(found.values())
    return {m: float(np.mean([row[m] for row in rows])) if rows else float("nan") for m in METRICS}


def truth_of(tiles: TileSet) -> np.ndarray:
    """Return which classes each tile has, (N, C) int of 0 and 1."""
    targets = np.array(tiles.targets)
    return targets if tiles.multilabel else np.eye(len(tiles.classes), dtype=int)[targets]


def read_scores(path: Path, sets: Mapping[str, TileSet]) -> dict[str, Scores]:
    """Return what a fine-tuning's ``tiles.csv`` says of sets, by their names.

    Raises TiaftError where its tiles are not those of the sets.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for name, tiles in sets.items():
        own = [row for row in rows if row["set"] == name]
        if [row["file"] for row in own] != [tiles.shown(file) for file in tiles.files]:
            raise TiaftError(
                f"{path} is of other tiles: remove {path.parent} to train that cell again"
            )
        found[name] = Scores(tiles.classes, truth_of(tiles), _numbers(own, tiles.classes))
    return found


def _numbers(rows: Sequence[Mapping[str, str]], classes: Sequence[str]) -> np.ndarray:
    columns = [f"probability of {name}" for name in classes]
    return np.array([[float(row[column]) for column in columns] for row in rows])
